"""Where the server keeps what outlasts it, and what happens where it cannot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from offramp_server.config import StoreSettings, load_settings
from offramp_server.errors import ConfigurationError
from offramp_server.repository.layout import folder_names, unrelated_folders
from offramp_server.store.audits import SCHEMA
from offramp_server.store.database import Database
from offramp_server.store.location import default_path, open_store


def opened(repository: Path, path: Path | None = None) -> Database:
    return open_store(repository, StoreSettings(path), [SCHEMA])


def close(database: Database) -> None:
    asyncio.run(database.close())


def test_without_a_setting_it_lies_in_the_repository_and_is_no_model(repository: Path) -> None:
    database = opened(repository)
    assert database.path == default_path(repository)
    assert database.durable
    assert folder_names(repository) == unrelated_folders(repository) == []
    close(database)


def test_a_repository_that_cannot_be_written_is_served_without_a_memory_and_with_a_warning(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Root may write anywhere, but not make a folder where a file is.
    (repository / ".offramp").write_text("in the way")
    database = opened(repository)
    assert not database.durable
    assert "will be forgotten when this server stops" in caplog.text
    assert "cannot be made: File exists" in caplog.text
    close(database)


def test_a_second_server_of_one_repository_has_a_memory_of_its_own(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = opened(repository), opened(repository)
    assert (first.durable, second.durable) == (True, False)
    assert "in use by another server" in caplog.text
    close(first)
    close(second)


def test_a_file_that_was_asked_for_has_to_be_usable(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    first = opened(repository, path)
    with pytest.raises(ConfigurationError, match="in use by another server"):
        opened(repository, path)
    close(first)
    with pytest.raises(ConfigurationError, match="cannot be used: No such file or directory"):
        opened(repository, tmp_path / "nowhere" / "state.sqlite3")


def test_a_damaged_file_is_never_passed_over(repository: Path) -> None:
    path = default_path(repository)
    path.parent.mkdir()
    path.write_text("no database" * 100)
    with pytest.raises(ConfigurationError, match="damaged or no SQLite database"):
        opened(repository)


def test_in_memory_if_that_is_wanted(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = opened(repository, Path(":memory:"))
    assert not database.durable
    assert not caplog.text
    assert not default_path(repository).parent.exists()
    close(database)


def test_the_path_is_relative_to_the_configuration_file(tmp_path: Path) -> None:
    config = tmp_path / "offramp.toml"
    config.write_text('[store]\npath = "here.sqlite3"\n')
    assert load_settings(config, environment={}).store.path == tmp_path / "here.sqlite3"
    config.write_text('[store]\npath = ":memory:"\n')
    assert load_settings(config, environment={}).store.path == Path(":memory:")
    settings = load_settings(None, environment={"OFFRAMP_STORE__PATH": "/state/offramp.sqlite3"})
    assert settings.store.path == Path("/state/offramp.sqlite3")
