"""What a server remembers of its own answers: audits, epochs, totals; over real models, and over restarts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import write_route
from eventually import PATIENCE, eventually_here
from exit_models import exit_route, rows, score, write_stage
from offramp_adapters.audits.loss import ExitTotals, outcome
from offramp_client import Client
from offramp_server.config import LoadSettings, ServerSettings, Settings, StoreSettings, WorkerSettings
from offramp_server.core import Core, build_core
from offramp_server.errors import DeadlineExceeded
from offramp_server.gauges import gauges_of
from offramp_server.inference import InferRequest, InferResponse
from offramp_server.routing.overrides import SettingsUpdate
from offramp_server.store.audits import (
    Gap,
    Pair,
    Step,
    StoredEpoch,
    Unaudited,
    exit_totals,
    replay,
    route_epochs,
    shadow_totals,
)
from offramp_server.store.database import read_file
from offramp_server.store.location import default_path
from offramp_server.telemetry.prometheus import Exposition
from open_inference.tensor import Tensor
from prometheus_client.parser import text_string_to_metric_families
from server_process import serving

STAGES = ["s1", "s2", "s3"]
# Sure of it at stage 1, at stage 2, and nowhere before the last; at thresholds of 0.9.
EASY, MIDDLE, HARD = 4.0, 2.0, 0.5
AUDITED = "[audit]\nrate = 1.0\n[agreement]"


@pytest.fixture
def models(repository: Path) -> Path:
    for number in (1, 2, 3):
        write_stage(repository, number)
    write_route(repository, "r", exit_route(STAGES, [0.9, 0.9], AUDITED))
    return repository


@asynccontextmanager
async def running(repository: Path, drain_timeout: float = 30.0, **store: Any) -> AsyncIterator[Core]:
    server, workers = ServerSettings(drain_timeout=drain_timeout), WorkerSettings(mode="in-process")
    settings = Settings(server, workers=workers, load=LoadSettings(enabled=False), store=StoreSettings(**store))
    core = build_core(repository, settings)
    try:
        await core.load()
        yield core
        await core.drain()
    finally:
        await core.close()


async def ask(core: Core, *strengths: float, model: str = "r", **fields: Any) -> InferResponse:
    return await core.serving.infer(InferRequest(model, [Tensor.from_numpy("x", rows(*strengths))], **fields))


async def quiet(core: Core) -> None:
    """Every audit has come to something."""
    await eventually_here(lambda: core.follow_ups.under_way == 0)


def epochs(repository: Path, route: str = "r") -> list[StoredEpoch]:
    return read_file(default_path(repository), lambda connection: route_epochs(connection, route))


def stream(repository: Path, epoch: StoredEpoch) -> list[Step]:
    return read_file(default_path(repository), lambda connection: list(replay(connection, epoch)))


def totals(repository: Path, epoch: StoredEpoch) -> dict[int, ExitTotals]:
    return read_file(default_path(repository), lambda connection: exit_totals(connection, epoch.id))


async def metrics(core: Core) -> dict[tuple[str, ...], float]:
    """By name and labels, in the order of the labels' names."""
    text, _ = await Exposition(core.serving.stats, gauges_of(core)).render(groups=["offramp"])
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def test_every_item_is_in_the_store_with_what_was_decided_and_what_the_reference_says(models: Path) -> None:
    # The reference says another class than stages 1 and 2.
    write_stage(models, 3, version=2)
    async with running(models) as core:
        response = await ask(core, EASY, HARD, MIDDLE)
        assert response.parameters["offramp_epoch"] == "1"
        await quiet(core)

    [epoch] = epochs(models)
    steps = stream(models, epoch)
    assert [step.position for step in steps] == [0, 1, 2]
    easy, hard, middle = (step.seen for step in steps if isinstance(step, Pair))
    assert (easy.sequence, easy.item, easy.exit, easy.stages) == (0, 0, 0, 3)
    assert easy.scores == pytest.approx((score(1, EASY),))
    assert (easy.thresholds, easy.probability, easy.lost) == ((0.9,), 1.0, "")
    assert (easy.agreed, easy.served, easy.reference) == ((False,), 0, 1)
    assert (middle.exit, middle.agreed, middle.served, middle.reference) == (1, (False, False), 2, 3)
    assert (hard.exit, hard.agreed, hard.served, hard.reference) == (2, (False, False), 2, 2)
    assert list(map(outcome, (easy, hard, middle))) == ["disagreed", "deferred", "disagreed"]
    counted = totals(models, epoch)
    assert {exit: (each.items, each.audited, each.disagreed) for exit, each in counted.items()} == {
        0: (1, 1, 1), 1: (1, 1, 1), 2: (1, 1, 0),
    }  # fmt: skip


async def test_the_metrics_say_who_answered_and_what_audits_found(models: Path) -> None:
    write_stage(models, 3, version=2)
    async with running(models) as core:
        before = await metrics(core)
        assert before["offramp_route_exits_total", "s2", "r"] == 0
        await ask(core, EASY, HARD, MIDDLE)
        await quiet(core)
        after = await metrics(core)

    for stage in STAGES:
        assert after["offramp_route_exits_total", stage, "r"] == 1
    assert after["offramp_route_deferrals_total", "r"] == 3
    assert after["offramp_audits_total", "disagreed", "r"] == 2
    assert after["offramp_audits_total", "lost", "r"] == 0
    assert after["offramp_disagreements_total", "audit", "r"] == 2
    assert after["offramp_route_disagreement_ratio", "r"] == pytest.approx(2 / 3)
    assert after["offramp_route_epoch", "r"] == 1
    assert (
        after["offramp_follow_ups_offered_total", "audit", "r"]
        == after["offramp_follow_ups_total", "audit", "done", "r"]
    )
    assert after["offramp_route_request_duration_seconds_count", "r"] == 1
    assert after["offramp_store_durable",] == 1


async def test_what_was_not_audited_is_counted_and_has_no_row(models: Path) -> None:
    write_route(models, "r", exit_route(STAGES, [0.9, 0.9]))
    async with running(models) as core:
        for _ in range(5):
            await ask(core, EASY, EASY)
        await ask(core, HARD)
        await ask(core, EASY)
        # They chose their path, and are no part of what the route is judged by.
        await ask(core, HARD, parameters={"offramp_max_exit": "s1"})
        after = await metrics(core)
    [epoch] = epochs(models)
    pair = stream(models, epoch)[1]
    assert isinstance(pair, Pair)
    assert stream(models, epoch) == [Unaudited(0, 10, 0.0), pair, Unaudited(11, 1, 0.0)]
    assert totals(models, epoch)[0].items == totals(models, epoch)[0].unseen == 11
    assert after["offramp_route_exits_total", "s1", "r"] == 12


async def test_epochs_sequences_and_totals_go_on_after_a_restart(models: Path) -> None:
    for run in range(3):
        async with running(models) as core:
            for _ in range(2):
                response = await ask(core, EASY, HARD)
                assert response.parameters["offramp_epoch"] == "1"
            await quiet(core)
            assert (await metrics(core))["offramp_route_disagreement_ratio", "r"] == 0
        [epoch] = epochs(models)
        assert epoch.items == 4 * (run + 1)
    pairs = [step for step in stream(models, epoch) if isinstance(step, Pair)]
    assert [(pair.seen.sequence, pair.seen.item) for pair in pairs] == [(n, item) for n in range(6) for item in (0, 1)]
    assert sum(each.items for each in totals(models, epoch).values()) == 12


async def test_another_model_or_temperature_is_another_epoch_and_another_threshold_is_not(models: Path) -> None:
    async with running(models) as core:

        async def epoch() -> str:
            return str((await ask(core, EASY)).parameters["offramp_epoch"])

        assert await epoch() == "1"
        await core.serving.live_routes.update("r", SettingsUpdate({"threshold.s1": 0.8, "audit_rate": 0.5}), "test")
        await core.serving.load("s1")
        assert await epoch() == "1"
        write_stage(models, 3, version=2)
        await core.serving.load("s3")
        assert await epoch() == "2"
        await core.serving.live_routes.update("r", SettingsUpdate({"temperature.s1": 1.1}), "test")
        assert await epoch() == "3"
        write_route(models, "r", exit_route(STAGES[:1] + STAGES[2:], [0.9], AUDITED))
        await core.serving.load("r")
        assert await epoch() == "4"
        await core.serving.unload("s3")
        await core.serving.load("s3")
        assert await epoch() == "4"

    assert [(each.number, each.items) for each in epochs(models)] == [(1, 2), (2, 1), (3, 1), (4, 2)]
    async with running(models) as core:
        assert (await ask(core, EASY)).parameters["offramp_epoch"] == "4"


async def test_an_audit_that_has_no_time_left_when_the_server_stops_is_lost_and_not_forgotten(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(models, drain_timeout=0.05) as core:
        await ask(core, HARD)
        lane = core.models.get("s3").lane
        # What waits there goes on waiting.
        monkeypatch.setattr(lane.queue, "head", lambda *executor: None)
        monkeypatch.setattr(lane.cost, "per_batch", 1.0)
        await ask(core, EASY)
    stats = core.serving.stats
    assert stats.follow_ups["r", "audit", "shutdown"] == stats.follow_ups_offered["r", "audit"] == 1
    [epoch] = epochs(models)
    assert [step.seen.lost for step in stream(models, epoch) if isinstance(step, Pair)] == ["", "shutdown"]
    assert totals(models, epoch)[0].lost == 1


async def test_audits_of_a_route_that_is_unloaded_are_given_up_so_that_nobody_waits_for_them(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(models) as core:
        lane = core.models.get("s3").lane
        with monkeypatch.context() as held:
            held.setattr(lane.queue, "head", lambda *executor: None)
            held.setattr(lane.cost, "per_batch", 1.0)
            await ask(core, EASY)
            async with asyncio.timeout(PATIENCE):
                await core.serving.unload("r")
                await core.serving.unload("s3")
        assert core.serving.stats.follow_ups["r", "audit", "removed"] == 1


async def test_a_model_s_default_timeout_is_for_callers_and_not_for_audits(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (models / "s3" / "model.toml").open("a") as file:
        file.write("[batching]\ndefault_timeout = 30.0\n")
    async with running(models) as core:
        lane = core.models.get("s3").lane
        with monkeypatch.context() as held:
            held.setattr(lane.queue, "head", lambda *executor: None)
            held.setattr(lane.cost, "per_batch", 1.0)
            await ask(core, EASY)
            await eventually_here(lambda: len(lane.entered) == 1)
            [audit] = lane.entered
            assert audit.deadline is None
            caller = asyncio.create_task(ask(core, HARD))
            await eventually_here(lambda: len(lane.entered) == 2)
            [asked] = lane.entered - {audit}
            assert asked.deadline is not None
            caller.cancel()
        # With it what was held back goes on.
        await ask(core, HARD)


async def test_a_request_that_fails_behind_the_first_stage_leaves_a_gap(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(models) as core:
        with monkeypatch.context() as held:
            lane = core.models.get("s2").lane
            held.setattr(lane.queue, "head", lambda *executor: None)
            held.setattr(lane.cost, "per_batch", 1.0)
            with pytest.raises(DeadlineExceeded):
                await ask(core, EASY, HARD, deadline=asyncio.get_running_loop().time() + 0.05)
        await ask(core, HARD)
    [epoch] = epochs(models)
    gap, pair = stream(models, epoch)
    assert gap == Gap(0, 0, 0, 1, "deadline_exceeded", 2)
    assert pair.position == 0


async def test_copies_for_a_shadow_are_no_traffic_of_the_route_that_gets_them(models: Path) -> None:
    split = 'kind = "split"\nsalt = "s"\n[[arms]]\nname = "full"\nmodel = "s3"\nweight = 1\n'
    write_route(models, "ab", split + '[[shadows]]\nname = "early"\nmodel = "r"\n')
    async with running(models) as core:
        await ask(core, EASY, model="ab")
        await quiet(core)
        after = await metrics(core)
        assert after["offramp_shadows_total", "full", "agreed", "ab", "early"] == 1
        assert after["offramp_route_exits_total", "s1", "r"] == 0
        assert after["offramp_audits_total", "agreed", "r"] == 0
    assert [each.items for each in epochs(models)] in ([], [0])
    [epoch] = epochs(models, "ab")
    shadows = read_file(default_path(models), lambda connection: shadow_totals(connection, epoch.id))
    assert (shadows["full", "early"].items, shadows["full", "early"].agreed) == (1, 1)


async def test_a_server_without_a_place_to_write_serves_and_says_that_it_will_forget(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (models / ".offramp").write_text("in the way")
    async with running(models) as core:
        response = await ask(core, EASY)
        assert np.argmax(response.outputs[0].numpy()) == 0
        assert (await metrics(core))["offramp_store_durable",] == 0
    assert "will be forgotten" in caplog.text


async def test_a_full_disk_is_counted_and_answers_go_on(models: Path) -> None:
    async with running(models, max_buffered_rows=200) as core:
        core.database.ask(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchone())
        for _ in range(60):
            await ask(core, *[HARD] * 16)
            core.recorder.hand_over()
            await core.database.flush()
        after = await metrics(core)
        assert after["offramp_store_errors_total",] >= 1
        assert after["offramp_store_rows_total", "overflow"] > 0
        assert after["offramp_route_exits_total", "s3", "r"] == 960
        core.database.ask(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchone())
    [epoch] = epochs(models)
    steps = stream(models, epoch)
    lost = [step for step in steps if isinstance(step, Gap)]
    assert {step.reason for step in lost} == {"overflow"}
    assert sum(step.audited for step in lost) + sum(isinstance(step, Pair) for step in steps) == 960
    assert totals(models, epoch)[2].items == 960


def test_a_killed_server_goes_on_where_its_store_ends_and_repeats_no_number(models: Path) -> None:
    x = {"x": rows(EASY, HARD)}
    for kill in (True, True, False):
        before = sum(each.items for each in epochs(models)) if default_path(models).exists() else 0
        with serving(models, ["--in-process"]) as server, Client(server.grpc) as client:
            for _ in range(20):
                assert client.infer("r", x).parameters["offramp_epoch"] == "1"
            if kill:
                # Something is on disk; what else is, nobody knows.
                while sum(each.items for each in epochs(models)) <= before:
                    client.infer("r", x)
                server.stop(signal.SIGKILL)
            else:
                assert server.stop() == 0
    [epoch] = epochs(models)
    steps = stream(models, epoch)
    crashes = [step for step in steps if isinstance(step, Gap)]
    assert [(gap.reason, gap.audited, gap.requests) for gap in crashes] == [("crash", 0, 0)] * 2
    pairs = [step for step in steps if isinstance(step, Pair)]
    # Every item was audited or deferred, so that none is missing between two others.
    assert [pair.position for pair in pairs] == list(range(epoch.items))
    order = [(pair.seen.sequence, pair.seen.item) for pair in pairs]
    assert order == sorted(set(order))
    assert sum(each.items for each in totals(models, epoch).values()) == epoch.items
    # The last run ended in order and lost nothing.
    assert len([pair for pair in pairs if pair.position >= crashes[-1].position]) == 40
