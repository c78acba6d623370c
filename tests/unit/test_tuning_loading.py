"""What is in the workers while the engine of a model is looked for, whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
from engine_doubles import Double
from offramp_server.config import TuningSettings
from offramp_server.engine_choice import EngineChoice
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning.cache import DECISION, EngineCache
from offramp_server.tuning.engines import Engines
from offramp_server.tuning.holds import delete_unless_held
from offramp_server.tuning.loading import EngineLoader
from offramp_server.tuning.trial import Trial, TrialOptions
from offramp_server.tuning.tuner import Tuner
from offramp_server.workers.host import LoadReport
from scheduling_fakes import settle
from trial_fakes import Script, Stage
from tuning_fakes import CPU, pt2_spec

PLAIN, BUILT = "torch-eager", "aot-inductor"
KINDS = (Double(PLAIN), Double(BUILT, building=True))


class FakeWorkers:
    """Load whatever is not in `refused`; remember by handle what they hold."""

    device = "cpu"

    def __init__(self) -> None:
        self.refused: set[str] = set()
        # How often workers die in a load, whatever they load.
        self.deaths = 0
        # How often nothing can be unloaded.
        self.stuck = 0
        self.held: dict[int, str] = {}
        # Every load there was.
        self.loads: list[str] = []
        self.explained: list[EngineChoice] = []

    def threads_by_itself(self, spec: ModelSpec) -> int:
        return 1

    async def load(
        self,
        handle: int,
        spec: ModelSpec,
        choice: EngineChoice | None = None,
        seconds_by_threads: Mapping[int, float] | None = None,
    ) -> LoadReport:
        assert choice is not None
        self.loads.append(choice.label)
        if self.deaths:
            self.deaths -= 1
            raise LoadError("the worker was killed")
        if choice.label in self.refused:
            raise LoadError(f"{choice.label} is not for us")
        assert choice.artifacts is None or choice.artifacts.is_dir()
        self.held[handle] = choice.label
        return LoadReport(EngineReport(choice.backend, "cpu", "fp32", 1, choice.reason), {16: 0.02})

    async def unload(self, handle: int) -> None:
        if self.stuck:
            self.stuck -= 1
            raise LoadError("the worker does not answer")
        del self.held[handle]

    async def explain(self, handle: int, choice: EngineChoice) -> LoadReport:
        self.explained.append(choice)
        return LoadReport(EngineReport(choice.backend, "cpu", "fp32", 1, choice.reason), {})


class Bench:
    """A new one with the same folder is the next start of a server."""

    def __init__(self, folder: Path, tune: Literal["at-load", "never"] = "at-load") -> None:
        self.folder = folder / "cache"
        self.workers = FakeWorkers()
        self.stats = Stats()
        self.cache = EngineCache(self.folder)
        self.stage = Stage({PLAIN: Script(), BUILT: Script(1, 10)})
        settings = TuningSettings(tune=tune, max_memory_bytes=1000)
        tuner = Tuner(settings, self.cache, self.stats, self.start_trial, KINDS)
        self.loader = EngineLoader(Engines(settings, self.cache, tuner, lambda device: CPU, KINDS, self.stats))

    async def start_trial(self, options: TrialOptions) -> Trial:
        return await self.stage.start(options)

    async def load(self, **fields: object) -> tuple[int, LoadReport]:
        return await self.loader.load(self.workers, pt2_spec(**fields))  # type: ignore[arg-type]

    @property
    def artifacts(self) -> list[Path]:
        return list(self.folder.glob("*/aot-inductor-*"))


async def test_the_engine_that_won_takes_the_place_of_the_plain_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    handle, report = await bench.load()
    assert bench.workers.loads == [PLAIN, BUILT]
    assert bench.workers.held == {handle: BUILT}
    assert report.engine.reason.startswith("auto: the fastest of 2 that agree")


async def test_what_is_remembered_is_loaded_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.load()
    bench.cache.close()
    bench = Bench(tmp_path)
    await bench.load()
    assert bench.workers.loads == [BUILT]
    assert bench.stage.trials == []


async def test_a_remembered_engine_that_fails_is_forgotten_with_what_was_built_and_looked_for_again(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    await bench.load()
    bench.cache.close()
    [before] = bench.artifacts
    bench = Bench(tmp_path)
    bench.workers.refused = {BUILT}
    handle, report = await bench.load()
    assert bench.workers.loads == [BUILT, BUILT, PLAIN, BUILT]
    assert bench.workers.held == {handle: PLAIN}
    assert "no worker could load it" in report.engine.reason
    assert bench.workers.explained[-1].rejected[BUILT] == f"{BUILT} is not for us"
    assert bench.artifacts == []
    assert not before.exists()


async def tuned(folder: Path, **fields: object) -> None:
    """By a server that is gone."""
    bench = Bench(folder)
    await bench.load(**fields)
    bench.cache.close()


@pytest.mark.parametrize("backend", ["auto", BUILT])
async def test_a_worker_that_dies_once_costs_no_remembered_engine(tmp_path: Path, backend: str) -> None:
    await tuned(tmp_path, backend=backend)
    bench = Bench(tmp_path)
    bench.workers.deaths = 1
    handle, _ = await bench.load(backend=backend)
    assert bench.workers.held == {handle: BUILT}
    assert bench.stage.trials == []


async def test_what_is_remembered_stays_where_not_even_the_plain_engine_can_be_loaded(tmp_path: Path) -> None:
    await tuned(tmp_path)
    bench = Bench(tmp_path)
    bench.workers.deaths = 3
    with pytest.raises(LoadError, match="the worker was killed"):
        await bench.load()
    assert bench.workers.held == {}
    await bench.load()
    assert bench.stage.trials == []


async def test_where_nothing_is_tuned_a_remembered_engine_that_fails_is_kept_and_the_plain_one_serves(
    tmp_path: Path,
) -> None:
    await tuned(tmp_path)
    bench = Bench(tmp_path, tune="never")
    bench.workers.refused = {BUILT}
    handle, report = await bench.load()
    assert bench.workers.held == {handle: PLAIN}
    assert report.engine.reason == f"auto: the plain engine; {BUILT} is remembered, and no worker could load it"
    assert bench.workers.explained[-1].rejected[BUILT] == f"{BUILT} is not for us"
    bench.workers.refused = set()
    handle, _ = await bench.load()
    assert bench.workers.held[handle] == BUILT


async def test_an_engine_asked_for_by_name_that_cannot_be_loaded_any_more_is_built_again(tmp_path: Path) -> None:
    await tuned(tmp_path, backend=BUILT)
    bench = Bench(tmp_path)
    [before] = bench.artifacts
    bench.workers.deaths = 2
    handle, _ = await bench.load(backend=BUILT)
    assert bench.workers.held == {handle: BUILT}
    [after] = bench.artifacts
    assert before != after


async def test_a_remembered_engine_that_fails_in_a_cache_that_cannot_be_written_to_leaves_a_served_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tuned(tmp_path)
    bench = Bench(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(bench.folder)))

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    bench.workers.refused = {BUILT}
    handle, _ = await bench.load()
    assert bench.workers.held == {handle: PLAIN}
    assert bench.stats.engine_tunings == {"digits": 1}


async def test_a_model_whose_plain_engine_fails_too_is_not_loaded_and_leaves_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.workers.refused = {PLAIN, BUILT}
    with pytest.raises(LoadError, match="torch-eager is not for us"):
        await bench.load()
    assert bench.workers.held == {}
    assert bench.stage.trials == []


async def test_an_engine_asked_for_by_name_that_no_worker_can_load_is_an_error(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.workers.refused = {BUILT}
    with pytest.raises(LoadError, match="aot-inductor is not for us"):
        await bench.load(backend=BUILT)
    assert bench.workers.held == {}
    assert bench.workers.loads == [BUILT]


@pytest.mark.parametrize("step", ["begin", "build"])
async def test_a_load_that_is_cancelled_in_the_middle_of_a_tuning_leaves_no_worker_trial_or_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    bench, reached, never = Bench(tmp_path), asyncio.Event(), asyncio.Event()
    start = bench.stage.start

    async def start_and_hang(options: TrialOptions) -> Trial:
        trial = await start(options)
        if options.in_background == (step == "build"):
            reached.set()
            await never.wait()
        return trial

    monkeypatch.setattr(bench.stage, "start", start_and_hang)
    load = asyncio.create_task(bench.load())
    await reached.wait()
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    await settle()
    assert bench.workers.loads == [PLAIN]
    assert bench.workers.held == {}
    assert bench.artifacts == []
    monkeypatch.undo()
    await bench.load()
    assert list(bench.workers.held.values()) == [BUILT]


async def test_what_was_built_is_held_until_the_last_model_that_runs_it_is_unloaded(tmp_path: Path) -> None:
    bench, other = Bench(tmp_path), EngineCache(tmp_path / "cache")
    first, _ = await bench.load()
    second, _ = await bench.load(name="copy")
    [artifacts] = bench.artifacts
    # Another server's decision was another one.
    (artifacts.parent / DECISION).unlink()
    await bench.loader.unload(bench.workers, first)
    other.release(artifacts)
    assert artifacts.is_dir()
    await bench.loader.unload(bench.workers, second)
    assert not artifacts.exists()


async def test_where_the_plain_engine_cannot_be_unloaded_nothing_is_kept_of_the_better_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.workers.stuck = 1
    with pytest.raises(LoadError, match="does not answer"):
        await bench.load()
    assert bench.workers.loads == [PLAIN, BUILT]
    assert bench.workers.held == {}
    [artifacts] = bench.artifacts
    assert delete_unless_held(artifacts)
