"""What a version needs so that the server makes the model's inputs of what apps have: texts, or files of pictures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from offramp_compression.export.publish import NOTHING, Additions

TOKENIZER = "tokenizer.json"


def preparing(inputs: Sequence[Tensor], tokenizer: bytes | None, max_length: int) -> Additions:
    """`[preprocess]` for a model of such inputs: with the content of a tokenizer's file, one of texts; one of pictures
    for a single input [N, C, H, W] of one or three channels; otherwise nothing."""
    if tokenizer is not None:
        return Additions({TOKENIZER: tokenizer}, {"preprocess": {"tokenizer": TOKENIZER, "max_length": max_length}})
    if len(inputs) == 1 and inputs[0].dim() == 4 and inputs[0].shape[1] in (1, 3):
        return Additions(tables={"preprocess": {"kind": "image"}})
    return NOTHING
