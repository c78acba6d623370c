"""Fashion-MNIST: find it or fetch it, check it, say where it is.

The data come from Debian's package `dataset-fashion-mnist` (MIT licence), which `apt-get download` and `dpkg-deb`
unpack without installing anything and without root.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from offramp_compression.data.dataset import Dataset
from offramp_compression.data.sources import open_dataset
from offramp_compression.errors import DataError

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PACKAGE = "dataset-fashion-mnist"
PACKAGE_SHA256 = "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"
FOLDER_IN_PACKAGE = Path("usr/share/datasets/fashion-mnist")
INSTALLED = Path("/") / FOLDER_IN_PACKAGE
FILES_SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
SAMPLE = Path(__file__).with_name("sample")
# All images of the real data that are committed, so that the demo needs no download: how many of each class.
SAMPLED = {"train": 52, "test": 50}


def write_sample(source: Path, sample: Path = SAMPLE) -> None:
    """Draw `train.npz` and `test.npz` in ``sample`` from the IDX files in ``source``: always the same images.

    Raises DataError if those files are missing or damaged.
    """
    sample.mkdir(exist_ok=True)
    for part, per_class in SAMPLED.items():
        _write(sample / f"{part}.npz", draw_sample(open_dataset(source, part, "idx"), per_class))


def write_halves(source: Path, folder: Path) -> None:
    """Part the test images into `calibration.npz` and `unseen.npz`: thresholds are chosen on the one, and what they
    come to is measured on the other, which has the images of the committed sample. Always the same images.

    Raises DataError if the IDX files in ``source`` are missing or damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    test = open_dataset(source, "test", "idx")
    shown = draw(test.labels, SAMPLED["test"])
    rest = np.setdiff1d(np.arange(len(test)), shown)
    calibration = rest[draw(test.labels[rest], len(test) // (2 * len(CLASS_NAMES)), seed=1)]
    unseen = np.setdiff1d(np.arange(len(test)), calibration)
    for name, chosen in (("calibration", calibration), ("unseen", unseen)):
        _write(folder / f"{name}.npz", test.take(chosen))


def draw_sample(data: Dataset, per_class: int, seed: int = 0) -> Dataset:
    """``per_class`` examples of every class of ``data``, drawn without replacement and then shuffled."""
    return data.take(draw(data.labels, per_class, seed))


def draw(labels: NDArray[np.int64], per_class: int, seed: int = 0) -> NDArray[np.int64]:
    """Positions of ``per_class`` examples of every class."""
    random = np.random.default_rng(seed)
    classes = range(len(CLASS_NAMES))
    drawn = [random.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in classes]
    return random.permutation(np.concatenate(drawn))


def _write(path: Path, data: Dataset) -> None:
    np.savez_compressed(
        path, x=data.inputs[0], labels=data.labels.astype(np.uint8), class_names=np.asarray(CLASS_NAMES)
    )


def locate(given: Path | None = None) -> Path:
    """The folder with the four IDX files: the ``given`` one, Debian's, the cache, or a fresh download to the cache.

    Raises DataError if ``given`` does not hold them, or if they are nowhere and cannot be fetched.
    """
    if given is not None:
        _require_files(given)
        return given
    for folder in (INSTALLED, cache_folder() / FOLDER_IN_PACKAGE):
        if _holds_files(folder):
            verify(folder)
            return folder
    return fetch(cache_folder())


def cache_folder() -> Path:
    """Where downloads are kept: `offramp/fashion-mnist` in the XDG cache folder, outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "offramp" / "fashion-mnist"


def fetch(cache: Path) -> Path:
    """Download Debian's package, check its digest and unpack it under ``cache``; returns the data folder.

    Raises DataError with the ways out if the tools or the package are not there.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(f"Fashion-MNIST is not on this machine and there is no {tool} to fetch it. {_WAYS_OUT}")
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".fetch-") as scratch:
        package = _download(Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        _run("dpkg-deb", "-x", str(package), str(unpacked), cwd=Path(scratch))
        verify(unpacked / FOLDER_IN_PACKAGE)
        # A rename cannot replace a folder that holds files, and what is there is not whole (see locate).
        shutil.rmtree(cache, ignore_errors=True)
        unpacked.rename(cache)
    return cache / FOLDER_IN_PACKAGE


def verify(folder: Path) -> None:
    """Raise DataError unless the four files have the digests of the published data set."""
    _require_files(folder)
    for name, expected in FILES_SHA256.items():
        _require_digest(folder / name, expected)


def _download(folder: Path) -> Path:
    _run("apt-get", "download", PACKAGE, cwd=folder)
    found = list(folder.glob("*.deb"))
    if len(found) != 1:
        raise DataError(f"`apt-get download {PACKAGE}` left {len(found)} packages instead of one. {_WAYS_OUT}")
    _require_digest(found[0], PACKAGE_SHA256)
    return found[0]


def _run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise DataError(f"`{' '.join(command)}` failed and said: {said[0]} {_WAYS_OUT}")


def _holds_files(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES_SHA256)


def _require_files(folder: Path) -> None:
    missing = [name for name in FILES_SHA256 if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} does not hold Fashion-MNIST: {', '.join(missing)} missing.")


def _require_digest(path: Path, expected: str) -> None:
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise DataError(f"{path} has sha256 {actual} instead of {expected}; delete it and fetch it again.")


_WAYS_OUT = (
    f"Either install Debian's package ('apt-get install {PACKAGE}'), run 'apt-get update' and try again, "
    f"or put {', '.join(FILES_SHA256)} into a folder and pass it with --data."
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Find or fetch Fashion-MNIST and say where it is.")
    parser.add_argument("--data", type=Path, help="a folder with the four IDX .gz files; found or fetched otherwise")
    parser.add_argument("--halves", type=Path, metavar="DIR", help="write calibration.npz and unseen.npz there")
    parser.add_argument("--write-sample", action="store_true", help=f"draw {SAMPLE.name}/ again, as it was drawn")
    options = parser.parse_args()
    try:
        folder = locate(options.data)
        if options.write_sample:
            write_sample(folder)
        if options.halves:
            write_halves(folder, options.halves)
    except DataError as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
