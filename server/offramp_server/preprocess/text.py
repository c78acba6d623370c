"""Texts to token ids, by a tokenizer file of Hugging Face's `tokenizers`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from offramp_common.extras import needs_extra
from open_inference.tensor import ITEM_SIZES, Array, Tensor

from offramp_server.errors import LoadError, ModelFailed
from offramp_server.preprocess.items import Stop, check_size, elements, wrong
from offramp_server.preprocess.settings import TextPreprocess

# Tokens that pad in vocabularies whose tokenizer file says nothing of padding: BERT's, and those after SentencePiece.
_PADDING_TOKENS = ("[PAD]", "<pad>")


class TextPreprocessor:
    """Tokenizes. Rows of one request have one length: that of its longest text, rounded up."""

    def __init__(self, settings: TextPreprocess) -> None:
        """Raises LoadError if the file is no tokenizer or not the one that was checked, MissingExtra."""
        self._settings = settings
        self._tokenizer = _load(settings)
        self._padding = _padding(self._tokenizer)

    def prepare(self, items: Tensor, stop: Stop, max_tensor_bytes: int) -> list[Tensor]:
        encodings = [self._encode(items, index, element) for index, element in self._elements(items, stop)]
        length = self._length(max((len(encoding.ids) for encoding in encodings), default=0))
        for tensor in self._settings.tensors:
            check_size(tensor.name, len(encodings), length * ITEM_SIZES[tensor.datatype], max_tensor_bytes)
        return [
            Tensor.from_numpy(tensor.name, self._rows(encodings, tensor.source, length), tensor.datatype, copy=False)
            for tensor in self._settings.tensors
        ]

    def _elements(self, items: Tensor, stop: Stop) -> Iterator[tuple[int, bytes]]:
        return elements(items, self._settings.max_bytes, stop)

    def _encode(self, items: Tensor, index: int, element: bytes) -> Any:
        try:
            text = element.decode()
        except UnicodeDecodeError as error:
            raise wrong(items, index, f"expected UTF-8, it is not from byte {error.start} on") from None
        with _panics_become(ModelFailed, "the tokenizer failed"):
            # Of a batch of one: unlike `encode`, it lets other threads run meanwhile.
            [encoding] = self._tokenizer.encode_batch_fast([text])
        if len(encoding.ids) > self._settings.max_length:
            raise wrong(
                items, index, f"has {len(encoding.ids)} tokens, this model takes at most {self._settings.max_length}"
            )
        return encoding

    def _length(self, longest: int) -> int:
        settings = self._settings
        step = settings.pad_to_multiple_of
        rounded = -(-longest // step) * step
        return min(max(rounded, settings.min_length), settings.max_length)

    def _rows(self, encodings: Sequence[Any], source: str, length: int) -> Array:
        rows = np.full((len(encodings), length), self._padding.value(source), dtype=np.int64)
        for row, encoding in zip(rows, encodings, strict=True):
            values = getattr(encoding, source)
            if self._padding.left:
                row[length - len(values) :] = values
            else:
                row[: len(values)] = values
        return rows


class _Padding:
    def __init__(self, token: int, token_type: int, left: bool) -> None:
        self.left = left
        self._values = {"ids": token, "type_ids": token_type, "attention_mask": 0}

    def value(self, source: str) -> int:
        return self._values[source]


def _load(settings: TextPreprocess) -> Any:
    with needs_extra("text", "[preprocess] of text"):
        from tokenizers import Tokenizer
    # Requests are tokenized side by side already, and a pool of threads below ours would take the workers' cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    content = settings.tokenizer.read_bytes()
    if hashlib.sha256(content).hexdigest() != settings.sha256:
        raise LoadError(f"{settings.tokenizer}: has changed while the model was being loaded; load it again")
    try:
        with _panics_become(LoadError, f"{settings.tokenizer}: not a tokenizer file"):
            tokenizer = Tokenizer.from_buffer(content)
            _configure(tokenizer, settings)
    except (ValueError, TypeError) as error:
        raise LoadError(
            f"{settings.tokenizer}: not a tokenizer file of Hugging Face's tokenizers (tokenizer.json): {error}"
        ) from None
    return tokenizer


def _configure(tokenizer: Any, settings: TextPreprocess) -> None:
    special = tokenizer.num_special_tokens_to_add(False)
    if special >= settings.max_length:
        raise LoadError(
            f"{settings.tokenizer}: adds {special} special tokens to each text, which leaves no room in "
            f"max_length = {settings.max_length}; make it larger"
        )
    direction = (tokenizer.truncation or {}).get("direction", "right")
    if settings.truncation:
        tokenizer.enable_truncation(settings.max_length, direction=direction)
    else:
        tokenizer.no_truncation()


def _padding(tokenizer: Any) -> _Padding:
    """What the file says, or else what such vocabularies agree on."""
    own = tokenizer.padding
    # Rows are padded here, where all lengths of a request are known.
    tokenizer.no_padding()
    if own:
        return _Padding(own["pad_id"], own["pad_type_id"], own["direction"] == "left")
    known = (tokenizer.token_to_id(token) for token in _PADDING_TOKENS)
    return _Padding(next((token for token in known if token is not None), 0), 0, left=False)


@contextmanager
def _panics_become(kind: type[Exception], words: str) -> Iterator[None]:
    """A defect of the library's native part arrives as an exception that no `except Exception` catches."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise kind(f"{words}: {error}") from None
