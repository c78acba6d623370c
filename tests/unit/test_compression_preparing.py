"""What is written beside a model so that apps may send what they have."""

from __future__ import annotations

import pytest
import torch
from offramp_compression.export.preparing import preparing


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_of_grey_or_coloured_pictures_takes_their_files(channels: int) -> None:
    assert preparing([torch.zeros(1, channels, 8, 8)], None, 16).tables == {"preprocess": {"kind": "image"}}


@pytest.mark.parametrize("inputs", [[torch.zeros(1, 2, 8, 8)], [torch.zeros(1, 4)], [torch.zeros(1, 1, 8, 8)] * 2])
def test_other_tensors_are_no_pictures(inputs: list[torch.Tensor]) -> None:
    assert not preparing(inputs, None, 16).tables


def test_a_model_of_texts_has_its_tokenizer_beside_it() -> None:
    additions = preparing([torch.zeros(1, 4, dtype=torch.int64)] * 2, b"{}", 16)
    assert additions.files == {"tokenizer.json": b"{}"}
    assert additions.tables == {"preprocess": {"tokenizer": "tokenizer.json", "max_length": 16}}
