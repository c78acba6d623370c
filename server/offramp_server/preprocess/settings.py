"""How texts and pictures become a model's tensors: plain data that the repository has matched to the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias


@dataclass(frozen=True, slots=True)
class TokenTensor:
    """One input of a text model, and which of the tokenizer's outputs it takes: ids, attention_mask or type_ids."""

    name: str
    datatype: str
    source: str


@dataclass(frozen=True, slots=True)
class TextPreprocess:
    """Text to tokens."""

    kind: ClassVar[str] = "text"

    # The BYTES input that clients send: one text in UTF-8 for each item.
    input: str
    # A file of Hugging Face's `tokenizers`, and its sha256.
    tokenizer: Path
    sha256: str
    # In the order of the model's inputs.
    tensors: tuple[TokenTensor, ...]
    # Tokens of the longest row that the model gets, special ones included, and of the shortest.
    max_length: int
    min_length: int
    # Whether a longer text is cut; otherwise it is refused.
    truncation: bool
    # A request's rows are as long as its longest text, rounded up to this: requests of one length share batches.
    pad_to_multiple_of: int
    # Of one text.
    max_bytes: int


@dataclass(frozen=True, slots=True)
class ImagePreprocess:
    """A JPEG or PNG file to pixels. Sizes are (height, width)."""

    kind: ClassVar[str] = "image"

    # The BYTES input that clients send: one file for each item.
    input: str
    # The model's own input.
    tensor: str
    datatype: str
    # L | RGB
    mode: str
    # CHW | HWC | HW
    layout: str
    # The shorter side, or height and width; None: as it comes.
    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    # What the pixels have to be in the end; -1: any.
    height: int
    width: int
    # A name of Pillow's resampling filters, in lower case.
    interpolation: str
    # Whether 0 to 255 becomes 0 to 1.
    scale: bool
    # By channel, after scaling: (value - mean) / std. Empty: left as it is.
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Of one picture, before and after resizing.
    max_pixels: int
    # Of one file.
    max_bytes: int

    @property
    def channels(self) -> int:
        return 3 if self.mode == "RGB" else 1


Preprocess: TypeAlias = TextPreprocess | ImagePreprocess
