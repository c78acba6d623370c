"""What was fitted is written into a route's file; everything else in it stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from offramp_server.cli.route_edits import replace_file, with_entries
from offramp_server.errors import ConfigurationError

WRITTEN = """\
# Ours.
kind = "early_exit"

[[stages]]
model = "small"     # quick
threshold = 0.9

[[stages]]
model = "large"

[audit]
rate = 0.01
"""


@pytest.fixture
def route(tmp_path: Path) -> Path:
    path = tmp_path / "route.toml"
    path.write_text(WRITTEN)
    return path


def test_keys_are_set_and_comments_and_order_stay() -> None:
    edited = with_entries(WRITTEN, "stages", [{"threshold": 0.75, "temperature": 1.5}, {}])
    assert edited == WRITTEN.replace("threshold = 0.9\n", "threshold = 0.75\ntemperature = 1.5\n")


def test_tables_on_one_line_take_keys_as_well() -> None:
    edited = with_entries(
        'stages = [{model = "small", threshold = 0.9}, {model = "large"}]\n', "stages", [{"threshold": 0.5}, {}]
    )
    assert edited == 'stages = [{model = "small", threshold = 0.5}, {model = "large"}]\n'


def test_a_file_is_replaced_and_nothing_else_is_left_beside_it(route: Path) -> None:
    replace_file(route, "other", WRITTEN)
    assert route.read_text() == "other"
    assert [path.name for path in route.parent.iterdir()] == ["route.toml"]


def test_a_file_that_has_changed_meanwhile_is_left_alone(route: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"route\.toml: has changed meanwhile, run this again"):
        replace_file(route, "other", "what it was")
    assert route.read_text() == WRITTEN


def test_a_file_that_cannot_be_written_is_named(route: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigurationError, match=r"route\.toml: cannot be written: No space left on device"):
        replace_file(route, "other", WRITTEN)
    assert route.read_text() == WRITTEN
    assert [path.name for path in route.parent.iterdir()] == ["route.toml"]
