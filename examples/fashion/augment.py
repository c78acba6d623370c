"""Light augmentation of a batch of images, drawn from a generator of its own so that a run can be repeated."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

CROP_PADDING = 2
ERASED_SIDE = 8


def augment(images: Tensor, generator: Generator, erase_probability: float) -> Tensor:
    """Mirror, shift by up to two pixels and, now and then, blank a square of each image.

    Takes and returns FP32 [N, 1, H, W]; the input is left as it is. Erasing is that of Zhong et al.,
    Random Erasing Data Augmentation (2017), with a square of a fixed size.
    """
    return erase(crop(flip(images, generator), generator), generator, erase_probability)


def flip(images: Tensor, generator: Generator) -> Tensor:
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def crop(images: Tensor, generator: Generator) -> Tensor:
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (CROP_PADDING,) * 4)[:, 0]
    top, left = torch.randint(0, 2 * CROP_PADDING + 1, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]][:, None]


def erase(images: Tensor, generator: Generator, probability: float) -> Tensor:
    count, _, height, width = images.shape
    chosen = torch.rand(count, 1, generator=generator) < probability
    top = torch.randint(0, height - ERASED_SIDE + 1, (count, 1), generator=generator)
    left = torch.randint(0, width - ERASED_SIDE + 1, (count, 1), generator=generator)
    in_rows = _between(torch.arange(height), top) & chosen
    in_columns = _between(torch.arange(width), left)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def _between(position: Tensor, start: Tensor) -> Tensor:
    return (position >= start) & (position < start + ERASED_SIDE)
