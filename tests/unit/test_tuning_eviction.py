"""The cache of engines stays within its limit, and takes nothing away from who uses it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from offramp_server.config import TuningSettings
from offramp_server.tuning import eviction
from offramp_server.tuning.cache import DECISION, EngineCache
from offramp_server.tuning.key import TuningKey
from tuning_fakes import decision, key_of, pt2_spec

KEYS = [key_of(pt2_spec(digest=letter * 64)) for letter in "abc"]
PACKAGE = 100_000
# For two packages and their decisions.
LIMIT = 250_000


def remember(cache: EngineCache, key: TuningKey) -> Path:
    artifacts = cache.new_artifacts(key, "aot-inductor")
    (artifacts / "package").write_bytes(bytes(PACKAGE))
    cache.remember(key, decision(artifacts))
    return artifacts


def age(folder: Path, *keys: TuningKey) -> None:
    """The first of them longest ago."""
    for at, key in enumerate(keys):
        os.utime(folder / key.digest / DECISION, (at, at))


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path, LIMIT)


def test_what_was_used_longest_ago_goes(tmp_path: Path, cache: EngineCache) -> None:
    for key in KEYS[:2]:
        cache.release(remember(cache, key))
    age(tmp_path, *KEYS[:2])
    found = cache.find(KEYS[0])
    assert found is not None
    assert found.choice.artifacts is not None
    cache.release(found.choice.artifacts)
    remember(cache, KEYS[2])
    assert [cache.find(key) is not None for key in KEYS] == [True, False, True]
    assert not (tmp_path / KEYS[1].digest).exists()


def test_what_a_live_server_holds_stays_whole_however_old_it_is(tmp_path: Path, cache: EngineCache) -> None:
    server = EngineCache(tmp_path, LIMIT)
    held = remember(server, KEYS[0])
    cache.release(remember(cache, KEYS[1]))
    age(tmp_path, *KEYS[:2])
    remember(cache, KEYS[2])
    assert [cache.find(key) is not None for key in KEYS] == [True, False, True]
    assert held.is_dir()


def test_what_cannot_be_deleted_keeps_nothing_else_from_going(
    tmp_path: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for key in KEYS[:2]:
        cache.release(remember(cache, key))
    age(tmp_path, *KEYS[:2])
    unlink, foreign = Path.unlink, tmp_path / KEYS[0].digest

    def forbidden(path: Path, missing_ok: bool = False) -> None:
        if path.parent == foreign:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", forbidden)
    remember(cache, KEYS[2])
    assert [cache.find(key) is not None for key in KEYS] == [True, False, True]
    assert "could not be kept" not in caplog.text
    assert f"longest ago is deleted ({tmp_path / KEYS[1].digest})" in caplog.text


def test_a_decision_that_was_written_is_not_said_to_be_lost_when_nothing_can_be_evicted(
    tmp_path: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable(root: Path) -> list[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root))

    monkeypatch.setattr(eviction, "entries", unreadable)
    remember(cache, KEYS[0])
    assert cache.find(KEYS[0]) is not None
    assert "could not be kept within engines.max_cache_bytes" in caplog.text
    assert "the choice of an engine could not be kept" not in caplog.text


def test_a_decision_without_anything_built_stays_since_it_takes_no_room_and_may_be_in_use(
    tmp_path: Path, cache: EngineCache
) -> None:
    cache.remember(KEYS[0], decision())
    cache.release(remember(cache, KEYS[1]))
    age(tmp_path, *KEYS[:2])
    artifacts = remember(cache, KEYS[2])
    (artifacts / "package").write_bytes(bytes(2 * LIMIT))
    cache.remember(KEYS[2], decision(artifacts))
    assert [cache.find(key) is not None for key in KEYS] == [True, False, True]


def test_what_was_decided_last_stays_even_if_it_alone_is_too_large(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, PACKAGE // 2)
    for key in KEYS:
        cache.release(remember(cache, key))
    assert [cache.find(key) is not None for key in KEYS] == [False, False, True]


def test_without_a_limit_nothing_goes(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    for key in KEYS:
        cache.release(remember(cache, key))
    assert all(cache.find(key) for key in KEYS)


def test_what_is_not_of_the_cache_is_left_alone(tmp_path: Path, cache: EngineCache) -> None:
    others = [tmp_path / name / "1" / "data" for name in ("models", "f" * 39)]
    for other in others:
        other.parent.mkdir(parents=True)
        other.write_bytes(bytes(LIMIT))
    assert cache.find(KEYS[0]) is None
    remember(cache, KEYS[0])
    assert all(other.exists() for other in others)


def test_a_link_in_the_cache_is_not_followed_by_what_deletes(tmp_path: Path, cache: EngineCache) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data").write_bytes(bytes(LIMIT))
    cache.release(remember(cache, KEYS[0]))
    (tmp_path / KEYS[0].digest / "link").symlink_to(elsewhere)
    (tmp_path / ("e" * 40)).symlink_to(elsewhere)
    cache.release(remember(cache, KEYS[1]))
    remember(cache, KEYS[2])
    assert (elsewhere / "data").exists()


def test_artifacts_that_no_decision_names_go_when_they_are_released(cache: EngineCache) -> None:
    artifacts = cache.new_artifacts(KEYS[0], "aot-inductor")
    cache.release(artifacts)
    assert not artifacts.exists()


def test_by_default_there_is_a_limit() -> None:
    assert TuningSettings().max_cache_bytes == 10 << 30
