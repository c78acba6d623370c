"""Decisions outlast the server; what is broken, foreign or not to be trusted does not come back as one."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from offramp_server.errors import ConfigurationError
from offramp_server.machine.identity import DeviceIdentity
from offramp_server.model_spec import EngineSettings, WarmupSettings
from offramp_server.tuning import cache
from offramp_server.tuning.cache import DECISION, EngineCache, default_folder
from offramp_server.tuning.holds import unheld
from offramp_server.tuning.key import library_versions, tuning_key
from tuning_fakes import CPU, VERSIONS, decision, key_of, pt2_spec

KEY = key_of(pt2_spec())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "engines"


def remembered(folder: Path, build: bool = True) -> Path:
    """A folder with one decision, and the file that it is in."""
    cache = EngineCache(folder)
    artifacts = cache.new_artifacts(KEY, "aot-inductor (frozen)") if build else None
    if artifacts is not None:
        (artifacts / "package.so").write_bytes(b"code")
    cache.remember(KEY, decision(artifacts))
    cache.close()
    return folder / KEY.digest / DECISION


def test_a_decision_comes_back_as_it_was_with_what_was_built_for_it(folder: Path) -> None:
    remembered(folder)
    found = EngineCache(folder).find(KEY)
    assert found is not None
    artifacts = found.choice.artifacts
    assert artifacts is not None
    assert (artifacts / "package.so").read_bytes() == b"code"
    assert artifacts.name.startswith("aot-inductor-frozen-")
    assert found == decision(artifacts)


def test_the_folder_is_made_for_its_owner_alone_and_not_before_there_is_something_to_keep(folder: Path) -> None:
    cache = EngineCache(folder)
    assert cache.find(KEY) is None
    assert not folder.exists()
    cache.remember(KEY, decision())
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: json.dumps(json.loads(text) | {"key": {"schema": 0}}),
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "choice"}),
        lambda text: text.replace('"backend"', '"engine"'),
        lambda text: text.replace('"aot-inductor-frozen-', '"../aot-inductor-frozen-'),
        lambda text: text.replace('"aot-inductor-frozen-', '"another-'),
    ],
)
def test_a_decision_that_was_spoilt_is_none_and_the_log_says_so(
    folder: Path, spoil: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    file = remembered(folder)
    file.write_text(spoil(file.read_text()))
    assert EngineCache(folder).find(KEY) is None
    assert "cannot be used, the model is tuned again" in caplog.text


@pytest.mark.parametrize("spoil", [lambda data: data[:-1] + b"?", lambda data: data[:-1], lambda data: data + b"!"])
def test_what_was_built_and_has_changed_since_is_not_loaded(
    folder: Path, spoil: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    file = remembered(folder)
    [artifacts] = (each for each in file.parent.iterdir() if each.is_dir())
    package = artifacts / "package.so"
    package.write_bytes(spoil(package.read_bytes()))
    assert EngineCache(folder).find(KEY) is None
    assert "package.so is not what was built" in caplog.text


def test_what_an_engine_writes_when_it_loads_may_change(folder: Path) -> None:
    cache = EngineCache(folder)
    artifacts = cache.new_artifacts(KEY, "onnxruntime")
    engine = artifacts / "TensorrtExecutionProvider_graph.engine"
    engine.write_bytes(b"first")
    cache.remember(KEY, decision(artifacts))
    engine.write_bytes(b"second")
    (artifacts / "another").write_bytes(b"later")
    assert cache.find(KEY) is not None


def test_a_decision_whose_artifacts_are_gone_is_none(folder: Path) -> None:
    file = remembered(folder)
    [artifacts] = (each for each in file.parent.iterdir() if each.is_dir())
    (artifacts / "package.so").unlink()
    artifacts.rmdir()
    assert EngineCache(folder).find(KEY) is None


def test_what_is_forgotten_is_not_found_again(folder: Path) -> None:
    remembered(folder)
    cache = EngineCache(folder)
    cache.forget(KEY)
    cache.forget(KEY)
    assert cache.find(KEY) is None


def test_what_cannot_be_deleted_is_forgotten_until_something_else_is_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = remembered(folder)

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    cache = EngineCache(folder)
    cache.forget(KEY)
    assert file.exists()
    assert cache.find(KEY) is None
    cache.remember(KEY, decision())
    assert cache.find(KEY) == decision()


@pytest.mark.parametrize("within", ["", "aot-inductor"])
def test_a_decision_or_artifacts_that_others_may_have_changed_are_not_used(
    folder: Path, within: str, caplog: pytest.LogCaptureFixture
) -> None:
    # As in a folder that was open to others once, and was closed only at the top.
    file = remembered(folder)
    [artifacts] = (each for each in file.parent.iterdir() if each.is_dir())
    (artifacts if within else file.parent).chmod(0o777)
    assert EngineCache(folder).find(KEY) is None
    assert "others may write to it" in caplog.text


@pytest.mark.parametrize("planted", ["folder", "artifacts"])
def test_a_link_in_the_cache_is_not_followed(folder: Path, tmp_path: Path, planted: str) -> None:
    file = remembered(folder)
    [artifacts] = (each for each in file.parent.iterdir() if each.is_dir())
    moved = file.parent if planted == "folder" else artifacts
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    assert EngineCache(folder).find(KEY) is None


@pytest.mark.parametrize(
    "other",
    [
        key_of(pt2_spec(digest="e" * 64)),
        key_of(pt2_spec(max_batch_size=8)),
        key_of(pt2_spec("aot-inductor")),
        key_of(pt2_spec(engine=EngineSettings(precision="bf16"))),
        key_of(pt2_spec(warmup=WarmupSettings(variable_dim=64))),
        key_of(pt2_spec(), threads=1),
        key_of(pt2_spec(engine=EngineSettings(instances=1))),
        key_of(pt2_spec(engine=EngineSettings(threads=2))),
        key_of(pt2_spec(), DeviceIdentity("cpu", "another processor", "")),
        key_of(pt2_spec(), DeviceIdentity("cpu", "a processor", "another driver")),
        tuning_key(pt2_spec(), CPU, 2, {}, VERSIONS | {"torch": "2.14.0"}),
        tuning_key(pt2_spec(), CPU, 2, {"openvino": "openvino is not installed"}, VERSIONS),
    ],
)
def test_another_model_shape_setting_device_or_version_is_another_decision(folder: Path, other: Any) -> None:
    remembered(folder)
    assert EngineCache(folder).find(other) is None


def test_the_same_file_under_another_name_is_the_same_decision(folder: Path) -> None:
    remembered(folder)
    assert EngineCache(folder).find(key_of(pt2_spec(name="numbers", version=7))) is not None


def test_the_versions_of_what_computes_are_read_without_importing_it() -> None:
    assert {"python", "torch", "onnxruntime"} <= library_versions().keys()


def test_artifacts_of_a_tuning_that_decided_otherwise_are_deleted_once_nobody_holds_them(folder: Path) -> None:
    first, second = EngineCache(folder), EngineCache(folder)
    abandoned = first.new_artifacts(KEY, "openvino")
    chosen = second.new_artifacts(KEY, "aot-inductor")
    second.remember(KEY, decision(chosen))
    assert abandoned.is_dir()
    first.close()
    second.remember(KEY, decision(chosen))
    assert not abandoned.exists()
    assert chosen.is_dir()


def test_artifacts_that_are_decided_for_just_before_they_would_be_deleted_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = EngineCache(folder), EngineCache(folder)
    built, abandoned = first.new_artifacts(KEY, "openvino"), second.new_artifacts(KEY, "aot-inductor")

    @contextmanager
    def late(artifacts: Path) -> Iterator[bool]:
        if artifacts == built:
            first.remember(KEY, decision(built))
            first.close()
        with unheld(artifacts) as free:
            yield free

    monkeypatch.setattr(cache, "unheld", late)
    second.release(abandoned)
    assert built.is_dir()


def test_of_two_servers_that_decide_at_once_each_keeps_what_it_built(folder: Path) -> None:
    first, second = EngineCache(folder), EngineCache(folder)
    builds = [cache.new_artifacts(KEY, "aot-inductor") for cache in (first, second)]
    first.remember(KEY, decision(builds[0]))
    second.remember(KEY, decision(builds[1]))
    assert all(build.is_dir() for build in builds)
    found = EngineCache(folder).find(KEY)
    assert found is not None
    assert found.choice.artifacts == builds[1]


def test_a_folder_that_others_may_write_to_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"engines\.cache: .* mode 777: others may write .* chmod 700"):
        EngineCache(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(ConfigurationError, match=r"engines\.cache: .* belongs to user 12345, who could put code"):
        EngineCache(folder)


def test_a_file_in_place_of_the_folder_is_refused(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("")
    with pytest.raises(ConfigurationError, match="is no folder"):
        EngineCache(folder)


def test_a_folder_that_was_opened_to_others_meanwhile_is_not_believed_any_more(folder: Path) -> None:
    remembered(folder)
    cache = EngineCache(folder)
    folder.chmod(0o777)
    assert cache.find(KEY) is None


def test_where_nothing_can_be_written_a_folder_of_this_run_serves_and_what_is_there_is_still_read(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(folder, build=False)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(folder)))
    cache, other = EngineCache(folder), key_of(pt2_spec(digest="e" * 64))
    artifacts = cache.new_artifacts(other, "aot-inductor")
    cache.remember(other, replace(decision(artifacts), complete=False))
    assert cache.find(other) == decision(artifacts, complete=False)
    assert cache.find(KEY) == decision()
    assert "will be forgotten when this server stops" in caplog.text
    cache.close()
    assert not artifacts.exists()


def test_by_default_it_lies_where_caches_of_a_user_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder({}) == tmp_path / ".cache" / "offramp" / "engines"
    assert default_folder({"XDG_CACHE_HOME": "/var/cache"}) == Path("/var/cache/offramp/engines")
    assert default_folder({"XDG_CACHE_HOME": "not/absolute"}) == tmp_path / ".cache" / "offramp" / "engines"
