"""`offramp tune` finds out ahead of time what a server would at its start, under the same key."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import engine_doubles
import pytest
from model_repository import write_spin
from offramp_server import core
from offramp_server.cli.main import main
from offramp_server.config import Settings, TuningSettings, WorkerSettings
from offramp_server.core import build_core
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning.engines import Engines
from offramp_server.tuning.trial_process import start_trial

Tune = Callable[..., int]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFRAMP_ENGINES__CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tune(repository: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Tune:
    """Of doubles."""
    build_engines = core.build_engines

    def with_doubles(settings: TuningSettings, stats: Stats, *rest: object) -> Engines:
        trial = functools.partial(start_trial, command=engine_doubles.TRIAL)
        return build_engines(settings, stats, engine_doubles.doubles(), trial)

    def run(kinds: str, *arguments: str) -> int:
        monkeypatch.setenv("DOUBLES", kinds)
        monkeypatch.setattr(core, "build_engines", with_doubles)
        return main(["tune", str(repository), *arguments])

    return run


async def test_a_server_that_starts_afterwards_compares_nothing(
    repository: Path, tune: Tune, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_spin(repository)
    assert await asyncio.to_thread(tune, "onnxruntime ms=2; openvino ms=4") == 0
    assert "onnxruntime, auto: the plain engine; nothing else of 2 that agree is 3 % faster" in capsys.readouterr().out
    settings = Settings(engines=TuningSettings(cache=cache), workers=WorkerSettings(mode="in-process"))
    served = build_core(repository, settings)
    try:
        await served.load()
        stats = served.serving.stats
        assert (stats.engine_lookups, stats.engine_tunings) == ({"hit": 1}, {})
        assert served.models.get("spin").engine.measured.keys() == {"onnxruntime", "openvino"}
    finally:
        await served.close()


def test_it_says_of_each_engine_how_long_it_took_how_far_off_it_was_and_what_was_wrong(
    repository: Path, tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    write_spin(repository)
    write_spin(repository, "other")
    assert tune("onnxruntime ms=1; openvino ms=0.1 does=wrong", "--model", "spin") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("spin version 1 on cpu\n  onnxruntime, auto: the plain engine;")
    assert "ENGINE" in printed
    [row] = (line for line in printed.splitlines() if "  openvino" in line)
    assert row.endswith("answers differently: by 0.01 of the largest value, where 0.0001 is tolerated")
    assert "other" not in printed


def test_what_is_remembered_is_not_found_out_again_unless_asked_for_or_left_unfinished(
    repository: Path, tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    write_spin(repository)
    good = "onnxruntime ms=1; openvino ms=2"

    def remembered(kinds: str, *arguments: str) -> bool:
        assert tune(kinds, "--json", *arguments) == 0
        [found] = json.loads(capsys.readouterr().out)
        return bool(found["remembered"])

    assert not remembered(good, "--budget", "0.001")
    assert not remembered(good)
    assert remembered(good)
    assert not remembered(good, "--again")


def test_an_engine_that_model_toml_names_and_that_cannot_run_is_told_and_is_exit_code_1(
    repository: Path, tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    write_spin(repository, config='[engine]\nbackend = "openvino"\n')
    assert tune("onnxruntime; openvino building=1 does=exit when=build") == 1
    words = 'model "spin": engine "openvino" ended with exit code 3 while it was built: the licence has expired'
    assert words in capsys.readouterr().out
    assert tune("onnxruntime; openvino lacking=nothing") == 1
    assert 'model "spin": nothing' in capsys.readouterr().out
    assert tune("onnxruntime; openvino building=1") == 0
    assert "openvino, asked for by model.toml" in capsys.readouterr().out


def test_a_model_that_cannot_be_read_is_told_and_the_others_are_tuned(
    repository: Path, tune: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    write_spin(repository)
    write_spin(repository, "wrong", config="[engine]\nbackends = 1\n")
    assert tune("onnxruntime ms=1; openvino ms=2") == 1
    printed = capsys.readouterr()
    assert "spin version 1 on cpu" in printed.out
    assert "left out: " in printed.err
    assert "backends" in printed.err


def test_a_disk_that_is_full_is_exit_code_1_and_no_verdict_on_the_engine(
    repository: Path, tune: Tune, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_spin(repository)
    assert tune("onnxruntime ms=2; openvino ms=0.1 building=1 does=fill when=build") == 1
    assert "the package could not be written" in capsys.readouterr().out
    [warning] = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.getMessage().startswith('model "spin": the disk is full, so that not every engine could be built')
    # There is space again.
    assert tune("onnxruntime ms=2; openvino ms=0.1 building=1") == 0
    assert "openvino, auto: the fastest of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--budget", "0"], "--budget: expected more than 0 seconds"), (["--model", "nothing"], "nothing")],
)
def test_what_cannot_be_tuned_is_said_before_anything_is_tried(
    repository: Path, tune: Tune, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert tune("onnxruntime", *arguments) == 2
    assert sentence in capsys.readouterr().err
