"""What a process that was killed left behind goes with the next one; what somebody still uses stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from offramp_server.tuning.cache import EngineCache
from offramp_server.tuning.leftovers import temporary_folder
from tuning_fakes import decision, key_of, pt2_spec

KEY, OTHER = key_of(pt2_spec()), key_of(pt2_spec(digest="e" * 64))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def in_another_process(program: str) -> subprocess.Popen[str]:
    """Killed without warning once what it printed was read."""
    arguments = [sys.executable, "-c", f"{program}\nimport time; print('there', flush=True); time.sleep(600)"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_temporary_folder_of_a_tuning_that_was_killed_goes_with_the_next_tuning(temporary: Path) -> None:
    other = in_another_process(
        "from offramp_server.tuning.leftovers import temporary_folder\n"
        "open_folder = temporary_folder('offramp-tuning-')\n"
        "(open_folder.__enter__() / 'answers').write_text('some')"
    )
    (temporary / "offramp-tuning-of-nobody").symlink_to(temporary.parent)
    [theirs] = (each for each in temporary.iterdir() if not each.is_symlink())
    with temporary_folder("offramp-tuning-") as ours:
        # It is used.
        assert (theirs / "answers").exists()
        assert ours.is_dir()
    killed(other)
    with temporary_folder("offramp-tuning-") as ours:
        assert not theirs.exists()
        assert ours.is_dir()
    assert not ours.exists()
    assert temporary.parent.is_dir()


def test_what_a_killed_tuning_was_building_goes_with_the_next_that_looks_anything_up(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = EngineCache(cache)
    chosen = first.new_artifacts(KEY, "openvino")
    first.remember(KEY, decision(chosen))
    first.close()
    other = in_another_process(
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from tuning_fakes import key_of, pt2_spec\n"
        "from offramp_server.tuning.cache import EngineCache\n"
        f"cache = EngineCache(Path({os.fspath(cache)!r}))\n"
        "for digest in ('d', 'e'):\n"
        "    (cache.new_artifacts(key_of(pt2_spec(digest=digest * 64)), 'aot-inductor') / 'x').write_text('half')"
    )
    builds = list(cache.glob("*/aot-inductor-*"))
    assert {build.parent.name for build in builds} == {KEY.digest, OTHER.digest}
    assert EngineCache(cache).find(KEY) is not None
    assert all(build.exists() for build in builds)
    killed(other)
    found = EngineCache(cache).find(KEY)
    assert not any(build.exists() for build in builds)
    assert found is not None
    assert found.choice.artifacts == chosen
    assert chosen.is_dir()


def test_a_folder_that_somebody_else_deletes_meanwhile_keeps_no_other_from_going(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        (temporary / f"offramp-tuning-{name}").mkdir()
    lstat, seen = Path.lstat, list[Path]()

    def vanishing(path: Path) -> os.stat_result:
        seen.append(path)
        if len(seen) == 1:
            path.rmdir()
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", vanishing)
    with temporary_folder("offramp-tuning-") as ours:
        assert list(temporary.iterdir()) == [ours]
