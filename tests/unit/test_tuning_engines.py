"""What is decided for models that load at once, and where the waiting for a disk happens."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_doubles import Double
from offramp_server.config import TuningSettings
from offramp_server.machine.numa import Node
from offramp_server.machine.plan import Topology
from offramp_server.model_spec import EngineSettings, ModelSpec
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning.ahead import Wanted, tune_ahead
from offramp_server.tuning.cache import EngineCache
from offramp_server.tuning.decision import Decision
from offramp_server.tuning.engines import Engines
from offramp_server.tuning.holds import unheld
from offramp_server.tuning.key import TuningKey
from offramp_server.tuning.trial import Job, TrialFailed
from offramp_server.tuning.tuner import Tuner
from trial_fakes import Script, Stage
from tuning_fakes import CPU, pt2_spec

PLAIN, BUILT, OTHER = "torch-eager", "aot-inductor", "openvino"
KINDS = (Double(PLAIN), Double(BUILT, building=True))
SLOW = {16: 0.02}


class WatchedCache(EngineCache):
    """Notes in which threads it waits for the disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.threads: set[threading.Thread] = set()

    @property
    def built(self) -> set[Path | None]:
        return set(self._folder.glob("*/*/"))

    @property
    def held(self) -> set[Path | None]:
        """Artifacts that somebody would be kept from deleting."""
        return {each for each in self._folder.glob("*/*/") if not _is_free(each)}

    def find(self, key: TuningKey) -> Decision | None:
        self.threads.add(threading.current_thread())
        return super().find(key)

    def new_artifacts(self, key: TuningKey, label: str) -> Path:
        self.threads.add(threading.current_thread())
        return super().new_artifacts(key, label)

    def release(self, artifacts: Path) -> None:
        self.threads.add(threading.current_thread())
        super().release(artifacts)

    def remember(self, key: TuningKey, decision: Decision) -> None:
        self.threads.add(threading.current_thread())
        super().remember(key, decision)

    def discard(self, artifacts: Path) -> None:
        self.threads.add(threading.current_thread())
        super().discard(artifacts)

    def forget(self, key: TuningKey) -> None:
        self.threads.add(threading.current_thread())
        super().forget(key)


def _is_free(folder: Path) -> bool:
    with unheld(folder) as free:
        return free


class Bench:
    def __init__(self, folder: Path, built: Script, kinds: Sequence[Double] = KINDS) -> None:
        self.stats = Stats()
        self.cache = WatchedCache(folder / "cache")
        self.stage = Stage({PLAIN: Script(), BUILT: built})
        settings = TuningSettings(max_memory_bytes=1000)
        tuner = Tuner(settings, self.cache, self.stats, self.stage.start, kinds)
        self.engines = Engines(settings, self.cache, tuner, lambda device: CPU, kinds, self.stats)

    async def load(self, spec: ModelSpec) -> Decision:
        """As a model is loaded that nobody knows."""
        job = Job(spec, "cpu", 1)
        return await self.engines.first(job) or await self.engines.better(job, SLOW)


async def test_nobody_who_is_served_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, Script(1, 10))
    make, delete = tempfile.mkdtemp, shutil.rmtree

    def made(**options: Any) -> str:
        bench.cache.threads.add(threading.current_thread())
        return str(make(**options))

    def deleted(folder: Path, **options: Any) -> None:
        bench.cache.threads.add(threading.current_thread())
        delete(folder, **options)

    monkeypatch.setattr(tempfile, "mkdtemp", made)
    monkeypatch.setattr(shutil, "rmtree", deleted)
    await bench.engines.release(await bench.load(pt2_spec()))
    await bench.engines.forget(Job(pt2_spec(), "cpu", 1))
    assert bench.cache.threads
    assert threading.current_thread() not in bench.cache.threads


async def test_two_models_of_the_same_file_that_load_at_once_are_tuned_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Script(1, 10))
    loads = [bench.load(pt2_spec(name=name)) for name in ("first", "second")]
    decisions = await asyncio.gather(*loads)
    assert list(bench.stats.engine_tunings.values()) == list(bench.stats.engine_builds.values()) == [1]
    assert decisions[0] == decisions[1]
    assert decisions[0].choice.label == BUILT


async def test_what_two_models_of_the_same_file_ask_for_by_name_is_built_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Script(1, 10))
    loads = [bench.load(pt2_spec(BUILT, name=name)) for name in ("first", "second")]
    decisions = await asyncio.gather(*loads)
    assert list(bench.stats.engine_builds.values()) == [1]
    assert decisions[0] == decisions[1]


async def test_what_an_engine_lacks_that_auto_leaves_alone_makes_no_other_decision(tmp_path: Path) -> None:
    for lacking in ("", "no compiler"):
        bench = Bench(tmp_path, Script(1, 10), (*KINDS, Double("torch-compile", tried=(), lacking=lacking)))
        assert (await bench.load(pt2_spec())).remembered == bool(lacking)
    bench = Bench(tmp_path, Script(1, 10), (*KINDS, Double(OTHER, lacking="pip install openvino")))
    assert not (await bench.load(pt2_spec())).remembered


async def test_a_model_with_another_file_waits_for_its_turn_and_is_tuned_as_well(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Script(1, 10))
    await asyncio.gather(bench.load(pt2_spec()), bench.load(pt2_spec(name="other", digest="e" * 64)))
    assert bench.stats.engine_tunings == {"digits": 1, "other": 1}
    built = [at for at, (step, _) in enumerate(bench.stage.happened) if step == "write_answers"]
    assert "build" in [step for step, _ in bench.stage.happened[: built[1]]]


@pytest.mark.parametrize("other", [Script(), Script(fails={"load": TrialFailed("took 2 GB", passing=True)})])
async def test_nothing_is_held_of_what_was_tuned_ahead_nor_of_what_it_was_to_complete(
    tmp_path: Path, other: Script
) -> None:
    spec, topology = pt2_spec(engine=EngineSettings(device="cpu")), Topology(1, (Node(0, (0,)),))
    for _ in range(2):
        bench = Bench(tmp_path, Script(1, 10), (*KINDS, Double(OTHER)))
        bench.stage.scripts = {**bench.stage.scripts, OTHER: other}
        [tuned] = [each async for each in tune_ahead([spec], bench.engines, topology, Wanted())]
        assert tuned.decision is not None
        assert tuned.decision.choice.label == BUILT
        assert bench.cache.held == set()
        assert bench.cache.built == {tuned.decision.choice.artifacts}


async def test_a_load_that_is_cancelled_while_it_looks_up_what_is_remembered_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, begun, go_on = Bench(tmp_path, Script(1, 10)), asyncio.Event(), threading.Event()
    await bench.engines.release(await bench.load(pt2_spec()))
    loop, find = asyncio.get_running_loop(), bench.cache.find

    def slowly(key: TuningKey) -> Decision | None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        return find(key)

    monkeypatch.setattr(bench.cache, "find", slowly)
    load = asyncio.create_task(bench.load(pt2_spec()))
    await begun.wait()
    load.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert len(bench.cache.built) == 1
    assert bench.cache.held == set()
