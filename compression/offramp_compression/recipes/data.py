"""A recipe's examples: found or fetched once, split once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from offramp_compression.data.dataset import Dataset, aligned
from offramp_compression.data.sources import open_encoded
from offramp_compression.errors import DataError
from offramp_compression.recipes.schema import DataTable


class RecipeData:
    """Reads nothing before it is asked. ``given`` stands in for the recipe's own path."""

    def __init__(self, table: DataTable, base: Path, seed: int, given: Path | None = None) -> None:
        self._table = table
        self._base = base
        self._seed = seed
        self._given = given

    @cached_property
    def path(self) -> Path:
        """Raises DataError if the recipe names no data, or if what is to fetch them fails."""
        if self._given is not None:
            return self._given
        if self._table.path:
            return self._base / self._table.path
        if self._table.fetch:
            return _fetched(self._base / self._table.fetch)
        raise DataError("the recipe names no data; give [data] a path or a program to fetch them, or pass --data")

    @cached_property
    def train(self) -> Dataset:
        """What steps learn from."""
        return self._split[0]

    @cached_property
    def validation(self) -> Dataset:
        """What steps choose by: epochs, ratios, layers."""
        return self._split[1]

    @cached_property
    def test(self) -> Dataset:
        """What models are judged by; no step sees it. Raises DataError if it has a class that training has not."""
        part = self._table.test
        return self._limited(aligned(self._part(part), self.train.class_names, f"{self.path} ({part})"))

    @cached_property
    def calibration(self) -> Dataset:
        """Some of the training examples, in an order that has nothing to do with the file's."""
        order = np.random.default_rng(self._seed).permutation(len(self.train))
        return self.train.take(order[: self._table.calibration])

    @cached_property
    def digest(self) -> str:
        """Of the training and the validation examples."""
        return self.train.digest() + self.validation.digest()

    @property
    def max_length(self) -> int:
        """The tokens of a text that count."""
        return self._table.max_length

    @cached_property
    def tokenizer(self) -> Path | None:
        if self._table.tokenizer == "minilm":
            return _minilm_tokenizer()
        return self._base / self._table.tokenizer if self._table.tokenizer else None

    @cached_property
    def vocabulary(self) -> int | None:
        """How many tokens there are; None for data that are no text."""
        if self.tokenizer is None:
            return None
        from tokenizers import Tokenizer

        return int(Tokenizer.from_file(str(self.tokenizer)).get_vocab_size())

    @cached_property
    def _split(self) -> tuple[Dataset, Dataset]:
        # Split before it is limited, so that a small trial validates on examples of the real validation set.
        rest, held_out = self._part(self._table.train).split(self._table.validation, self._seed)
        return self._limited(rest), self._limited(held_out)

    def _part(self, part: str) -> Dataset:
        table = self._table
        data = open_encoded(
            self.path, part, table.format or None,
            tokenizer=self.tokenizer, max_length=table.max_length, image_size=table.image_size or None,
        )  # fmt: skip
        return _named(data, table.class_names) if table.class_names else data

    def _limited(self, data: Dataset) -> Dataset:
        if not 0 < self._table.limit < len(data):
            return data
        return data.split(self._table.limit / len(data), self._seed)[1]


def _named(data: Dataset, names: tuple[str, ...]) -> Dataset:
    if len(names) != len(data.class_names):
        raise DataError(
            f"[data] class_names has {len(names)} names and the data have {len(data.class_names)} classes; "
            f"give one for each, in the order of the labels"
        )
    return replace(data, class_names=names)


def _fetched(program: Path) -> Path:
    done = subprocess.run([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, check=False)
    said = done.stdout.strip().splitlines()
    if done.returncode != 0 or not said:
        raise DataError(f"{program} did not say where the data are; what it wrote is above")
    return Path(said[-1])


def _minilm_tokenizer() -> Path:
    """The pretrained encoder's, as a file, beside the package that it comes from."""
    from offramp_compression.packages import cache_folder
    from offramp_compression.pretrained import minilm_tokenizer_file

    path = cache_folder() / "minilm-tokenizer.json"
    if not path.is_file():
        content = minilm_tokenizer_file()
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(content)
        os.replace(partial, path)
    return path
