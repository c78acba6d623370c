"""Texts become the rows of token ids that a model takes, or are refused by the number of the item."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from offramp_common.extras import MissingExtra
from offramp_server.errors import InvalidRequest, LoadError, ModelFailed
from offramp_server.preprocess.items import Stopped
from offramp_server.preprocess.settings import TextPreprocess, TokenTensor
from offramp_server.preprocess.text import TextPreprocessor
from open_inference.tensor import BYTES, Tensor, encode_bytes
from text_models import IDS, write_tokenizer

CLS, SEP, GOOD, FILM, PAD = (IDS[word] for word in ("[CLS]", "[SEP]", "good", "film", "[PAD]"))
TENSORS = (TokenTensor("input_ids", "INT64", "ids"), TokenTensor("attention_mask", "INT32", "attention_mask"))

# Bytes of a tensor.
LARGEST = 64_000_000


def settings(tokenizer: Path, **changes: object) -> TextPreprocess:
    plain = TextPreprocess(
        input="text",
        tokenizer=tokenizer,
        sha256=hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
        tensors=TENSORS,
        max_length=16,
        min_length=1,
        truncation=True,
        pad_to_multiple_of=4,
        max_bytes=1000,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def prepared(preprocess: TextPreprocess, *texts: str | bytes) -> list[np.ndarray]:
    items = Tensor("text", BYTES, (len(texts), 1), encode_bytes(texts))
    return [tensor.numpy() for tensor in TextPreprocessor(preprocess).prepare(items, lambda: False, LARGEST)]


def refusal(preprocess: TextPreprocess, *texts: str | bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        prepared(preprocess, *texts)
    return str(caught.value)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path)


def test_texts_become_ids_and_a_mask_in_the_datatypes_of_the_model(tokenizer: Path) -> None:
    ids, mask = prepared(settings(tokenizer), "good film", "good")
    np.testing.assert_array_equal(ids, [[CLS, GOOD, FILM, SEP], [CLS, GOOD, SEP, PAD]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1], [1, 1, 1, 0]])
    assert ids.dtype == np.int64
    assert mask.dtype == np.int32


def test_the_rows_of_a_request_are_as_long_as_its_longest_text_rounded_up(tokenizer: Path) -> None:
    assert prepared(settings(tokenizer), "good", "good film good")[0].shape == (2, 8)
    assert prepared(settings(tokenizer, pad_to_multiple_of=1), "good", "good film good")[0].shape == (2, 5)
    assert prepared(settings(tokenizer, pad_to_multiple_of=16), "good")[0].shape == (1, 16)


def test_texts_that_would_become_too_large_a_tensor_are_refused(tokenizer: Path) -> None:
    items = Tensor("text", BYTES, (2, 1), encode_bytes(["good", "good film"]))
    assert TextPreprocessor(settings(tokenizer)).prepare(items, lambda: False, 64)[0].shape == (2, 4)
    with pytest.raises(InvalidRequest, match='2 items become 64 bytes of input "input_ids", this server takes at most'):
        TextPreprocessor(settings(tokenizer)).prepare(items, lambda: False, 63)


def test_no_row_is_longer_or_shorter_than_the_model_takes(tokenizer: Path) -> None:
    assert prepared(settings(tokenizer, max_length=6), "good film good")[0].shape == (1, 6)
    assert prepared(settings(tokenizer, min_length=10), "good")[0].shape == (1, 10)


def test_an_empty_text_is_a_row_all_the_same(tmp_path: Path) -> None:
    ids, mask = prepared(settings(write_tokenizer(tmp_path, special=False)), "")
    np.testing.assert_array_equal(ids, [[PAD]])
    np.testing.assert_array_equal(mask, [[0]])


def test_a_text_that_is_too_long_is_cut_and_keeps_its_special_tokens(tokenizer: Path) -> None:
    ids, _ = prepared(settings(tokenizer, max_length=4), "good film good film good")
    np.testing.assert_array_equal(ids, [[CLS, GOOD, FILM, SEP]])


def test_without_truncation_a_text_that_is_too_long_is_refused_by_its_number(tokenizer: Path) -> None:
    sentence = refusal(settings(tokenizer, max_length=4, truncation=False), "good", "good film good")
    assert sentence == 'input "text", item 1: has 5 tokens, this model takes at most 4'


def test_text_that_is_not_utf8_is_refused_by_its_number(tokenizer: Path) -> None:
    assert refusal(settings(tokenizer), "good", b"film \xff") == (
        'input "text", item 1: expected UTF-8, it is not from byte 5 on'
    )


def test_a_text_of_too_many_bytes_is_refused_before_it_is_read(tokenizer: Path) -> None:
    assert refusal(settings(tokenizer, max_bytes=10), b"\xff" * 11) == (
        'input "text", item 0: has 11 bytes, this model takes at most 10'
    )


def test_padding_is_what_the_tokenizer_file_says(tmp_path: Path) -> None:
    padding = {"direction": "left", "pad_id": FILM, "pad_token": "film", "length": 99}
    ids, mask = prepared(settings(write_tokenizer(tmp_path, padding=padding)), "good")
    np.testing.assert_array_equal(ids, [[FILM, CLS, GOOD, SEP]])
    np.testing.assert_array_equal(mask, [[0, 1, 1, 1]])


def test_token_types_go_where_the_model_wants_them(tokenizer: Path) -> None:
    tensors = (TokenTensor("segments", "INT64", "type_ids"), TokenTensor("tokens", "FP32", "ids"))
    segments, tokens = prepared(settings(tokenizer, tensors=tensors), "good")
    np.testing.assert_array_equal(segments, [[0, 0, 0, 0]])
    np.testing.assert_array_equal(tokens, np.array([[CLS, GOOD, SEP, PAD]], np.float32))


def test_nothing_more_is_tokenized_once_nobody_waits(tokenizer: Path) -> None:
    with pytest.raises(Stopped):
        TextPreprocessor(settings(tokenizer)).prepare(
            Tensor("text", BYTES, (1, 1), encode_bytes(["a"])), lambda: True, LARGEST
        )


def test_a_tokenizer_that_has_changed_since_it_was_checked_is_not_used(tokenizer: Path) -> None:
    checked = settings(tokenizer)
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(LoadError, match=r"tokenizer\.json: has changed while the model was being loaded"):
        TextPreprocessor(checked)


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"model": {"type": "WordLevel"}}', "\xff"])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(LoadError, match=r"tokenizer\.json: not a tokenizer file"):
        TextPreprocessor(settings(tmp_path / "tokenizer.json"))


class PanicException(BaseException):
    """As a panic of the library's native part looks from Python."""


def test_a_defect_of_the_library_fails_the_request_and_nothing_else(tokenizer: Path) -> None:
    class Panics:
        def encode_batch_fast(self, texts: list[str]) -> None:
            raise PanicException("index out of bounds")

    preprocessor = TextPreprocessor(settings(tokenizer))
    preprocessor._tokenizer = Panics()
    with pytest.raises(ModelFailed, match="the tokenizer failed: index out of bounds"):
        preprocessor.prepare(Tensor("text", BYTES, (1, 1), encode_bytes(["good"])), lambda: False, LARGEST)


def test_special_tokens_have_to_leave_room_for_text(tokenizer: Path) -> None:
    with pytest.raises(LoadError, match="adds 2 special tokens to each text, which leaves no room in max_length = 2"):
        TextPreprocessor(settings(tokenizer, max_length=2))


def test_without_the_tokenizers_library_the_extra_is_named(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'offramp\[text\]'"):
        TextPreprocessor(settings(tokenizer))
