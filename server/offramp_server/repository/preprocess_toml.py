"""`[preprocess]` of `model.toml` as it is written: text or images, told apart by `kind` or by what there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from offramp_common.toml_schema import Rule, between, bind, every, matches, one_of

from offramp_server.errors import ConfigurationError

SOURCES = ("ids", "attention_mask", "type_ids")
# Twice what Pillow takes for a decompression bomb, beyond which it refuses by itself.
_PILLOW_MAX_PIXELS = 178_956_970

_InputName = Annotated[str, matches(r"[^\s\x00-\x1f\x7f]{1,256}", "a name of at most 256 characters without spaces")]
_Side = Annotated[int, between(1, 65535)]
_Size = Annotated[
    tuple[int, ...],
    Rule("[height, width] in pixels", lambda size: len(size) == 2 and all(1 <= side <= 65535 for side in size)),
]
_Values = Annotated[tuple[float, ...], Rule("a number for each of the 1 or 3 channels", lambda v: len(v) in (1, 3))]


@dataclass(frozen=True, slots=True)
class TextToml:
    """Texts to token ids."""

    # A file of Hugging Face's `tokenizers` in the version's folder or, if it is not there, in the model's.
    tokenizer: str
    kind: Literal["text"] = "text"
    # The BYTES input that clients send.
    input: _InputName = "text"
    # Tokens, special ones included. Left out: what the model takes at most, or 512 where it takes any length.
    max_length: Annotated[int, between(1, 1_000_000)] | None = None
    # Whether a longer text is cut; otherwise it is refused.
    truncation: bool = True
    # The rows of a request are as long as its longest, rounded up to this. Requests of one length share batches.
    pad_to_multiple_of: Annotated[int, between(1, 65536)] = 16
    # Model input -> tokenizer output. Left out: by the names input_ids, attention_mask and token_type_ids.
    inputs: Mapping[str, str] = field(default_factory=dict)
    # Of one text.
    max_bytes: Annotated[int, between(1)] = 256 * 1024


@dataclass(frozen=True, slots=True)
class ImageToml:
    """JPEG and PNG files to pixels. What is left out follows from the dimensions of the model's input."""

    kind: Literal["image"] = "image"
    # The BYTES input that clients send.
    input: _InputName = "image_bytes"
    mode: Literal["L", "RGB"] | None = None
    layout: Literal["CHW", "HWC", "HW"] | None = None
    # To exactly `size`; until the shorter side is `size`; or not at all.
    resize: Literal["exact", "shorter", "none"] = "exact"
    size: _Side | _Size | None = None
    # The centre of the resized picture.
    crop: _Size | None = None
    interpolation: Annotated[str, one_of("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")] = "bilinear"
    # 0 to 255 becomes 0 to 1. Left out: true, unless the model takes UINT8.
    scale: bool | None = None
    # By channel, after scaling: (value - mean) / std.
    mean: _Values = ()
    std: Annotated[_Values, every(Rule("more than 0", lambda value: value > 0))] = ()
    # Of one picture, as it comes and resized.
    max_pixels: Annotated[int, between(1, _PILLOW_MAX_PIXELS)] = 50_000_000
    # Of one file.
    max_bytes: Annotated[int, between(1)] = 32 * 1024 * 1024


PreprocessToml: TypeAlias = TextToml | ImageToml


def bind_preprocess(table: object, path: Path) -> PreprocessToml:
    """Raises ConfigurationError."""
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{path}: preprocess: expected a table")
    # A tokenizer says it all.
    kind = table.get("kind", "text" if "tokenizer" in table else "")
    if kind == "text":
        return bind(TextToml, table, path, prefix="preprocess.")
    if kind == "image":
        return bind(ImageToml, table, path, prefix="preprocess.")
    shown = f'"{str(kind)[:80]}"' if kind else "nothing"
    raise ConfigurationError(f'{path}: preprocess.kind: expected "text" or "image", got {shown}')
