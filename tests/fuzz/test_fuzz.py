"""What is fuzzed, with what Hypothesis makes up, with inputs that were kept, and for a moment guided by coverage.

CONTRIBUTING.md says how to fuzz for longer, and what to do with what is found.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz import guided
from fuzz_steps import Script, crossed, mutated, read_script, scripts, write_script
from fuzz_targets import CORPUS, TARGETS, target_of
from hypothesis import given, settings
from hypothesis import strategies as st
from offramp_client._native.dispatch import Dispatch
from offramp_common.http2.engine import Engine
from offramp_server.transport.native.calls import Call
from offramp_server.transport.native.limits import Memory

# Of what is new, in the suite. The same ones each time, or changes would fail for what others wrote; `make fuzz` looks
# for what nobody has seen, and takes its time.
_INPUTS = 60
_SEED = 20261


def kept(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found_with_what_was_found_worth_keeping(target: str) -> None:
    inputs = kept(target)
    assert inputs
    for data in inputs:
        target_of(target).check(data)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60)
@given(st.data())
def test_nothing_is_found_with_what_hypothesis_makes_up(target: str, data: st.DataObject) -> None:
    script = data.draw(scripts(target_of(target).OPERATIONS, most_steps=25))
    target_of(target).check(write_script(script))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python")
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found_in_a_moment_guided_by_coverage(target: str, tmp_path: Path) -> None:
    fresh = tmp_path / "corpus"
    fresh.mkdir()
    runs = len(kept(target)) + _INPUTS
    limits = f"-seed={_SEED}", f"-runs={runs}", f"-artifact_prefix={tmp_path}/"
    run = guided(target, *limits, fresh, CORPUS / target, echo=False)
    # What it says last has the input in base64.
    assert run.returncode == 0, run.stdout[-4000:]
    assert "DONE" in run.stdout


# Whether anything would be found


def fails(target: str, data: bytes) -> bool:
    try:
        target_of(target).check(data)
    except AssertionError:
        return True
    return False


def _gives_nothing_back(patch: pytest.MonkeyPatch) -> None:
    take = Memory.take
    patch.setattr(Memory, "take", lambda self, size: size < 0 or take(self, size))


def _counts_no_end(patch: pytest.MonkeyPatch) -> None:
    count = Call._count
    patch.setattr(Call, "_count", lambda self, change: count(self, max(change, 0)))


def _credits_twice(patch: pytest.MonkeyPatch) -> None:
    credit = Engine.credit
    patch.setattr(Engine, "credit", lambda self, stream, taken: credit(self, stream, 2 * taken))


def _restores_no_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Engine, "_credit_connection", lambda self, taken: None)


def _forgets_what_is_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatch, "again", lambda self, call: None)


def _connects_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Dispatch, "on_settings", lambda self, session: setattr(self, "_connecting", False))


def _counts_no_bytes_that_nobody_reads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("offramp_client._native.calls._READ_AHEAD", 10**9)


@pytest.mark.parametrize(
    ("target", "breaks"),
    [
        ("connection", _gives_nothing_back),
        ("connection", _counts_no_end),
        ("connection", _credits_twice),
        ("connection", _restores_no_window),
        ("answers", _credits_twice),
        ("answers", _forgets_what_is_refused),
        ("answers", _connects_twice),
        ("answers", _counts_no_bytes_that_nobody_reads),
    ],
)
def test_what_is_kept_finds_what_is_broken_on_purpose(
    target: str, breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    assert any(fails(target, data) for data in kept(target))


# Inputs


@given(st.binary(max_size=300))
def test_any_bytes_are_an_input_and_are_written_as_they_were_read(data: bytes) -> None:
    script = read_script(data)
    assert read_script(write_script(script)) == script


@given(scripts(20), scripts(20), st.integers(0, 2**32 - 1))
def test_what_is_changed_is_an_input_that_is_not_too_long(one: Script, other: Script, seed: int) -> None:
    first, second = write_script(one), write_script(other)
    for made in (mutated(first, 200, seed, lambda data, most: data[:most]), crossed(first, second, 200, seed)):
        assert len(made) <= 200
