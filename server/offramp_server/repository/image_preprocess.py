"""Matches `[preprocess]` of images with the model whose pixels it is to make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from open_inference.tensor import BF16

from offramp_server.errors import ConfigurationError
from offramp_server.model_spec import VARIABLE, TensorSpec
from offramp_server.preprocess.settings import ImagePreprocess
from offramp_server.repository.preprocess_toml import ImageToml

_FLOATING = ("FP16", BF16, "FP32", "FP64")
_CHANNELS = {1: "L", 3: "RGB"}
# Where each of height, width and channels lies in the dimensions of one item.
_AXES = {"CHW": (1, 2, 0), "HWC": (0, 1, 2), "HW": (0, 1, None)}


def match_image(settings: ImageToml, inputs: Sequence[TensorSpec], toml: Path) -> ImagePreprocess:
    """Raises ConfigurationError."""
    return _Match(settings, inputs, toml).result()


class _Match:
    def __init__(self, settings: ImageToml, inputs: Sequence[TensorSpec], toml: Path) -> None:
        self._toml = toml
        self._settings = settings
        if len(inputs) != 1:
            names = ", ".join(f'"{tensor.name}"' for tensor in inputs)
            self._refuse(f"a picture becomes one tensor, and the model has {len(inputs)} inputs ({names})")
        self._tensor = inputs[0]
        self._layout = self._find_layout()
        self._height, self._width, channels = (self._dim(axis) for axis in _AXES[self._layout])
        self._mode = self._find_mode(channels)

    def result(self) -> ImagePreprocess:
        settings = self._settings
        scale = self._find_scale()
        self._check_normalisation()
        resize, crop = self._find_resize(), self._find_crop()
        self._check_final_size(resize, crop)
        return ImagePreprocess(
            input=settings.input,
            tensor=self._tensor.name,
            datatype=self._tensor.datatype,
            mode=self._mode,
            layout=self._layout,
            resize=resize,
            crop=crop,
            height=self._height,
            width=self._width,
            interpolation=settings.interpolation,
            scale=scale,
            mean=settings.mean or ((0.0,) if settings.std else ()),
            std=settings.std or ((1.0,) if settings.mean else ()),
            max_pixels=settings.max_pixels,
            max_bytes=settings.max_bytes,
        )

    # What the pixels are

    def _find_layout(self) -> str:
        dims = self._tensor.dims
        guess = {2: "HW", 3: "HWC" if dims[-1] in _CHANNELS and dims[0] not in _CHANNELS else "CHW"}.get(len(dims))
        layout = self._settings.layout or guess
        if layout is None or len(layout) != len(dims):
            self._refuse(f'the model\'s input "{self._tensor.name}" is {self._shown()}; expected {layout or "CHW"}')
        return layout

    def _dim(self, axis: int | None) -> int:
        return 1 if axis is None else self._tensor.dims[axis]

    def _find_mode(self, channels: int) -> str:
        own = _CHANNELS.get(channels)
        mode = self._settings.mode or own
        if channels != VARIABLE and own is None:
            self._refuse(f"the model takes {channels} channels ({self._layout} of {self._shown()}); expected 1 or 3")
        if mode is None:
            self._refuse('mode is missing, as the model takes any number of channels; expected "L" or "RGB"')
        if own not in (None, mode):
            self._refuse(f'mode = "{mode}", but the model takes "{own}" ({self._layout} of {self._shown()})')
        return mode

    def _find_scale(self) -> bool:
        settings, datatype = self._settings, self._tensor.datatype
        if datatype in _FLOATING:
            return settings.scale is not False
        if datatype != "UINT8":
            self._refuse(f'the model\'s input "{self._tensor.name}" is {datatype}; pixels are floating-point or UINT8')
        if settings.scale or settings.mean or settings.std:
            self._refuse("the model takes UINT8, values from 0 to 255 as they are; leave out scale, mean and std")
        return False

    def _check_normalisation(self) -> None:
        channels = 3 if self._mode == "RGB" else 1
        for key, values in (("mean", self._settings.mean), ("std", self._settings.std)):
            if len(values) not in (0, 1, channels):
                self._refuse(f'{key}: {len(values)} values for {channels} channel of mode "{self._mode}"')

    # What size they have

    def _find_resize(self) -> int | tuple[int, int] | None:
        kind, size = self._settings.resize, self._settings.size
        if kind == "none":
            if size is not None:
                self._refuse('size is given with resize = "none"; leave one of them out')
            return None
        if kind == "shorter":
            if not isinstance(size, int):
                self._refuse('resize = "shorter" needs the length of the shorter side: size = 256, say')
            return size
        if isinstance(size, tuple):
            return size[0], size[1]
        if size is not None:
            return size, size
        if VARIABLE in (self._height, self._width):
            # The model takes pictures as they come, and nobody asked for another size.
            return None
        return self._height, self._width

    def _find_crop(self) -> tuple[int, int] | None:
        crop = self._settings.crop
        if crop is not None:
            return crop[0], crop[1]
        known = VARIABLE not in (self._height, self._width)
        return (self._height, self._width) if known and self._settings.resize == "shorter" else None

    def _check_final_size(self, resize: int | tuple[int, int] | None, crop: tuple[int, int] | None) -> None:
        if crop is not None and resize is not None:
            least = (resize, resize) if isinstance(resize, int) else resize
            if crop[0] > least[0] or crop[1] > least[1]:
                self._refuse(f"crop = {list(crop)} is larger than what size = {self._shown_size(resize)} leaves")
        final = crop or (resize if isinstance(resize, tuple) else None)
        expected = (self._height, self._width)
        if final is not None and any(own not in (VARIABLE, size) for own, size in zip(expected, final, strict=True)):
            self._refuse(f"pictures become {list(final)}, and the model takes {list(expected)} ([height, width])")

    @staticmethod
    def _shown_size(resize: int | tuple[int, int]) -> str:
        return str(resize if isinstance(resize, int) else list(resize))

    def _shown(self) -> str:
        return f"{self._tensor.datatype}[{','.join(map(str, self._tensor.dims))}]"

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigurationError(f"{self._toml}: preprocess: {what}")
