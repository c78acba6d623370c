"""Data sets on disk: every format as it is published, and every way in which one can be broken."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import cifar10_files
import numpy as np
import pytest
from data_sets import images, write_idx, write_mnist, write_pictures, write_table
from offramp_compression.data.sources import open_dataset, open_encoded, open_texts
from offramp_compression.errors import DataError
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace


class TestDetection:
    def test_a_path_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere: there is no such file or folder"):
            open_dataset(tmp_path / "nowhere")

    def test_a_folder_without_data_is_answered_with_what_could_be_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "notes.md").write_text("nothing")
        with pytest.raises(
            DataError, match=r"idx: train-images-.*; cifar10: .*; csv: .*; image-folder: \[PART/\]CLASS"
        ):
            open_dataset(tmp_path)

    def test_an_unknown_format_is_answered_with_the_nearest(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match='there is no data format "image_folder"; did you mean "image-folder"'):
            open_dataset(tmp_path, format="image_folder")

    def test_the_format_that_is_asked_for_wins(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        write_table(tmp_path / "train.csv", [("text", "label"), ("good", "pos")])
        assert open_texts(tmp_path, format="csv").texts == ("good",)
        assert len(open_dataset(tmp_path)) == 6


class TestIdx:
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    @pytest.mark.parametrize(("part", "count"), [("train", 6), ("test", 3), ("t10k", 3)])
    def test_files_are_read_as_they_were_written(self, tmp_path: Path, suffix: str, part: str, count: int) -> None:
        write_mnist(tmp_path, {"train": images(6), "t10k": images(3, seed=8)}, suffix)
        data = open_dataset(tmp_path, part)
        np.testing.assert_array_equal(data.inputs[0], images(count, seed=7 if part == "train" else 8).inputs[0])
        assert data.labels.tolist() == [number % 3 for number in range(count)]

    def test_classes_are_numbered_even_where_a_part_lacks_the_last(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6), "t10k": images(2)})
        assert open_dataset(tmp_path, "test").class_names == ("0", "1", "2")

    def test_a_file_of_labels_names_them(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        (tmp_path / "labels.txt").write_text("Coat\nBag\nAnkle boot\n")
        assert open_dataset(tmp_path).class_names == ("Coat", "Bag", "Ankle boot")

    def test_a_label_beyond_the_names_is_refused(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        (tmp_path / "labels.txt").write_text("Coat\nBag\n")
        with pytest.raises(DataError, match=r"\(train\): example 2 has label 2 .*expected 0 to 1"):
            open_dataset(tmp_path)

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"plain bytes", "should be a gzipped IDX file"),
            (gzip.compress(b"\0\0\x08\x01\0\0\0\x04abcd", mtime=0)[:-6], "should be a gzipped IDX file"),
            (gzip.compress(b"abcd" * 9, mtime=0)[:12] + b"\xff" * 20, "should be a gzipped IDX file"),
            (gzip.compress(b"\0\0\x0d\x01\0\0\0\0", mtime=0), "not an IDX file of unsigned bytes"),
            (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abcd", mtime=0), r"says it holds \(5,\) bytes but holds 4"),
            (gzip.compress(b"\0\0\x08\x02\0\0\0\x05", mtime=0), "header ends early"),
            (gzip.compress(b"\0\0\x08\x04" + b"\0\1\0\0" * 4, mtime=0), "says it holds .* bytes but holds 0"),
        ],
    )
    def test_a_damaged_file_is_named_with_what_is_wrong(self, tmp_path: Path, content: bytes, complaint: str) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(DataError, match=complaint) as raised:
            open_dataset(tmp_path)
        assert "train-images-idx3-ubyte.gz" in str(raised.value)

    def test_a_missing_partner_is_named(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\[\.gz\] is missing"):
            open_dataset(tmp_path)

    def test_images_without_as_many_labels_are_refused(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(4, np.uint8))
        with pytest.raises(
            DataError, match=r"shape \[6, 8, 8\] and labels of shape \[4\]; expected \[N, height, width\]"
        ):
            open_dataset(tmp_path)

    def test_an_unknown_part_is_answered_with_those_there_are(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        with pytest.raises(DataError, match='has no part "validation"; its parts: "test", "train"'):
            open_dataset(tmp_path, "validation")


class TestCifar10:
    def batches(self) -> dict[str, Any]:
        return {name: cifar10_files.batch(10, seed) for seed, name in enumerate((*cifar10_files.TRAIN, "test_batch"))}

    @pytest.mark.parametrize("version", ["binary", "python"])
    def test_both_published_versions_are_read(self, tmp_path: Path, version: str) -> None:
        batches = self.batches()
        write = cifar10_files.write_binary if version == "binary" else cifar10_files.write_python
        write(tmp_path / ("cifar-10-batches-bin" if version == "binary" else "cifar-10-batches-py"), batches)
        train, test = open_dataset(tmp_path), open_dataset(tmp_path, "test")
        assert (len(train), len(test), train.inputs[0].shape[1:]) == (50, 10, (3, 32, 32))
        expected = np.concatenate([batches[name][0] for name in cifar10_files.TRAIN])
        np.testing.assert_array_equal(train.inputs[0].reshape(50, -1), expected)
        assert test.labels.tolist() == list(range(10))
        assert test.class_names[9] == "truck"

    def test_the_folder_of_the_files_itself_is_good_too(self, tmp_path: Path) -> None:
        cifar10_files.write_binary(tmp_path / "mine", self.batches())
        assert len(open_dataset(tmp_path / "mine", "test")) == 10

    def test_a_missing_batch_is_named(self, tmp_path: Path) -> None:
        cifar10_files.write_binary(tmp_path / "set", self.batches())
        (tmp_path / "set" / "data_batch_4.bin").unlink()
        with pytest.raises(DataError, match=r"data_batch_4\[\.bin\] is missing"):
            open_dataset(tmp_path / "set")

    def test_a_binary_file_that_ends_early_is_refused(self, tmp_path: Path) -> None:
        cifar10_files.write_binary(tmp_path / "set", self.batches())
        with (tmp_path / "set" / "test_batch.bin").open("r+b") as file:
            file.truncate(3000)
        with pytest.raises(DataError, match="has 3000 bytes; expected a multiple of 3073"):
            open_dataset(tmp_path / "set", "test")

    def test_a_label_out_of_range_is_refused(self, tmp_path: Path) -> None:
        pixels, labels = cifar10_files.batch(10, 0)
        cifar10_files.write_binary(tmp_path / "set", {"test_batch": (pixels, [*labels[:9], 10])})
        with pytest.raises(DataError, match="example 9 has label 10"):
            open_dataset(tmp_path / "set", "test")

    def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "owned"),)

        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "test_batch").write_bytes(pickle.dumps({"data": Hostile()}, protocol=2))
        with pytest.raises(
            DataError, match=r"wants to call (posix|nt)\.mkdir, which is not done here; .*binary version"
        ):
            open_dataset(tmp_path / "set", "test")
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"not a pickle", "not a whole pickle"),
            (
                cifar10_files.pickled({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})[:500],
                "not a whole pickle",
            ),
            (cifar10_files.pickled([1, 2]), 'expected a dictionary with "data" and "labels"'),
            (cifar10_files.pickled({"data": np.zeros((2, 3072), np.uint8)}), 'expected a dictionary with "data"'),
            (cifar10_files.pickled({"data": np.zeros((2, 3072), np.uint8), "labels": "ab"}), "a list of integers"),
            (cifar10_files.pickled({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}), r"uint8 \[2, 3072\]"),
            (
                cifar10_files.pickled({"data": np.zeros((2, 3072), np.int16), "labels": [0, 1]}),
                "arrays of unsigned bytes",
            ),
            (cifar10_files.pickled({"data": 3, "labels": [0, 1]}), r'"data": expected uint8 \[2, 3072\]'),
        ],
    )
    def test_a_pickle_of_something_else_is_refused(self, tmp_path: Path, content: bytes, complaint: str) -> None:
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(DataError, match=complaint):
            open_dataset(tmp_path, "test")


class TestNpz:
    def test_arrays_become_inputs_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        arrays: dict[str, Any] = {f"x{number}": np.full((2, 1), number, np.int32) for number in (10, 2, 0)}
        np.savez(tmp_path / "train.npz", labels=np.array([0, 1]), class_names=np.array(["no", "yes"]), **arrays)
        data = open_dataset(tmp_path)
        assert [int(array[0, 0]) for array in data.inputs] == [0, 2, 10]
        assert (data.class_names, data.inputs[0].dtype.str) == (("no", "yes"), "<i8")

    def test_grey_pictures_get_their_channel_and_doubles_become_floats(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x0=np.zeros((2, 4, 5), np.uint8), x1=np.zeros((2, 3)), labels=np.array([0, 1]))
        first, second = open_dataset(tmp_path / "a.npz").inputs
        assert (first.shape, second.dtype.str) == ((2, 1, 4, 5), "<f4")

    def test_a_single_file_is_taken_whole_whatever_the_part(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=np.zeros((2, 3)), labels=np.array([0, 1]))
        assert len(open_dataset(tmp_path / "a.npz", "test")) == 2

    @pytest.mark.parametrize("names", [{}, {"class_names": np.array(["cat", "dog", "owl"])}])
    def test_a_test_part_that_lacks_a_class_has_the_classes_of_the_training_part(
        self, tmp_path: Path, names: dict[str, Any]
    ) -> None:
        np.savez(tmp_path / "train.npz", x=np.zeros((3, 2)), labels=np.array([0, 1, 2]), **names)
        np.savez(tmp_path / "test.npz", x=np.zeros((2, 2)), labels=np.array([1, 0]))
        assert open_dataset(tmp_path, "test").class_names == open_dataset(tmp_path).class_names
        assert len(open_dataset(tmp_path).class_names) == 3

    def test_a_test_part_of_a_class_that_was_not_learnt_is_refused_where_classes_have_names(
        self, tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "train.npz", x=np.zeros((2, 2)), labels=[0, 1], class_names=np.array(["cat", "dog"]))
        np.savez(tmp_path / "test.npz", x=np.zeros((2, 2)), labels=[1, 2])
        with pytest.raises(DataError, match="has label 2"):
            open_dataset(tmp_path, "test")

    def test_a_missing_part_is_answered_with_those_there_are(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "train.npz", x=np.zeros((2, 3)), labels=np.array([0, 1]))
        with pytest.raises(DataError, match='has no part "test"; its parts: "train"'):
            open_dataset(tmp_path, "test")

    @pytest.mark.parametrize(
        ("arrays", "complaint"),
        [
            ({"x": np.zeros((2, 3))}, r"expected arrays x \(or x0, x1, ...\) and labels, got x"),
            ({"x": np.zeros((2, 3)), "labels": np.zeros(2)}, r'"labels" is float64 \[2\]; expected integers'),
            ({"x": np.float64(1), "labels": np.array([0])}, '"x" is a single value'),
            ({"x": np.array(["a", "b"]), "labels": np.array([0, 1])}, '"x" holds <U1; expected uint8 pixels'),
            ({"x": np.array([None, 1]), "labels": np.array([0, 1])}, "not a whole .npz of plain arrays"),
            ({"x": np.zeros((2, 8, 9, 3), np.uint8), "labels": np.array([0, 1])}, "has its channels last"),
            ({"x": np.array([[1e300], [1.0]]), "labels": np.array([0, 1])}, "1 of 2 examples hold NaN or infinity"),
            ({"x": np.zeros((2, 3)), "labels": np.array([0, 10**12])}, "has label 1000000000000"),
            ({"x": np.zeros((2, 3)), "labels": np.array([0, -1])}, "has label -1"),
            (
                {"x": np.zeros((2, 3)), "labels": np.array([0, 1]), "class_names": np.array(["a", "a"])},
                '"class_names": expected a list of strings, every one of them once',
            ),
        ],
    )
    def test_arrays_that_are_no_data_set_are_refused(
        self, tmp_path: Path, arrays: dict[str, Any], complaint: str
    ) -> None:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=complaint):
            open_dataset(tmp_path / "a.npz")

    @pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half"])
    def test_a_file_that_is_no_npz_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz: not a whole \.npz"):
            open_dataset(tmp_path / "a.npz")


def grey(value: int, height: int = 4, width: int = 6) -> Any:
    return np.full((height, width), value, np.uint8)


def coloured(value: int, height: int = 4, width: int = 6) -> Any:
    return np.full((height, width, 3), value, np.uint8)


class TestImageFolder:
    def test_folders_name_the_classes(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, {"dog": [grey(1), grey(2)], "cat": [grey(3)]})
        data = open_dataset(tmp_path)
        assert data.class_names == ("cat", "dog")
        assert data.labels.tolist() == [0, 1, 1]
        assert data.inputs[0].shape == (3, 1, 4, 6)
        assert data.inputs[0][:, 0, 0, 0].tolist() == [3, 1, 2]

    def test_one_coloured_picture_makes_all_of_them_have_three_channels(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, {"cat": [grey(3)], "dog": [coloured(5)]})
        assert open_dataset(tmp_path).inputs[0][:, :, 0, 0].tolist() == [[3, 3, 3], [5, 5, 5]]

    def test_a_class_has_the_same_number_in_every_part(self, tmp_path: Path) -> None:
        write_pictures(tmp_path / "train", {"ape": [grey(0)], "cat": [grey(0)], "dog": [grey(0)]})
        write_pictures(tmp_path / "test", {"dog": [grey(0)]})
        test = open_dataset(tmp_path, "test")
        assert (test.labels.tolist(), test.class_names) == ([2], ("ape", "cat", "dog"))

    def test_a_class_of_the_test_part_that_training_lacks_is_named(self, tmp_path: Path) -> None:
        write_pictures(tmp_path / "train", {"cat": [grey(0)]})
        write_pictures(tmp_path / "test", {"dog": [grey(0)]})
        with pytest.raises(DataError, match='no example of class "dog"'):
            open_dataset(tmp_path)

    def test_a_folder_without_pictures_is_an_empty_class(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, {"cat": [grey(0)], "dog": []})
        with pytest.raises(DataError, match='no example of class "dog"'):
            open_dataset(tmp_path)

    def test_the_order_of_the_classes_can_be_given(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, {"cat": [grey(0)], "dog": [grey(0)]})
        (tmp_path / "labels.txt").write_text("dog\ncat\n")
        assert open_dataset(tmp_path).labels.tolist() == [1, 0]

    @pytest.mark.parametrize(
        ("labels", "complaint"),
        [
            ("dog\n", "cat: labels.txt does not name this class"),
            ("cat\ndog\ncat\n", 'names class "cat" more than once'),
            ("cat\n\ndog\n", "expected the name of one class on each line, got an empty one"),
            ("", "got an empty one"),
        ],
    )
    def test_labels_that_do_not_fit_are_refused(self, tmp_path: Path, labels: str, complaint: str) -> None:
        write_pictures(tmp_path, {"cat": [grey(0)], "dog": [grey(0)]})
        (tmp_path / "labels.txt").write_text(labels)
        with pytest.raises(DataError, match=complaint):
            open_dataset(tmp_path)

    def test_pictures_of_different_sizes_are_named_unless_a_size_is_given(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, {"cat": [grey(9, 8, 16)], "dog": [grey(7, 16, 8)]})
        with pytest.raises(DataError, match=r"0\.png is 8x16 pixels and .*0\.png is 16x8; .*or an image size"):
            open_dataset(tmp_path)
        scaled = open_dataset(tmp_path, image_size=4).inputs[0]
        assert (scaled.shape, scaled[:, 0, 0, 0].tolist()) == ((2, 1, 4, 4), [9, 7])

    def test_scaling_keeps_the_middle(self, tmp_path: Path) -> None:
        picture = np.zeros((8, 24), np.uint8)
        picture[:, 8:16] = 200
        write_pictures(tmp_path, {"cat": [picture]})
        assert (open_dataset(tmp_path, image_size=8).inputs[0] == 200).all()

    def test_a_picture_that_was_taken_sideways_is_turned(self, tmp_path: Path) -> None:
        (tmp_path / "cat").mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(grey(0, 4, 6)).save(tmp_path / "cat" / "a.jpg", exif=exif)
        assert open_dataset(tmp_path).inputs[0].shape == (1, 1, 6, 4)

    def test_a_file_that_is_no_picture_is_named(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, {"cat": [grey(0)]})
        (tmp_path / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff half a picture")
        with pytest.raises(DataError, match=r"broken\.jpg: cannot be read as a picture"):
            open_dataset(tmp_path)

    def test_a_picture_that_ends_early_is_named(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
        write_pictures(tmp_path, {"cat": [noise]})
        file = tmp_path / "cat" / "0.png"
        file.write_bytes(file.read_bytes()[:300])
        with pytest.raises(DataError, match=r"0\.png: cannot be read as a picture"):
            open_dataset(tmp_path)

    def test_pictures_with_sixteen_bits_are_refused(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, {"cat": [np.zeros((4, 4), np.uint16)]})
        with pytest.raises(DataError, match=r"more than 8 bits a channel \(I;16\); expected 8"):
            open_dataset(tmp_path)

    def test_a_size_that_is_none_is_refused(self, tmp_path: Path) -> None:
        write_pictures(tmp_path, {"cat": [grey(0)]})
        with pytest.raises(DataError, match="cannot be scaled to 0 pixels"):
            open_dataset(tmp_path, image_size=0)

    def test_only_pictures_can_be_scaled(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        with pytest.raises(DataError, match="leave the image size out"):
            open_dataset(tmp_path, image_size=8)


ROWS = [("label", "text", "id"), ("pos", 'a "good" film, really', "1"), ("neg", "bad", "2")]


class TestTables:
    @pytest.mark.parametrize("suffix", [".csv", ".tsv"])
    def test_texts_and_labels_are_found_by_their_columns(self, tmp_path: Path, suffix: str) -> None:
        texts = open_texts(write_table(tmp_path / f"reviews{suffix}", ROWS))
        assert texts.texts == ('a "good" film, really', "bad")
        assert (texts.class_names, texts.labels.tolist()) == (("neg", "pos"), [1, 0])

    def test_a_byte_order_mark_and_capitals_in_the_header_do_no_harm(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("\ufeffText,Label\r\ngood,pos\r\n\r\n", encoding="utf-8")
        assert open_texts(tmp_path / "a.csv").texts == ("good",)

    def test_a_class_has_the_same_number_in_every_part(self, tmp_path: Path) -> None:
        write_table(tmp_path / "train.tsv", [("text", "label"), ("a", "x"), ("b", "y"), ("c", "z")])
        write_table(tmp_path / "test.tsv", [("text", "label"), ("c", "z")])
        assert open_texts(tmp_path, "test").labels.tolist() == [2]

    def test_numbers_are_ordered_as_numbers(self, tmp_path: Path) -> None:
        rows = [("text", "label"), *(("a", str(number)) for number in (10, 9, 2))]
        assert open_texts(write_table(tmp_path / "a.csv", rows)).class_names == ("2", "9", "10")

    def test_a_label_that_labels_txt_lacks_is_named_with_the_nearest(self, tmp_path: Path) -> None:
        write_table(tmp_path / "a.csv", ROWS)
        (tmp_path / "labels.txt").write_text("post\nneg\n")
        with pytest.raises(DataError, match=r'row 1: label "pos" is not in labels.txt; did you mean "post"'):
            open_texts(tmp_path / "a.csv")

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"", 'has no column "text"'),
            (b"text,sentiment\na,b\n", 'has no column "label"; expected a first line that names the columns'),
            (b"text,label\na,b\nc,d,e\n", "line 3: has 3 fields; expected 2"),
            (b"text,label\na,\n", "line 2: expected a text and a label, got an empty one"),
            (b"text,label\n ,b\n", "line 2: expected a text and a label, got an empty one"),
            (b'text,label\n"a,b\n', "line 2: not CSV: unexpected end of data"),
            (b"text,label\n\xff,b\n", "not UTF-8 text: invalid start byte at byte 11"),
            (b"text,label\n", "there is no example in it"),
        ],
    )
    def test_a_file_that_is_no_table_of_texts_is_refused(self, tmp_path: Path, content: bytes, complaint: str) -> None:
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(DataError, match=complaint):
            open_texts(tmp_path / "a.csv")

    def test_pictures_are_no_texts(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        with pytest.raises(DataError, match="holds no text but idx"):
            open_texts(tmp_path)


class TestEncoded:
    def tokenizer(self, folder: Path) -> Path:
        tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "bad": 4}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        return folder / "tokenizer.json"

    def test_texts_come_as_tokens(self, tmp_path: Path) -> None:
        table = write_table(tmp_path / "a.csv", ROWS)
        data = open_encoded(table, tokenizer=self.tokenizer(tmp_path), max_length=3)
        assert data.inputs[0].tolist() == [[0, 0, 0], [4, 0, 0]]

    def test_pictures_come_as_they_are(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        assert open_encoded(tmp_path).digest() == open_dataset(tmp_path).digest()

    def test_texts_need_a_tokenizer(self, tmp_path: Path) -> None:
        table = write_table(tmp_path / "a.csv", ROWS)
        for read in (open_encoded, open_dataset):
            with pytest.raises(DataError, match=r"needs a tokenizer .* give its tokenizer\.json"):
                read(table)

    def test_pictures_need_none(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        with pytest.raises(DataError, match="holds no text; leave the tokenizer out"):
            open_encoded(tmp_path, tokenizer=self.tokenizer(tmp_path))

    def test_a_tokenizer_that_is_none_is_named(self, tmp_path: Path) -> None:
        table = write_table(tmp_path / "a.csv", ROWS)
        (tmp_path / "t.json").write_text("{}")
        with pytest.raises(DataError, match=r"t\.json: not a Hugging Face tokenizer\.json"):
            open_encoded(table, tokenizer=tmp_path / "t.json")
        with pytest.raises(DataError, match=r"no\.json: there is no such file"):
            open_encoded(table, tokenizer=tmp_path / "no.json")
