"""Labelled texts, and their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Tokens that pad in vocabularies whose tokenizer file says nothing of padding: BERT's, and those after SentencePiece.
_PADDING_TOKENS = ("[PAD]", "<pad>")


@dataclass(frozen=True, slots=True, eq=False)
class TextData:
    """N texts with `labels` (int64 [N]), positions in `class_names`."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


def encode(texts: TextData, tokenizer: Tokenizer, max_length: int) -> Dataset:
    """Token ids and attention mask of every text, int64 [N, L] each, cut to at most `max_length` tokens.

    L is the length of the longest text after cutting; shorter ones are padded with the tokenizer's padding token, or
    that of such vocabularies, or 0, under a mask of 0. Texts are cut and padded at the side where the tokenizer does
    so; its own lengths are set aside. The server prepares texts in the same way.
    Raises DataError for a `max_length` below 1 and for a text without any token.
    """
    if max_length < 1:
        raise DataError(f"a text cannot be cut to {max_length} tokens; expected at least 1")
    token, left = _padding(tokenizer)
    # A copy, as these settings belong to whoever opened the tokenizer.
    own = type(tokenizer).from_str(tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(max_length, direction=(tokenizer.truncation or {}).get("direction", "right"))
    encodings = own.encode_batch(list(texts.texts))
    lengths = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
    if (lengths == 0).any():
        raise DataError(
            f"text {int(np.argmin(lengths))} has no token in this vocabulary; expected at least one in every text"
        )
    mask = (np.arange(lengths.max(initial=0)) < lengths[:, None]).astype(np.int64)
    if left:
        mask = np.ascontiguousarray(mask[:, ::-1])
    ids = np.full(mask.shape, token, dtype=np.int64)
    ids[mask == 1] = np.concatenate([encoding.ids for encoding in encodings])
    return Dataset((ids, mask), texts.labels, texts.class_names)


def _padding(tokenizer: Tokenizer) -> tuple[int, bool]:
    """The token, and whether it goes to the left."""
    own = tokenizer.padding
    if own:
        return int(own["pad_id"]), own["direction"] == "left"
    known = (tokenizer.token_to_id(token) for token in _PADDING_TOKENS)
    return next((token for token in known if token is not None), 0), False
