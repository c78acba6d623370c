"""Data sets in memory: what they must be, how they are split, batched, augmented, and handed to models."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import images
from offramp_compression.data.augment import ImageAugment, erase, flip, shift, trim_padding
from offramp_compression.data.batches import Batches
from offramp_compression.data.dataset import Dataset, aligned, check, tensors
from offramp_compression.data.text import TextData, encode
from offramp_compression.errors import DataError
from offramp_server.preprocess.settings import TextPreprocess, TokenTensor
from offramp_server.preprocess.text import TextPreprocessor
from open_inference.tensor import BYTES, Tensor, encode_bytes
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace


class TestCheck:
    def test_good_data_pass(self) -> None:
        check(images(9), "here")

    def test_no_examples_are_refused(self) -> None:
        with pytest.raises(DataError, match="here: there is no example"):
            check(images(0), "here")

    @pytest.mark.parametrize("label", [-1, 3])
    def test_a_label_out_of_range_is_named_with_the_range(self, label: int) -> None:
        data = images(6)
        data.labels[4] = label
        with pytest.raises(DataError, match=rf"here: example 4 has label {label} .*expected 0 to 2, .* 3 class names"):
            check(data, "here")

    def test_a_class_without_examples_is_named_unless_that_is_allowed(self) -> None:
        data = images(9).take(np.array([0, 1, 3]))
        with pytest.raises(DataError, match='here: no example of class "class 2"; give examples of every class'):
            check(data, "here")
        check(data, "here", every_class=False)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_pixels_that_are_no_numbers_are_counted_and_the_first_named(self, value: float) -> None:
        data = images(6)
        pixels = data.inputs[0].astype(np.float32)
        pixels[[2, 5], 0, 1, 1] = value
        with pytest.raises(DataError, match="2 of 6 examples hold NaN or infinity in input 0, the first is example 2"):
            check(replace(data, inputs=(pixels,)), "here")

    def test_inputs_without_as_many_labels_are_refused(self) -> None:
        data = images(6)
        with pytest.raises(DataError, match="here: input 0 has 6 examples and there are 5 labels"):
            check(replace(data, labels=data.labels[:5]), "here")


class TestDataset:
    def test_a_split_holds_out_the_same_share_of_every_class_and_loses_nothing(self) -> None:
        data = images(60)
        rest, held_out = data.split(0.25, seed=3)
        assert np.bincount(held_out.labels).tolist() == [5, 5, 5]
        both = np.concatenate([rest.inputs[0], held_out.inputs[0]])
        assert sorted(map(bytes, both)) == sorted(map(bytes, data.inputs[0]))

    def test_a_split_is_decided_by_its_seed(self) -> None:
        data = images(60)
        assert data.split(0.5, 1)[1].digest() == data.split(0.5, 1)[1].digest()
        assert data.split(0.5, 1)[1].digest() != data.split(0.5, 2)[1].digest()

    @pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
    def test_a_fraction_that_is_none_is_refused(self, fraction: float) -> None:
        with pytest.raises(DataError, match="more than 0 and less than 1"):
            images(6).split(fraction)

    def test_a_split_that_would_leave_a_part_empty_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"holding out 0.01 of 6 examples leaves one part without any"):
            images(6).split(0.01)

    def test_the_digest_tells_values_labels_and_names_apart(self) -> None:
        data = images(6)
        others = (
            images(6, seed=8),
            replace(data, labels=data.labels[::-1].copy()),
            replace(data, class_names=("a", "b", "c")),
            replace(data, inputs=(data.inputs[0].reshape(6, 1, 4, 16),)),
        )
        assert images(6).digest() == data.digest()
        assert len({data.digest(), *(other.digest() for other in others)}) == 5

    def test_models_get_pixels_from_0_to_1_and_integers_as_they_are(self) -> None:
        pixels = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
        ids = np.array([[1], [2], [3]], np.int32)
        data = Dataset((pixels, ids), np.zeros(3, np.int64), ("a",))
        scaled, tokens = tensors(data, np.array([1, 2]))
        torch.testing.assert_close(scaled.flatten(), torch.tensor([0.2, 1.0]))
        assert (tokens.dtype, tokens.flatten().tolist()) == (torch.int64, [2, 3])

    def test_labels_are_counted_in_the_order_of_a_models_classes(self) -> None:
        data = aligned(images(3), ("class 2", "other", "class 0", "class 1"), "here")
        assert data.labels.tolist() == [2, 3, 0]

    def test_a_class_that_the_model_lacks_is_named(self) -> None:
        with pytest.raises(
            DataError, match='here: the model has no class "class 2"; expected data of its classes: "cl'
        ):
            aligned(images(3), ("class 0", "class 1"), "here")

    def test_classes_without_names_get_those_of_the_model(self) -> None:
        data = replace(images(6), class_names=("0", "1", "2"))
        named = aligned(data, ("Coat", "Bag", "Boot", "Shirt"), "here")
        assert (named.class_names[2], named.labels.tolist()) == ("Boot", data.labels.tolist())

    def test_numbers_that_are_the_models_names_are_taken_by_name(self) -> None:
        data = replace(images(4), class_names=("0", "1"), labels=np.array([0, 1, 0, 1]))
        assert aligned(data, ("1", "0"), "here").labels.tolist() == [1, 0, 1, 0]
        with pytest.raises(DataError, match='here: the model has no class "0"'):
            aligned(data, ("1", "2", "3"), "here")

    def test_more_classes_without_names_than_the_model_has_are_refused(self) -> None:
        with pytest.raises(DataError, match='here: the model has no class "0"'):
            aligned(replace(images(6), class_names=("0", "1", "2")), ("Coat", "Bag"), "here")


class TestBatches:
    def test_every_example_is_seen_once_in_an_epoch_and_the_next_has_another_order(self) -> None:
        batches = Batches(images(12), 4, seed=0)
        epochs = [torch.cat([batches.batch(3 * epoch + step).indices for step in range(3)]) for epoch in range(2)]
        assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(12))] * 2
        assert not torch.equal(*epochs)

    def test_a_batch_holds_the_examples_that_it_says(self) -> None:
        data = images(12)
        batch = Batches(data, 4, seed=0).batch(1)
        torch.testing.assert_close(batch.inputs, tensors(data, batch.indices))
        assert batch.labels.tolist() == data.labels[batch.indices].tolist()

    def test_a_batch_depends_on_nothing_but_seed_and_step(self) -> None:
        augment = ImageAugment(erase_probability=0.5, erase_side=3)
        first, again = (Batches(images(12), 4, seed=5, augment=augment) for _ in range(2))
        for step in range(7):
            first.batch(step)
        torch.testing.assert_close(first.batch(7).inputs, again.batch(7).inputs, rtol=0, atol=0)

    def test_another_seed_gives_another_order_and_another_augmentation(self) -> None:
        one, other = (Batches(images(64), 64, seed, ImageAugment()).batch(0) for seed in (1, 2))
        assert not torch.equal(one.indices, other.indices)
        assert not torch.equal(one.inputs[0][one.indices.argsort()], other.inputs[0][other.indices.argsort()])

    def test_what_does_not_fill_a_batch_is_left_out_or_makes_a_small_one(self) -> None:
        assert Batches(images(10), 4, seed=0).steps_per_epoch == 2
        kept = Batches(images(10), 4, seed=0, drop_last=False)
        assert [len(kept.batch(step).labels) for step in range(kept.steps_per_epoch)] == [4, 4, 2]

    @pytest.mark.parametrize(
        ("batch_size", "seed", "complaint"),
        [(0, 0, "a batch of 0 examples"), (11, 0, "10 examples do not fill a batch of 11"), (2, -1, "seed -1")],
    )
    def test_what_cannot_be_batched_is_refused(self, batch_size: int, seed: int, complaint: str) -> None:
        with pytest.raises(DataError, match=complaint):
            Batches(images(10), batch_size, seed)


class TestAugmentation:
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(3)

    def test_flipping_mirrors_about_half_of_the_images_and_leaves_the_rest(self) -> None:
        pictures = torch.rand(200, 3, 6, 6)
        flipped = flip(pictures, self.generator())
        mirrored = (flipped == pictures.flip(-1)).flatten(1).all(1)
        unchanged = (flipped == pictures).flatten(1).all(1)
        assert (mirrored ^ unchanged).all()
        assert 70 < mirrored.sum() < 130

    def test_shifting_moves_all_channels_alike_and_by_no_more_than_was_said(self) -> None:
        pictures = torch.zeros(300, 2, 9, 9)
        pictures[:, :, 4, 4] = 1
        shifted = shift(pictures, self.generator(), furthest=2)
        assert torch.equal(shifted[:, 0], shifted[:, 1])
        shifts = shifted[:, 0].nonzero()[:, 1:] - 4
        assert len(shifts) == 300
        assert {tuple(each) for each in shifts.tolist()} == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}

    def test_erasing_blanks_one_square_of_the_chosen_images_only(self) -> None:
        erased = erase(torch.ones(200, 1, 28, 28), self.generator(), probability=0.5, side=8)
        assert set((erased == 0).sum((1, 2, 3)).tolist()) == {0, 64}

    def test_a_square_larger_than_the_images_is_refused(self) -> None:
        with pytest.raises(DataError, match="a square of 8 pixels cannot be erased from images of 7x9"):
            erase(torch.ones(2, 1, 9, 7), self.generator(), probability=0.5, side=8)

    def test_without_anything_to_do_the_images_are_untouched(self) -> None:
        pictures = torch.rand(4, 1, 6, 6)
        (same,) = ImageAugment(flip=False, shift=0)((pictures,), self.generator())
        assert same is pictures

    def test_padding_is_cut_after_the_longest_text_of_the_batch(self) -> None:
        mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]])
        trimmed = trim_padding((torch.arange(8).reshape(2, 4), mask), self.generator())
        assert [each.tolist() for each in trimmed] == [[[0, 1], [4, 5]], [[1, 0], [1, 1]]]

    def test_padding_on_the_left_is_cut_there(self) -> None:
        mask = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]])
        trimmed = trim_padding((torch.arange(8).reshape(2, 4), mask), self.generator())
        assert [each.tolist() for each in trimmed] == [[[2, 3], [6, 7]], [[0, 1], [1, 1]]]

    def test_texts_without_a_token_keep_one_column(self) -> None:
        ids, _ = trim_padding((torch.zeros(2, 4), torch.zeros(2, 4)), self.generator())
        assert ids.shape == (2, 1)


class TestTokens:
    def tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer(WordLevel({"good": 1, "bad": 2, "film": 3, "?": 4}, unk_token="?"))
        tokenizer.pre_tokenizer = Whitespace()
        return tokenizer

    def texts(self, *texts: str) -> TextData:
        return TextData(texts, np.zeros(len(texts), np.int64), ("only",))

    def test_texts_become_ids_under_a_mask_as_long_as_the_longest(self) -> None:
        data = encode(self.texts("good film", "bad"), self.tokenizer(), max_length=8)
        assert [array.tolist() for array in data.inputs] == [[[1, 3], [2, 0]], [[1, 1], [1, 0]]]
        assert {array.dtype for array in data.inputs} == {np.dtype(np.int64)}

    def test_texts_are_cut_and_padded_with_the_tokenizers_own_token(self) -> None:
        tokenizer = self.tokenizer()
        tokenizer.enable_padding(pad_id=9, length=5)
        data = encode(self.texts("good film good", "bad"), tokenizer, max_length=2)
        assert data.inputs[0].tolist() == [[1, 3], [2, 9]]

    def test_texts_are_padded_and_cut_at_the_side_where_the_tokenizer_does_so(self) -> None:
        tokenizer = self.tokenizer()
        tokenizer.enable_padding(direction="left", pad_id=9)
        tokenizer.enable_truncation(7, direction="left")
        data = encode(self.texts("good film bad", "bad"), tokenizer, max_length=2)
        assert [array.tolist() for array in data.inputs] == [[[3, 2], [9, 2]], [[1, 1], [0, 1]]]

    @pytest.mark.parametrize("direction", ["left", "right"])
    def test_the_server_prepares_texts_as_they_were_learnt(self, tmp_path: Path, direction: str) -> None:
        tokenizer = self.tokenizer()
        tokenizer.enable_padding(direction=direction, pad_id=9)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        learnt = encode(self.texts("good film bad", "bad"), tokenizer, max_length=8)
        served = prepared_by_the_server(tmp_path / "tokenizer.json", b"good film bad", b"bad")
        assert [array.tolist() for array in served] == [array.tolist() for array in learnt.inputs]

    def test_a_vocabulary_pads_with_its_padding_token_where_the_tokenizer_says_nothing(self) -> None:
        tokenizer = Tokenizer(WordLevel({"<pad>": 5, "good": 1, "?": 4}, unk_token="?"))
        tokenizer.pre_tokenizer = Whitespace()
        assert encode(self.texts("good good", "good"), tokenizer, max_length=8).inputs[0].tolist() == [[1, 1], [1, 5]]

    def test_the_tokenizer_is_left_as_it_was(self) -> None:
        tokenizer = self.tokenizer()
        tokenizer.enable_padding(pad_id=9, length=5)
        before = tokenizer.to_str()
        encode(self.texts("good"), tokenizer, max_length=2)
        assert tokenizer.to_str() == before

    def test_a_text_without_any_token_is_named(self) -> None:
        with pytest.raises(DataError, match="text 1 has no token in this vocabulary"):
            encode(self.texts("good", " "), self.tokenizer(), max_length=8)

    def test_a_length_without_room_for_a_token_is_refused(self) -> None:
        with pytest.raises(DataError, match="cannot be cut to 0 tokens; expected at least 1"):
            encode(self.texts("good"), self.tokenizer(), max_length=0)


def prepared_by_the_server(tokenizer: Path, *texts: bytes) -> list[np.ndarray]:
    tensors = (TokenTensor("input_ids", "INT64", "ids"), TokenTensor("attention_mask", "INT64", "attention_mask"))
    settings = TextPreprocess(
        input="text", tokenizer=tokenizer, sha256=hashlib.sha256(tokenizer.read_bytes()).hexdigest(), tensors=tensors,
        max_length=8, min_length=1, truncation=True, pad_to_multiple_of=1, max_bytes=100,
    )  # fmt: skip
    items = Tensor("text", BYTES, (len(texts), 1), encode_bytes(texts))
    return [each.numpy() for each in TextPreprocessor(settings).prepare(items, lambda: False, 10_000)]
