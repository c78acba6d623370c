"""What was fitted is written into a route's file; everything else in it stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from offramp_server.cli.route_edits import set_entries
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


def test_keys_are_set_and_comments_and_order_stay(route: Path) -> None:
    set_entries(route, "stages", [{"threshold": 0.75, "temperature": 1.5}, {}])
    assert route.read_text() == WRITTEN.replace("threshold = 0.9\n", "threshold = 0.75\ntemperature = 1.5\n")
    assert [path.name for path in route.parent.iterdir()] == ["route.toml"]


def test_a_file_that_has_changed_meanwhile_is_left_alone(route: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected 3 \[\[stages\]\], found 2; it has changed meanwhile"):
        set_entries(route, "stages", [{}, {}, {"threshold": 1.0}])
    assert route.read_text() == WRITTEN


def test_a_file_that_cannot_be_written_is_named(route: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigurationError, match=r"route\.toml: cannot be written: No space left on device"):
        set_entries(route, "stages", [{"threshold": 0.1}, {}])
    assert route.read_text() == WRITTEN
    assert [path.name for path in route.parent.iterdir()] == ["route.toml"]
