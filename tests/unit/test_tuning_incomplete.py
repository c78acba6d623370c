"""Of an engine that was chosen without having compared all of them, whoever runs the server is told what to do."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
from engine_doubles import Double
from offramp_server.config import TuningSettings
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning.cache import EngineCache
from offramp_server.tuning.engines import Engines
from offramp_server.tuning.trial import Job, TrialFailed
from offramp_server.tuning.tuner import Tuner
from trial_fakes import Script, Stage
from tuning_fakes import CPU, pt2_spec

PLAIN, BUILT = "torch-eager", "aot-inductor"
KINDS = (Double(PLAIN), Double(BUILT, building=True))
MEMORY = TrialFailed("took 2 GB", passing=True)
DISK = TrialFailed(f"OSError: {os.strerror(errno.ENOSPC)}", disk_full=True)
CRASH = TrialFailed("crashed with SIGSEGV while it was built")
JOB = Job(pt2_spec(), "cpu", 1)


def engines(folder: Path, failure: TrialFailed) -> Engines:
    cache, settings, stats = EngineCache(folder), TuningSettings(max_memory_bytes=1000), Stats()
    stage = Stage({PLAIN: Script(), BUILT: Script(fails={"build": failure})})
    return Engines(settings, cache, Tuner(settings, cache, stats, stage.start, KINDS), lambda device: CPU, KINDS, stats)


async def load(chosen: Engines) -> None:
    await chosen.first(JOB) or await chosen.better(JOB, {16: 0.02})


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("failure", "why"), [(MEMORY, "not every engine could be compared"), (DISK, "the disk is full")]
)
async def test_it_is_told_once_for_each_model_and_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: TrialFailed, why: str
) -> None:
    first = engines(tmp_path / "cache", failure)
    await load(first)
    [warning] = warnings(caplog)
    assert warning.startswith(f'model "digits" runs in torch-eager: {why}')
    assert 'run "offramp tune DIR --model digits"' in warning
    await load(first)
    assert len(warnings(caplog)) == 1
    # Remembered from the start before.
    await load(engines(tmp_path / "cache", failure))
    assert len(warnings(caplog)) == 2


async def test_nothing_is_told_of_engines_that_were_all_compared_or_cannot_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await load(engines(tmp_path / "cache", CRASH))
    assert warnings(caplog) == []
