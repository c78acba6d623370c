"""Light augmentation of a batch, drawn from the generator that it is given so that a run can be repeated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from offramp_compression.errors import DataError


@dataclass(frozen=True, slots=True)
class ImageAugment:
    """Mirror half of the images if `flip`, shift by up to `shift` pixels and, with `erase_probability`, blank a square
    of `erase_side` pixels.

    Takes and returns FP32 [N, C, H, W]; the input is left as it is. Erasing is that of Zhong et al., Random Erasing
    Data Augmentation (2017), with a square of a fixed size. Raises DataError for images smaller than that square.
    """

    flip: bool = True
    shift: int = 2
    erase_probability: float = 0.0
    erase_side: int = 8

    def __call__(self, inputs: tuple[Tensor, ...], generator: Generator) -> tuple[Tensor, ...]:
        images, *others = inputs
        if self.flip:
            images = flip(images, generator)
        if self.shift:
            images = shift(images, generator, self.shift)
        if self.erase_probability:
            images = erase(images, generator, self.erase_probability, self.erase_side)
        return (images, *others)


def flip(images: Tensor, generator: Generator) -> Tensor:
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def shift(images: Tensor, generator: Generator, furthest: int) -> Tensor:
    """Move each image by up to `furthest` pixels in either direction; what comes in from outside is 0."""
    count, channels, height, width = images.shape
    padded = nn.functional.pad(images, (furthest,) * 4)
    top, left = torch.randint(0, 2 * furthest + 1, (2, count, 1, 1, 1), generator=generator)
    rows = top + torch.arange(height)[:, None]
    columns = left + torch.arange(width)
    return padded[torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns]


def erase(images: Tensor, generator: Generator, probability: float, side: int) -> Tensor:
    """Set a square of `side` pixels, anywhere within it, of each image to 0 with `probability`."""
    count, _, height, width = images.shape
    if side > min(height, width):
        raise DataError(
            f"a square of {side} pixels cannot be erased from images of {width}x{height}; choose a smaller one"
        )
    chosen = torch.rand(count, 1, generator=generator) < probability
    top = torch.randint(0, height - side + 1, (count, 1), generator=generator)
    left = torch.randint(0, width - side + 1, (count, 1), generator=generator)
    in_rows = _between(torch.arange(height), top, side) & chosen
    in_columns = _between(torch.arange(width), left, side)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def trim_padding(inputs: tuple[Tensor, ...], generator: Generator) -> tuple[Tensor, ...]:
    """Cut the columns of `input_ids` and `attention_mask`, int64 [N, L], in which no text has a token: those after the
    longest text, or before it where padding is on the left.

    Nothing is random in it; it saves the computation of what is padding in every row of the batch.
    """
    input_ids, attention_mask = inputs
    used = attention_mask.any(dim=0).nonzero().flatten().tolist()
    # At least one column, as an empty text still has to have a shape.
    columns = slice(used[0], used[-1] + 1) if used else slice(1)
    return input_ids[:, columns], attention_mask[:, columns]


def _between(position: Tensor, start: Tensor, length: int) -> Tensor:
    return (position >= start) & (position < start + length)
