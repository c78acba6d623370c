"""What the supervisor of a device's workers promises, with executors that load, crash and die on command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from offramp_server.engine_choice import EngineChoice
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError, Unavailable
from offramp_server.machine.numa import Node
from offramp_server.machine.plan import Topology
from offramp_server.model_spec import EngineSettings, ModelSpec
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.scheduling.work import Answer
from offramp_server.telemetry.stats import Stats
from offramp_server.workers.group import DeathHandler, WorkerGroup
from offramp_server.workers.host import LoadReport, Placement
from scheduling_fakes import HandClock, HandExecutor, lane, on_hand_clock, settle, spec, work

FOUR_CORES = Topology(4, (Node(0, (0, 1, 2, 3)),))
TWO_NODES = Topology(4, (Node(0, (0, 1)), Node(1, (2, 3))))

REPORT = LoadReport(EngineReport("fake", "cpu", "fp32", 1, "the test said so"), {1: 0.01})


class FakeWorker(HandExecutor):
    """A worker whose loads can be made to fail or to kill it."""

    def __init__(self, name: str, sink: Scheduler, on_death: DeathHandler, world: World) -> None:
        super().__init__(sink, name)
        self.models: dict[int, ModelSpec] = {}
        self.placements: dict[int, Placement] = {}
        self.cpus: tuple[int, ...] = ()
        self.alive = False
        self.process_id = None
        self._on_death = on_death
        self._world = world

    def holds(self, handle: int) -> bool:
        return handle in self.models

    async def start(self) -> None:
        if self._world.cannot_start:
            raise LoadError("no more processes")
        self.alive = True

    async def load(self, handle: int, spec: ModelSpec, placement: Placement) -> LoadReport:
        await self._world.before_load(self, spec)
        self.models[handle] = spec
        self.placements[handle] = placement
        return REPORT

    async def unload(self, handle: int) -> None:
        self.models.pop(handle, None)

    async def close(self) -> None:
        self.alive = False

    def kill(self) -> None:
        self.alive = False
        self.die()
        self._on_death(self, "signal_9")


async def _nothing(worker: FakeWorker, spec: ModelSpec) -> None:
    return None


@dataclass
class World:
    """What the test decides, and every worker there ever was."""

    before_load: Callable[[FakeWorker, ModelSpec], Awaitable[None]] = _nothing
    cannot_start: bool = False
    workers: list[FakeWorker] = field(default_factory=list)


class Bench:
    def __init__(self, loop: HandClock, standbys: int = 1, topology: Topology = FOUR_CORES) -> None:
        self.loop = loop
        self.world = World()
        self.stats = Stats()
        self.scheduler = Scheduler(self.stats, 2, loop)
        self.group = WorkerGroup("cpu", self.scheduler, self._make, standbys, self.stats, topology)
        self.group.keep_standbys()

    def _make(self, name: str, scheduler: Scheduler, on_death: DeathHandler, cpus: Sequence[int]) -> FakeWorker:
        worker = FakeWorker(name, scheduler, on_death, self.world)
        worker.cpus = tuple(cpus)
        self.world.workers.append(worker)
        return worker

    def ask(self, handle: int) -> asyncio.Task[Answer]:
        """A request for a model, whose queue is opened for it."""
        queue = lane(handle)
        self.scheduler.open_lane(queue)
        return asyncio.create_task(self.scheduler.run(queue, work(1)))

    @property
    def counts(self) -> dict[str, int]:
        return {"active": len(self.group.actives), "standby": len(self.group.standbys)}

    @property
    def members(self) -> list[FakeWorker]:
        return [worker for worker in self.world.workers if worker in self.group.executors]


def play(scenario: Callable[[Bench], Awaitable[None]], standbys: int = 1, topology: Topology = FOUR_CORES) -> None:
    loop = HandClock()

    async def run() -> None:
        bench = Bench(loop, standbys, topology)
        await scenario(bench)
        await bench.group.close()

    on_hand_clock(run(), loop)


def test_a_standby_comes_up_beside_the_active_worker_and_holds_the_same_models() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await settle()
        assert bench.counts == {"active": 1, "standby": 1}
        assert all(worker.holds(1) for worker in bench.members)

    play(scenario)


def test_no_standby_delays_the_first_loads() -> None:
    async def scenario(bench: Bench) -> None:
        group = WorkerGroup("cpu", bench.scheduler, bench._make, 1, bench.stats, FOUR_CORES)
        await group.load(1, spec())
        await settle()
        assert (len(group.actives), len(group.standbys)) == (1, 0)
        group.keep_standbys()
        await settle()
        assert (len(group.actives), len(group.standbys)) == (1, 1)
        await group.close()

    play(scenario)


def test_the_standby_takes_over_in_the_same_turn_and_is_replaced() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await settle()
        active, standby = bench.members
        active.kill()
        assert bench.counts == {"active": 1, "standby": 0}
        assert bench.group.executors == [standby]
        await settle()
        assert bench.counts == {"active": 1, "standby": 1}
        assert bench.members[-1].holds(1)
        assert bench.stats.worker_restarts["cpu", "signal_9"] == 1

    play(scenario)


def test_a_model_that_kills_its_worker_while_loading_meets_the_standby_and_not_the_one_that_serves() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await settle()
        active = bench.members[0]

        async def crash(worker: FakeWorker, model: ModelSpec) -> None:
            if model.name == "crasher":
                worker.kill()
                raise LoadError("worker died: signal_11")

        bench.world.before_load = crash
        with pytest.raises(LoadError, match="signal_11"):
            await bench.group.load(2, spec(name="crasher"))
        await settle()
        assert active.alive
        assert bench.counts == {"active": 1, "standby": 1}
        assert not any(worker.holds(2) for worker in bench.members)

    play(scenario)


def test_a_load_that_fails_halfway_leaves_nothing_behind() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await settle()
        active = bench.members[0]

        async def refuse(worker: FakeWorker, model: ModelSpec) -> None:
            if worker is active:
                raise LoadError("out of memory")

        bench.world.before_load = refuse
        with pytest.raises(LoadError, match="out of memory"):
            await bench.group.load(2, spec(name="big"))
        assert not any(worker.holds(2) for worker in bench.members)
        assert not bench.group.serves(2)

    play(scenario)


def test_a_worker_that_dies_of_something_else_during_a_load_does_not_fail_it() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await settle()
        active = bench.members[0]

        async def die(worker: FakeWorker, model: ModelSpec) -> None:
            if worker is active:
                active.kill()
                raise LoadError("worker died: signal_9")

        bench.world.before_load = die
        await bench.group.load(2, spec(name="other"))
        await settle()
        assert bench.counts == {"active": 1, "standby": 1}
        assert all(worker.holds(1) and worker.holds(2) for worker in bench.members)

    play(scenario)


def test_workers_are_replaced_with_growing_pauses_until_it_works() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await settle()
        bench.world.cannot_start = True
        for worker in bench.members:
            worker.kill()
        await settle()
        assert bench.counts == {"active": 0, "standby": 0}
        attempts = len(bench.world.workers)
        await bench.loop.advance(0.15)
        assert len(bench.world.workers) == attempts + 1
        await bench.loop.advance(0.15)
        assert len(bench.world.workers) == attempts + 1
        bench.world.cannot_start = False
        await bench.loop.advance(0.1)
        await settle()
        assert bench.counts == {"active": 1, "standby": 1}

    play(scenario)


def test_a_model_that_cannot_be_loaded_again_is_left_out_and_the_others_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await bench.group.load(2, spec(name="spoilt"))
        await settle()

        async def refuse(worker: FakeWorker, model: ModelSpec) -> None:
            if model.name == "spoilt":
                raise LoadError("the file is gone")

        bench.world.before_load = refuse
        for worker in bench.members:
            worker.kill()
        for _ in range(4):
            await bench.loop.advance(1)
        assert bench.counts == {"active": 1, "standby": 1}
        assert bench.group.serves(1)
        assert not bench.group.serves(2)

    play(scenario)
    assert 'could not load model "spoilt" version 1 again: the file is gone' in caplog.text
    assert 'model "spoilt" version 1: no worker could load it again' in caplog.text


async def _lost(bench: Bench, loads: list[FakeWorker], healthy: int = 10**9) -> None:
    """Model 1 is served. Model 2 killed the workers that replaced the first ones; `loads` notes those that it is loaded
    into from now on, which it kills but for those after the first `healthy`."""
    await bench.group.load(1, spec())
    await bench.group.load(2, spec(name="killed"))
    await settle()

    async def kill(worker: FakeWorker, model: ModelSpec) -> None:
        if model.name == "killed":
            loads.append(worker)
            if len(loads) <= healthy:
                worker.kill()
                raise LoadError("worker died: signal_9")

    bench.world.before_load = kill
    for worker in bench.members:
        worker.kill()
    await settle()
    await bench.loop.advance(0.11)
    await bench.loop.advance(0.21)
    await bench.loop.advance(0.41)


def test_a_model_whose_workers_were_killed_while_they_loaded_it_is_said_to_be_lost_and_comes_back_by_itself() -> None:
    async def scenario(bench: Bench) -> None:
        said: list[tuple[bool, str]] = []
        bench.group.on_change = lambda: said.append((bench.group.serves(2), bench.group.problem(2)))
        await _lost(bench, [], healthy=2)
        [(served, problem)] = said
        assert not served
        assert "no worker could load it again" in problem
        assert "signal_9" in problem
        assert bench.group.serves(1)
        await bench.loop.advance(1)
        assert said[1:] == [(True, "")]
        assert bench.counts == {"active": 1, "standby": 1}
        assert all(worker.holds(1) and worker.holds(2) for worker in bench.members)
        asked = bench.ask(2)
        await settle()
        bench.members[0].finish()
        await asked

    play(scenario)


@pytest.mark.parametrize("standbys", [0, 1])
def test_no_worker_that_serves_is_tried_on_a_model_that_kills_workers(standbys: int) -> None:
    async def scenario(bench: Bench) -> None:
        loads: list[FakeWorker] = []
        await _lost(bench, loads)
        serving = bench.members[0]
        tried = len(loads)
        for _ in range(10):
            await bench.loop.advance(30)
        assert len(loads) > tried
        assert serving.alive
        assert serving not in loads
        assert bench.counts == {"active": 1, "standby": standbys}

    play(scenario, standbys)


def test_the_pauses_between_attempts_to_load_a_lost_model_grow_up_to_a_minute() -> None:
    async def scenario(bench: Bench) -> None:
        loads: list[FakeWorker] = []
        await _lost(bench, loads)
        tried, attempts = len(loads), []
        for second in range(200):
            await bench.loop.advance(1)
            if len(loads) > tried:
                attempts.append(second)
                tried = len(loads)
        assert [later - earlier for earlier, later in pairwise(attempts)] == [2, 4, 8, 16, 32, 60, 60]

    play(scenario, standbys=0)


def test_a_model_that_is_unloaded_is_not_tried_again() -> None:
    async def scenario(bench: Bench) -> None:
        loads: list[FakeWorker] = []
        await _lost(bench, loads)
        await bench.group.unload(2)
        tried = len(loads)
        for _ in range(5):
            await bench.loop.advance(60)
        assert len(loads) == tried
        assert not bench.group.serves(2)
        assert bench.group.problem(2) == ""

    play(scenario)


def test_what_a_standby_lacks_is_loaded_into_it_later() -> None:
    async def scenario(bench: Bench) -> None:
        await _standby_without_a_model(bench)
        bench.world.before_load = _nothing
        for _ in range(4):
            await bench.loop.advance(4)
        assert [worker.holds(2) for worker in bench.members] == [True, True]

    play(scenario)


def refuse(*names: str) -> Callable[[FakeWorker, ModelSpec], Awaitable[None]]:
    async def before_load(worker: FakeWorker, model: ModelSpec) -> None:
        if model.name in names:
            raise LoadError("the file is gone")

    return before_load


def test_one_failure_to_load_a_model_again_does_not_leave_it_out() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await settle()
        bench.world.before_load = refuse("double")
        bench.members[1].kill()
        await settle()
        bench.world.before_load = refuse()
        await bench.loop.advance(1)
        assert bench.counts == {"active": 1, "standby": 1}
        assert all(worker.holds(1) for worker in bench.members)

    play(scenario)


async def _standby_without_a_model(bench: Bench) -> None:
    """Models 1 and 2 are served; the standby could not load 2."""
    await bench.group.load(1, spec())
    await bench.group.load(2, spec(name="spoilt"))
    await settle()
    bench.world.before_load = refuse("spoilt")
    bench.members[1].kill()
    for _ in range(4):
        await bench.loop.advance(1)
    assert bench.counts == {"active": 1, "standby": 1}
    assert [worker.holds(2) for worker in bench.members] == [True, False]


def test_a_model_that_a_standby_lacks_is_loaded_once_the_standby_has_taken_over() -> None:
    async def scenario(bench: Bench) -> None:
        await _standby_without_a_model(bench)

        async def slowly(worker: FakeWorker, model: ModelSpec) -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        bench.world.before_load = slowly
        waiting = bench.ask(2)
        bench.members[0].kill()
        for _ in range(3):
            await settle()
        assert bench.counts == {"active": 1, "standby": 1}
        assert all(worker.holds(1) and worker.holds(2) for worker in bench.members)
        bench.members[0].finish()
        await waiting

    play(scenario)


def test_a_worker_that_dies_of_a_model_that_its_standby_lacked_is_replaced_as_well() -> None:
    async def scenario(bench: Bench) -> None:
        await _standby_without_a_model(bench)
        promoted = bench.members[1]

        async def die(worker: FakeWorker, model: ModelSpec) -> None:
            if worker is promoted:
                promoted.kill()
                raise LoadError("worker died: signal_11")

        bench.world.before_load = die
        bench.members[0].kill()
        for _ in range(4):
            await bench.loop.advance(1)
        assert not promoted.alive
        assert bench.counts == {"active": 1, "standby": 1}
        assert all(worker.holds(1) and worker.holds(2) for worker in bench.members)

    play(scenario)


def test_those_who_wait_for_a_model_that_a_standby_lacks_are_told_if_it_cannot_be_loaded_any_more() -> None:
    async def scenario(bench: Bench) -> None:
        await _standby_without_a_model(bench)
        waiting = bench.ask(2)
        bench.members[0].kill()
        for _ in range(4):
            await bench.loop.advance(1)
        assert bench.counts == {"active": 1, "standby": 1}
        assert bench.group.serves(1)
        assert not bench.group.serves(2)
        with pytest.raises(Unavailable, match="no worker could load it again"):
            waiting.result()

    play(scenario)


def test_what_nobody_foresaw_does_not_end_the_replacing_of_workers() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await settle()

        async def raise_something(worker: FakeWorker, model: ModelSpec) -> None:
            raise RuntimeError("unforeseen")

        bench.world.before_load = raise_something
        bench.members[1].kill()
        await settle()
        bench.world.before_load = refuse()
        await bench.loop.advance(1)
        assert bench.counts == {"active": 1, "standby": 1}

    play(scenario)


def test_as_many_workers_are_active_as_the_model_with_most_instances_asks_for_and_share_the_cores() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, replace(spec(), engine=EngineSettings(instances=2)))
        await settle()
        assert bench.counts == {"active": 2, "standby": 0}
        assert [worker.placements[1].threads for worker in bench.members] == [2, 2]

    play(scenario, standbys=0)


def test_models_that_were_there_before_more_workers_came_give_up_threads_and_go_on_being_served() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        [first] = bench.members
        assert first.placements[1].threads == 4
        loads: list[tuple[str, str]] = []

        async def note(worker: FakeWorker, model: ModelSpec) -> None:
            assert bench.group.serves(1)
            loads.append((worker.name, model.name))

        bench.world.before_load = note
        await bench.group.load(2, replace(spec(name="two"), engine=EngineSettings(instances=2)))
        assert [(worker.placements[1].threads, worker.placements[2].threads) for worker in bench.members] == [
            (2, 2)
        ] * 2
        # Before the second worker was there.
        assert loads[0] == (first.name, "double")

    play(scenario, standbys=0)


def test_a_model_that_cannot_be_loaded_with_fewer_threads_is_served_as_it_was() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        [first] = bench.members

        async def refuse(worker: FakeWorker, model: ModelSpec) -> None:
            if worker is first and model.name == "double":
                raise LoadError("out of memory")

        bench.world.before_load = refuse
        await bench.group.load(2, replace(spec(name="two"), engine=EngineSettings(instances=2)))
        assert first.placements[1].threads == 4
        assert bench.group.serves(1)
        assert bench.counts["active"] == 2

    play(scenario, standbys=0)


def test_a_model_that_names_its_threads_keeps_them_and_too_many_are_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, replace(spec(), engine=EngineSettings(instances=2, threads=4)))
        assert [worker.placements[1].threads for worker in bench.members] == [4, 4]

    play(scenario, standbys=0)
    [warning] = [record.getMessage() for record in caplog.records if "cores" in record.getMessage()]
    assert "2 workers with 4 threads each are more than the 4 cores" in warning
    assert "threads = 2 in [engine] would be right" in warning


def test_more_workers_than_cores_are_warned_of_with_a_number_that_fits(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, replace(spec(), engine=EngineSettings(instances=6, threads=1)))
        assert bench.counts["active"] == 6

    play(scenario, standbys=0)
    assert "instances = 4 and threads = 1" in caplog.text


@pytest.mark.parametrize(
    ("engine", "seconds", "workers", "threads"),
    [
        (EngineSettings(), None, 1, 4),
        (EngineSettings(), {1: 0.01, 2: 0.0099, 4: 0.0098}, 4, 1),
        (EngineSettings(), {1: 0.01, 2: 0.006, 4: 0.0035}, 1, 4),
        (EngineSettings(threads=2), None, 2, 2),
        (EngineSettings(threads=9), None, 1, 9),
        (EngineSettings(instances=3), {1: 0.01, 4: 0.01}, 3, 1),
    ],
)
def test_what_a_folder_leaves_open_is_decided_by_cores_and_measurements(
    engine: EngineSettings, seconds: dict[int, float] | None, workers: int, threads: int
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, replace(spec(), engine=engine), seconds_by_threads=seconds)
        assert bench.counts["active"] == workers
        assert {worker.placements[1].threads for worker in bench.members} == {threads}

    play(scenario, standbys=0)


def test_a_gpu_has_one_worker_unless_a_model_asks_for_more() -> None:
    async def scenario(bench: Bench) -> None:
        group = WorkerGroup("cuda:0", bench.scheduler, bench._make, 0, bench.stats, TWO_NODES)
        await group.load(1, spec(), seconds_by_threads={1: 0.01, 2: 0.01})
        assert len(group.actives) == 1
        assert bench.world.workers[-1].cpus == ()
        await group.close()

    play(scenario, standbys=0)


def test_on_one_node_workers_run_wherever_they_like() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, replace(spec(), engine=EngineSettings(instances=2)))
        assert [worker.cpus for worker in bench.members] == [(), ()]

    play(scenario, standbys=0)


def test_on_several_nodes_each_worker_stays_on_one_and_its_replacement_as_well() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        assert [worker.cpus for worker in bench.members] == [(0, 1), (2, 3)]
        assert {worker.placements[1].threads for worker in bench.members} == {2}
        for _ in range(2):
            bench.members[0].kill()
            await settle()
            assert sorted(worker.cpus for worker in bench.members) == [(0, 1), (2, 3)]

    play(scenario, standbys=0, topology=TWO_NODES)


def test_closing_stops_every_worker_and_replaces_none() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await settle()
        workers = bench.members
        await bench.group.close()
        await settle()
        assert not any(worker.alive for worker in workers)
        assert len(bench.world.workers) == 2
        assert bench.group.executors == []

    play(scenario)


def test_a_model_is_told_to_run_where_its_folder_says() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, replace(spec(), path=Path("x"), engine=EngineSettings(threads=3)))
        assert bench.members[0].placements[1] == Placement("cpu", 3)

    play(scenario, standbys=0)


def test_unloading_lets_go_of_the_model_everywhere() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        await settle()
        await bench.group.unload(1)
        assert not any(worker.holds(1) for worker in bench.members)
        await asyncio.sleep(0)

    play(scenario)


def test_every_worker_runs_a_model_as_was_chosen_those_that_replace_others_included() -> None:
    choice = EngineChoice("torch-eager", "batch norms folded", reason="it was measured")

    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, replace(spec(), engine=EngineSettings(instances=2)), choice)
        await settle()
        for worker in bench.members:
            worker.kill()
        for _ in range(3):
            await bench.loop.advance(1)
        assert bench.counts == {"active": 2, "standby": 1}
        assert len(bench.world.workers) == 6
        assert [worker.placements[1].choice for worker in bench.members] == [choice] * 3

    play(scenario)


def test_what_is_found_out_about_the_plain_engine_is_said_of_it_by_workers_to_come_as_well() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        choice = EngineChoice(
            "fake", reason="nothing was faster", measured={"fake": 0.1}, rejected={"other": "crashed"}
        )
        report = (await bench.group.explain(1, choice)).engine
        assert (report.reason, report.measured, report.rejected) == (choice.reason, choice.measured, choice.rejected)
        assert bench.group.report(1) == await bench.group.explain(1, choice)
        bench.members[0].kill()
        await settle()
        assert bench.members[-1].placements[1].choice == choice

    play(scenario)


def test_what_is_found_out_about_a_model_is_not_lost_where_it_gives_up_threads_at_that_moment() -> None:
    choice = EngineChoice("fake", reason="nothing was faster")

    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())
        explaining: list[asyncio.Task[LoadReport]] = []

        async def explain_meanwhile(worker: FakeWorker, model: ModelSpec) -> None:
            if not explaining:
                explaining.append(asyncio.create_task(bench.group.explain(1, choice)))
                await settle()

        bench.world.before_load = explain_meanwhile
        await bench.group.load(2, replace(spec(name="two"), engine=EngineSettings(instances=2)))
        await explaining[0]
        report = bench.group.report(1)
        assert report is not None
        assert report.engine.reason == "nothing was faster"
        bench.members[0].kill()
        await bench.loop.advance(1)
        assert bench.members[-1].placements[1] == Placement("cpu", 2, choice)

    play(scenario, standbys=0)


def test_a_worker_that_a_load_has_started_is_not_started_again_by_who_waited_to_replace_it() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.group.load(1, spec())

        async def wait(worker: FakeWorker, model: ModelSpec) -> None:
            # The group looks for workers to replace, and finds one that is to come.
            await settle()

        bench.world.before_load = wait
        await bench.group.load(2, replace(spec(name="two"), engine=EngineSettings(instances=2)))
        await settle()
        assert bench.counts == {"active": 2, "standby": 0}
        assert len(bench.world.workers) == 2

    play(scenario, standbys=0)
