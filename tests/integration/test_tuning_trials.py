"""Trials are real processes: whatever a candidate does to its own, the tuner hears of it and nothing is left behind."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import engine_doubles
import pytest
from eventually import PATIENCE, eventually
from offramp_server.engine_choice import EngineChoice
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.tuning import trial_process
from offramp_server.tuning.trial import Job, Trial, TrialFailed, TrialOptions
from offramp_server.tuning.trial_process import start_trial

CANDIDATE = EngineChoice("openvino")
SPEC = ModelSpec(
    "sum", 1, Path("model.pt2"), "pt2", 4, (TensorSpec("x", "FP32", (8,)),), (TensorSpec("y", "FP32", (2,)),)
)
JOB = Job(SPEC, "cpu", 1)
Kinds = Callable[[str], None]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the number of the process that a hanging engine has started."""
    monkeypatch.setenv("DOUBLES_CHILD", str(tmp_path / "child"))
    return tmp_path / "child"


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Kinds:
    return lambda text: monkeypatch.setenv("DOUBLES", text)


@asynccontextmanager
async def trial(folder: Path, **options: int) -> AsyncIterator[Trial]:
    made = await start_trial(TrialOptions(folder / "log", **options), engine_doubles.TRIAL)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()


async def loaded(tried: Trial, number: int = 1, choice: EngineChoice = CANDIDATE) -> None:
    await tried.load(number, JOB, choice, PATIENCE)


async def failure(step: Awaitable[object]) -> TrialFailed:
    with pytest.raises(TrialFailed) as caught:
        await step
    return caught.value


async def test_a_candidate_is_loaded_compared_and_timed(tmp_path: Path, kinds: Kinds) -> None:
    kinds("torch-eager ms=2; openvino ms=1 does=wrong")
    async with trial(tmp_path) as tried:
        await loaded(tried, 1, EngineChoice("torch-eager"))
        await loaded(tried, 2)
        await tried.write_answers(1, tmp_path, PATIENCE)
        assert await tried.compare_answers(1, tmp_path, PATIENCE) == 0
        assert await tried.compare_answers(2, tmp_path, PATIENCE) == pytest.approx(0.01, rel=1e-3)
        # Four rows of 2 and of 1 ms.
        assert await tried.time(1, 4, PATIENCE) >= 0.008
        assert await tried.time(2, 4, PATIENCE) >= 0.004
        await tried.unload(1, PATIENCE)
        assert "KeyError" in str(await failure(tried.time(1, 4, PATIENCE)))
        assert tried.alive


async def test_what_is_built_is_built_in_the_background(tmp_path: Path, kinds: Kinds) -> None:
    kinds("openvino building=1")
    async with trial(tmp_path, in_background=True) as tried:
        await tried.build(JOB, replace(CANDIDATE, artifacts=tmp_path), PATIENCE)
        name, niceness = (tmp_path / engine_doubles.PACKAGE).read_text().split()
        assert (name, int(niceness)) == ("openvino", os.nice(0) + 10)


async def test_an_engine_that_refuses_is_quoted(tmp_path: Path, kinds: Kinds) -> None:
    kinds("openvino tried=useless; torch-eager lacking=torch")
    async with trial(tmp_path) as tried:
        useless = await failure(tried.load(1, JOB, replace(CANDIDATE, variant="useless"), PATIENCE))
        assert str(useless) == 'model "sum": useless would change nothing'
        assert not useless.passing
        assert str(await failure(loaded(tried, 1, EngineChoice("torch-eager")))) == 'model "sum": torch'
        assert tried.alive


async def test_a_crash_is_told_with_its_signal(tmp_path: Path, kinds: Kinds) -> None:
    kinds("openvino does=crash")
    async with trial(tmp_path) as tried:
        assert str(await failure(loaded(tried))) == "crashed with SIGSEGV while it was loaded"
        assert not tried.alive
        assert str(await failure(loaded(tried))) == "was ended before"


async def test_an_exit_is_told_with_its_code_and_the_last_words(tmp_path: Path, kinds: Kinds) -> None:
    kinds("openvino does=exit")
    async with trial(tmp_path) as tried:
        words = "ended with exit code 3 while it was loaded: the licence has expired"
        assert str(await failure(loaded(tried))) == words


async def test_a_hang_is_ended_with_every_process_of_it(tmp_path: Path, kinds: Kinds, child: Path) -> None:
    kinds("openvino does=hang")
    for seconds in (1, 4, 16, PATIENCE):
        async with trial(tmp_path) as tried:
            # Once to let it import what it needs, which may take its time.
            kept = await failure(tried.compare_answers(9, tmp_path, PATIENCE))
            assert "KeyError" in str(kept)
            error = await failure(tried.load(1, JOB, CANDIDATE, seconds))
            assert str(error) == f"was ended after {seconds} s while it was loaded"
            assert not tried.alive
        # On a machine that others keep busy it may have been ended before it hung.
        if said(child):
            break
    await eventually(lambda: not running(int(child.read_text())))


async def test_a_start_that_is_cancelled_leaves_no_process(
    tmp_path: Path, kinds: Kinds, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds("openvino")
    started: list[subprocess.Popen[bytes]] = []
    spawn = trial_process._spawn

    def spawned(*arguments: Any) -> subprocess.Popen[bytes]:
        started.append(spawn(*arguments))
        return started[0]

    async def cancelled(**_: object) -> NoReturn:
        raise asyncio.CancelledError

    monkeypatch.setattr(trial_process, "_spawn", spawned)
    monkeypatch.setattr(asyncio, "open_unix_connection", cancelled)
    with pytest.raises(asyncio.CancelledError):
        await start_trial(TrialOptions(tmp_path / "log"), engine_doubles.TRIAL)
    assert [each.returncode for each in started] == [-signal.SIGKILL]


async def test_memory_without_end_is_ended_at_its_bound(tmp_path: Path, kinds: Kinds) -> None:
    kinds("openvino does=eat")
    async with trial(tmp_path, max_memory=300 << 20) as tried:
        error = await failure(loaded(tried))
        assert " MB of memory while it was loaded, of 315 MB that it may take" in str(error)
        assert error.passing


async def test_a_trial_does_not_outlive_the_process_that_started_it(tmp_path: Path, kinds: Kinds, child: Path) -> None:
    kinds("openvino does=hang")
    process = f"""
import asyncio, sys
sys.path[:0] = {sys.path!r}
import test_tuning_trials as tests
from pathlib import Path
async def run():
    async with tests.trial(Path({str(tmp_path)!r})) as tried:
        await tests.loaded(tried)
asyncio.run(run())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", process)
    await eventually(lambda: said(child) != "")
    parent.kill()
    await parent.wait()
    await eventually(lambda: not running(int(child.read_text())))


async def test_an_answer_of_another_shape_is_infinitely_wrong(tmp_path: Path, kinds: Kinds) -> None:
    kinds("openvino ms=0.01")
    async with trial(tmp_path) as tried:
        await loaded(tried)
        await tried.load(
            2, replace(JOB, spec=replace(SPEC, outputs=(TensorSpec("y", "FP32", (3,)),))), CANDIDATE, PATIENCE
        )
        await tried.write_answers(2, tmp_path, PATIENCE)
        assert math.isinf(await tried.compare_answers(1, tmp_path, PATIENCE))


def said(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
