"""What /metrics says, read with the parsers of Prometheus' own library and with promtool."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from offramp_adapters.routes.strategy import Level
from offramp_server.engine_report import EngineReport
from offramp_server.errors import InvalidRequest
from offramp_server.telemetry.gauges import Gauges, ModelGauges, RouteGauges, WorkerGauges
from offramp_server.telemetry.prometheus import Exposition
from offramp_server.telemetry.stats import Stats
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

MS = 1_000_000
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
TRITON_COUNTERS = [
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
]


@dataclass
class FakeServer:
    """Counters filled by hand and gauges that a test may change between two scrapes."""

    stats: Stats = field(default_factory=Stats)
    ready: bool = True
    in_flight: int = 0
    level: Level = Level.NORMAL
    models: list[ModelGauges] = field(default_factory=list)
    workers: list[WorkerGauges] = field(default_factory=list)
    routes: list[RouteGauges] = field(default_factory=list)

    def exposition(self) -> Exposition:
        gauges = Gauges(
            lambda: self.ready, lambda: self.in_flight, lambda: self.models, lambda: self.workers, lambda: self.level,
            lambda: self.routes,
        )  # fmt: skip
        return Exposition(self.stats, gauges)


@dataclass(frozen=True)
class Scrape:
    families: dict[str, Metric]

    @classmethod
    def of(cls, families: Iterable[Metric]) -> Scrape:
        return cls({family.name: family for family in families})

    def value(self, name: str, **labels: str) -> float:
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        assert len(found) == 1, f"{name}{labels}: {len(found)} samples"
        return found[0]

    def label_sets(self, name: str) -> list[dict[str, str]]:
        return [s.labels for family in self.families.values() for s in family.samples if s.name == name]


async def scrape(server: FakeServer) -> Scrape:
    text, _ = await server.exposition().render()
    return Scrape.of(parse_text(text.decode()))


@pytest.fixture
def busy() -> FakeServer:
    """A server with every kind of thing to report."""
    server = FakeServer(in_flight=3)
    model = server.stats.model("digits", "2")
    model.answered(items=1, queue_ns=1 * MS, input_ns=MS, infer_ns=4 * MS, output_ns=MS, total_ns=8 * MS)
    model.answered(items=3, queue_ns=3 * MS, input_ns=MS, infer_ns=4 * MS, output_ns=MS, total_ns=10 * MS)
    model.executed(items=4, input_ns=MS, infer_ns=4 * MS, output_ns=MS)
    for reason in ("resource_exhausted", "deadline_exceeded", "cancelled", "internal", "invalid_argument"):
        model.failed(reason, 5 * MS)
    server.stats.loads["digits", "error"] += 1
    server.stats.loads["digits", "ok"] += 2
    server.stats.worker_restarts["cpu", "died"] += 1
    server.stats.resends["digits"] += 4
    server.stats.route("fast").requests["ok"] += 7
    server.stats.route("ab").arm("student").ended("ok", 8 * MS)
    server.stats.route("ab").arm("student").ended("deadline_exceeded", 50 * MS)
    server.stats.route("ab").arm("before the reload").ended("ok", 8 * MS)
    server.routes = [RouteGauges("ab", 1, arms=("teacher", "student"))]
    server.stats.load_level_changes[Level.NORMAL, Level.OVERLOADED] += 1
    engine = EngineReport("onnxruntime", "cpu", "fp32", threads=1, reason="measured")
    server.models = [ModelGauges("digits", "2", True, queue_requests=2, queue_items=5, engine=engine)]
    server.workers = [WorkerGauges("cpu", "ready", os.getpid(), 800), WorkerGauges("cpu", "standby", os.getpid())]
    return server


async def test_requests_are_counted_by_status(busy: FakeServer) -> None:
    found = await scrape(busy)
    assert found.value("offramp_requests_total", model="digits", version="2", status="ok") == 2
    assert found.value("offramp_requests_total", model="digits", version="2", status="cancelled") == 1
    assert found.value("offramp_items_total", model="digits", version="2") == 4
    assert found.value("offramp_executions_total", model="digits", version="2") == 1


async def test_durations_are_cumulative_histograms_in_seconds(busy: FakeServer) -> None:
    found = await scrape(busy)
    name, labels = "offramp_request_duration_seconds", {"model": "digits", "version": "2"}
    assert found.families[name].type == "histogram"
    assert found.value(f"{name}_bucket", **labels, le="0.005") == 0
    assert found.value(f"{name}_bucket", **labels, le="0.01") == 2
    assert found.value(f"{name}_bucket", **labels, le="+Inf") == 2
    assert found.value(f"{name}_count", **labels) == 2
    assert found.value(f"{name}_sum", **labels) == pytest.approx(0.018)
    assert found.value("offramp_queue_duration_seconds_sum", **labels) == pytest.approx(0.004)
    assert found.value("offramp_compute_duration_seconds_sum", **labels) == pytest.approx(0.004)
    assert found.value("offramp_batch_size_items_bucket", **labels, le="2.0") == 0
    assert found.value("offramp_batch_size_items_bucket", **labels, le="4.0") == 1


async def test_gauges_show_the_server_as_it_is_now(busy: FakeServer) -> None:
    found = await scrape(busy)
    assert found.value("offramp_ready") == 1
    assert found.value("offramp_requests_in_flight") == 3
    assert found.value("offramp_queue_items", model="digits", version="2") == 5
    assert found.value("offramp_model_ready", model="digits", version="2") == 1
    busy.ready, busy.in_flight = False, 0
    later = await scrape(busy)
    assert (later.value("offramp_ready"), later.value("offramp_requests_in_flight")) == (0, 0)


async def test_arms_of_a_split_are_counted_each_by_itself(busy: FakeServer) -> None:
    found = await scrape(busy)
    arm = {"route": "ab", "arm": "student"}
    assert found.value("offramp_route_arm_requests_total", **arm, status="ok") == 1
    assert found.value("offramp_route_arm_requests_total", **arm, status="deadline_exceeded") == 1
    assert found.value("offramp_route_arm_duration_seconds_count", **arm) == 1
    assert found.value("offramp_route_arm_duration_seconds_sum", **arm) == pytest.approx(0.008)


async def test_an_arm_is_shown_from_when_it_is_there_until_it_is_gone(busy: FakeServer) -> None:
    found = await scrape(busy)
    assert found.value("offramp_route_arm_requests_total", route="ab", arm="teacher", status="ok") == 0
    shown = found.label_sets("offramp_route_arm_duration_seconds_count")
    assert shown == [{"route": "ab", "arm": "teacher"}, {"route": "ab", "arm": "student"}]


async def test_the_level_of_load_and_its_changes_are_shown(busy: FakeServer) -> None:
    busy.level = Level.OVERLOADED
    found = await scrape(busy)
    assert found.value("offramp_load_level") == 3
    jump, step = {"from": "normal", "to": "overloaded"}, {"from": "busy", "to": "normal"}
    assert found.value("offramp_load_level_changes_total", **jump) == 1
    assert found.value("offramp_load_level_changes_total", **step) == 0


async def test_the_engine_that_was_chosen_is_a_label(busy: FakeServer) -> None:
    found = await scrape(busy)
    labels = {"model": "digits", "version": "2", "engine": "onnxruntime", "device": "cpu", "precision": "fp32"}
    assert found.value("offramp_engine_info", **labels) == 1


async def test_what_goes_wrong_inside_is_counted(busy: FakeServer) -> None:
    found = await scrape(busy)
    assert found.value("offramp_worker_restarts_total", device="cpu", reason="died") == 1
    assert found.value("offramp_request_resends_total", model="digits") == 4
    assert found.value("offramp_model_loads_total", model="digits", outcome="error") == 1
    assert found.value("offramp_model_loads_total", model="digits", outcome="ok") == 2
    assert found.value("offramp_route_requests_total", route="fast", status="ok") == 7


async def test_the_version_that_runs_is_shown(busy: FakeServer) -> None:
    (labels,) = (await scrape(busy)).label_sets("offramp_build_info")
    assert labels.keys() == {"version", "python_version"}


async def test_counters_of_a_model_start_at_zero_so_that_a_rate_sees_the_first_request() -> None:
    server = FakeServer(models=[ModelGauges("new", "1", ready=False)])
    found = await scrape(server)
    assert found.value("offramp_requests_total", model="new", version="1", status="ok") == 0
    assert found.value("offramp_request_duration_seconds_count", model="new", version="1") == 0
    assert found.value("offramp_request_resends_total", model="new") == 0
    assert found.value("offramp_model_loads_total", model="new", outcome="error") == 0
    assert found.value("nv_inference_request_success", model="new", version="1") == 0
    assert found.value("offramp_model_ready", model="new", version="1") == 0


async def test_a_scrape_does_not_change_the_counters() -> None:
    server = FakeServer(models=[ModelGauges("new", "1", ready=False)])
    await scrape(server)
    assert server.stats == Stats()


async def test_a_worker_state_that_nobody_is_in_shows_zero_instead_of_vanishing(busy: FakeServer) -> None:
    exposition = busy.exposition()
    await exposition.render()
    busy.workers = []
    text, _ = await exposition.render()
    found = Scrape.of(parse_text(text.decode()))
    assert found.value("offramp_workers", device="cpu", state="ready") == 0
    assert found.value("offramp_workers", device="cpu", state="standby") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_memory_of_this_process_and_of_the_workers_is_shown_in_bytes(busy: FakeServer) -> None:
    found = await scrape(busy)
    own = found.value("process_resident_memory_bytes")
    assert own > 1 << 20
    assert found.value("offramp_worker_resident_memory_bytes", device="cpu") == pytest.approx(2 * own, rel=0.1)


async def test_hidden_state_that_workers_keep_is_shown_in_bytes(busy: FakeServer) -> None:
    found = await scrape(busy)
    assert found.value("offramp_worker_held_bytes", device="cpu") == 800


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


async def test_a_worker_that_has_just_died_does_not_disturb_a_scrape(busy: FakeServer, dead_pid: int) -> None:
    busy.workers = [WorkerGauges("cpu", "ready", dead_pid), WorkerGauges("cpu", "ready")]
    found = await scrape(busy)
    assert found.value("offramp_workers", device="cpu", state="ready") == 2
    assert found.label_sets("offramp_worker_resident_memory_bytes") == []


async def test_triton_dashboards_find_the_counters_under_their_exact_names(busy: FakeServer) -> None:
    found = await scrape(busy)
    labels = {"model": "digits", "version": "2"}
    assert found.value("nv_inference_request_success", **labels) == 2
    assert found.value("nv_inference_count", **labels) == 4
    assert found.value("nv_inference_exec_count", **labels) == 1
    assert found.value("nv_inference_request_duration_us", **labels) == 18_000
    assert found.value("nv_inference_queue_duration_us", **labels) == 4_000
    assert found.value("nv_inference_compute_input_duration_us", **labels) == 2_000
    assert found.value("nv_inference_compute_infer_duration_us", **labels) == 8_000
    assert found.value("nv_inference_compute_output_duration_us", **labels) == 2_000
    assert found.value("nv_inference_pending_request_count", **labels) == 2
    names = {name for name in found.families if name.startswith("nv_")}
    assert names == {*TRITON_COUNTERS, "nv_inference_pending_request_count"}


@pytest.mark.parametrize(("reason", "count"), [("REJECTED", 2), ("CANCELED", 1), ("BACKEND", 1), ("OTHER", 1)])
async def test_failures_have_the_reasons_of_triton(busy: FakeServer, reason: str, count: int) -> None:
    found = await scrape(busy)
    assert found.value("nv_inference_request_failure", model="digits", version="2", reason=reason) == count


async def test_openmetrics_is_spoken_to_those_who_ask_for_it(busy: FakeServer) -> None:
    body, content_type = await busy.exposition().render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"\n# EOF\n")
    assert body.count(b"# EOF") == 1
    found = Scrape.of(parse_openmetrics(body.decode()))  # type: ignore[no-untyped-call]
    assert found.value("offramp_requests_total", model="digits", version="2", status="ok") == 2
    assert found.families["offramp_request_duration_seconds"].unit == "seconds"
    assert found.value("nv_inference_count", model="digits", version="2") == 4


async def test_text_is_spoken_to_everyone_else(busy: FakeServer) -> None:
    body, content_type = await busy.exposition().render("*/*")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"# EOF" not in body


async def test_a_scrape_may_ask_for_some_groups_only(busy: FakeServer) -> None:
    async def prefixes(*groups: str) -> set[str]:
        body, _ = await busy.exposition().render(groups=groups)
        return {family.name.split("_")[0] for family in parse_text(body.decode())}

    assert await prefixes("offramp", "process") == {"offramp", "process"}
    assert await prefixes("triton") == {"nv"}
    with pytest.raises(InvalidRequest, match="expected some of offramp, triton, process"):
        await prefixes("everything")


async def test_requests_get_their_turn_while_a_scrape_is_written(busy: FakeServer) -> None:
    task = asyncio.create_task(busy.exposition().render())
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
        # What comes in between must not disturb the scrape either.
        busy.stats.model("digits", str(turns)).failed(f"reason {turns}", 1)
        busy.stats.loads[f"model {turns}", "ok"] += 1
    assert turns > 20
    assert list(parse_text(task.result()[0].decode()))


async def test_two_servers_in_one_process_do_not_share_metrics(busy: FakeServer) -> None:
    await scrape(busy)
    assert (await scrape(FakeServer())).label_sets("offramp_requests_total") == []


async def test_a_model_name_with_odd_characters_stays_inside_its_label() -> None:
    name = 'a"b\\c\nd'
    server = FakeServer(models=[ModelGauges(name, "1", ready=True)])
    assert (await scrape(server)).value("offramp_model_ready", model=name, version="1") == 1


@pytest.fixture
def promtool() -> Callable[[bytes], list[str]]:
    """Runs `promtool check metrics` and gives back its complaints."""
    path = shutil.which("promtool")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is not there: install the Debian package prometheus")
        pytest.skip("promtool is not installed (Debian package prometheus)")

    def check(text: bytes) -> list[str]:
        done = subprocess.run([path, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
        assert done.returncode in (0, 3), done.stderr
        return done.stderr.decode().splitlines()

    return check


async def test_promtool_is_silent_about_our_metrics(busy: FakeServer, promtool: Callable[[bytes], list[str]]) -> None:
    text, _ = await busy.exposition().render(groups=["offramp", "process"])
    assert promtool(text) == []


async def test_promtool_is_silent_about_the_metrics_of_an_idle_server(promtool: Callable[[bytes], list[str]]) -> None:
    text, _ = await FakeServer().exposition().render(groups=["offramp", "process"])
    assert promtool(text) == []


async def test_promtool_objects_to_nothing_but_the_unit_in_triton_s_names(
    busy: FakeServer, promtool: Callable[[bytes], list[str]]
) -> None:
    text, _ = await busy.exposition().render()
    complaint = "metric names should not contain abbreviated units"
    microseconds = sorted(name for name in TRITON_COUNTERS if name.endswith("_us"))
    assert sorted(promtool(text)) == [f"{name} {complaint}" for name in microseconds]
