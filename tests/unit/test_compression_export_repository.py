"""Versions appear in a repository whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from offramp_compression.errors import ExportError
from offramp_compression.export import repository as writer
from offramp_compression.export.manifest import write_manifest
from offramp_compression.export.repository import check_target, install, staging
from offramp_server.repository.layout import find_model, folder_names, unrelated_folders
from offramp_server.repository.manifest import FileHashes, verify_manifests


def put(repository: Path, content: str, version: int | None = None, settings: str = "", name: str = "net") -> Path:
    with staging(repository) as place:
        (place.version / "model.onnx").write_text(content)
        return install(place, name, version, lambda existing: settings or f"# {content}\n")


def everything(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_new_model_gets_version_one_and_its_settings(repository: Path) -> None:
    folder = put(repository / "made" / "on the way", "one")
    assert everything(folder.parents[1]) == {"net/1/model.onnx": "one", "net/model.toml": "# one\n"}


def test_the_next_version_leaves_the_former_ones_and_all_other_files_alone(repository: Path) -> None:
    put(repository, "one", version=4)
    (repository / "net" / "labels.txt").write_text("cat\n")
    before = (repository / "net" / "4" / "model.onnx").stat()
    assert put(repository, "two") == repository / "net" / "5"
    assert everything(repository) == {
        "net/4/model.onnx": "one",
        "net/5/model.onnx": "two",
        "net/labels.txt": "cat\n",
        "net/model.toml": "# two\n",
    }
    after = (repository / "net" / "4" / "model.onnx").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_settings_are_rendered_with_those_that_are_there(repository: Path) -> None:
    put(repository, "one", settings="versions = 'all'\n")
    seen = []

    def render(existing: Path | None) -> str:
        seen.append(existing and existing.read_text())
        return "# new\n"

    with staging(repository) as place:
        (place.version / "model.onnx").write_text("two")
        install(place, "net", None, render)
    assert seen == ["versions = 'all'\n"]


@pytest.mark.parametrize("there_before", [False, True])
def test_a_failure_leaves_nothing_behind(repository: Path, there_before: bool) -> None:
    if there_before:
        put(repository, "one")
    before = everything(repository)

    def render(existing: Path | None) -> str:
        raise RuntimeError("disk full")

    def write() -> None:
        with staging(repository) as place:
            (place.version / "model.onnx").write_text("half of it")
            install(place, "net", None, render)

    with pytest.raises(RuntimeError):
        write()
    assert everything(repository) == before
    assert not [entry for entry in repository.iterdir() if entry.name.startswith(".")]


KILLED = """
import os, signal, sys
from pathlib import Path
from offramp_compression.export import repository as writer
moment, repository = sys.argv[1], Path(sys.argv[2])
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(writer, {"writing": "check_target", "renaming": "_sync_folder"}[moment], die)
with writer.staging(repository) as place:
    (place.version / "model.onnx").write_text("half of it")
    writer.install(place, "net", None, lambda existing: "# new")
"""


@pytest.mark.parametrize("moment", ["writing", "renaming"])
@pytest.mark.parametrize("there_before", [False, True])
def test_a_program_that_is_killed_leaves_nothing_that_a_server_sees(
    repository: Path, moment: str, there_before: bool
) -> None:
    if there_before:
        put(repository, "one")
    visible = everything(repository)
    done = subprocess.run([sys.executable, "-c", KILLED, moment, str(repository)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [entry for entry in repository.iterdir() if entry.name.startswith(".building-")]
    assert folder_names(repository) == (["net"] if there_before else [])
    assert unrelated_folders(repository) == []
    assert {name: text for name, text in everything(repository).items() if not name.startswith(".")} == visible
    put(repository, "again")
    assert list(find_model(repository, "net").versions) == ([1, 2] if there_before else [1])


def test_a_new_version_appears_with_its_settings_in_one_step(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(repository, "one")
    seen = []
    exchange = writer._exchange

    def spy(made: Path, final: Path) -> None:
        seen.append((everything(final), everything(made)))
        exchange(made, final)

    monkeypatch.setattr(writer, "_exchange", spy)
    put(repository, "two")
    old = {"1/model.onnx": "one", "model.toml": "# one\n"}
    new = {"1/model.onnx": "one", "2/model.onnx": "two", "model.toml": "# two\n"}
    assert seen == [(old, new)]
    assert everything(repository / "net") == new


def test_a_file_system_that_cannot_exchange_names_gets_whole_versions_as_well(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(made: Path, final: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(writer, "_exchange", unsupported)
    put(repository, "one")
    put(repository, "two")
    assert everything(repository) == {
        "net/1/model.onnx": "one",
        "net/2/model.onnx": "two",
        "net/model.toml": "# two\n",
    }


def test_programs_that_write_at_once_each_get_a_version_of_their_own(repository: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda number: put(repository, str(number)), range(8)))
    assert sorted(int(folder.name) for folder in folders) == list(range(1, 9))
    assert {folder.name: (folder / "model.onnx").read_text() for folder in folders} == {
        folder.name: str(number) for number, folder in enumerate(folders)
    }


def test_a_version_that_exists_is_not_overwritten(repository: Path) -> None:
    put(repository, "one", version=3)
    with pytest.raises(ExportError, match=r"net/3 exists; leave the version out to write version 4"):
        check_target(repository, "net", 3)
    with pytest.raises(ExportError, match="exists"):
        put(repository, "other", version=3)
    assert (repository / "net" / "3" / "model.onnx").read_text() == "one"


def test_a_version_may_be_chosen_and_is_a_positive_number(repository: Path) -> None:
    put(repository, "nine", version=9)
    assert put(repository, "two", version=2).name == "2"
    with pytest.raises(ExportError, match="version 0: expected 1, 2, 3"):
        check_target(repository, "net", 0)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "ä", "x" * 129])
def test_a_name_that_the_server_would_refuse_is_refused(repository: Path, name: str) -> None:
    with pytest.raises(ExportError, match="cannot be the name of a model"):
        check_target(repository, name, None)


def test_a_route_an_unrelated_folder_and_a_file_are_not_overwritten(repository: Path) -> None:
    (repository / "route").mkdir()
    (repository / "route" / "route.toml").write_text("kind = 'single'")
    (repository / "photos").mkdir()
    (repository / "photos" / "cat.png").write_text("")
    (repository / "notes").write_text("")
    for name, words in (("route", "is a route"), ("photos", "is not a model"), ("notes", "is a file")):
        with pytest.raises(ExportError, match=words):
            put(repository, "one", name=name)


def test_a_repository_that_cannot_be_written_to_is_named(repository: Path) -> None:
    (repository / "file").write_text("")
    with pytest.raises(ExportError, match=r"file cannot be written to: "), staging(repository / "file"):
        pass


def test_the_manifest_of_a_version_is_one_that_the_server_accepts(repository: Path) -> None:
    with staging(repository) as place:
        (place.version / "model.onnx").write_text("one")
        write_manifest(place.version)
        folder = install(place, "net", None, lambda existing: "")
    assert "model.onnx" in (folder / "manifest.sha256").read_text()
    verify_manifests(find_model(repository, "net"), folder, FileHashes())


def test_a_manifest_of_the_whole_model_follows_a_new_version(repository: Path) -> None:
    put(repository, "one")
    write_manifest(repository / "net")
    folder = put(repository, "two")
    verify_manifests(find_model(repository, "net"), folder, FileHashes())
    assert "1/model.onnx" in (repository / "net" / "manifest.sha256").read_text()
