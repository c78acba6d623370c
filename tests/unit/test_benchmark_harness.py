"""What a reader of a benchmark report relies on: that failures are seen, and that figures are what they say."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from open_inference import grpc_predict_v2_pb2 as pb

from benchmarks.harness import load, report
from benchmarks.harness.cpu import tree_cpu_seconds
from benchmarks.harness.environments import NotRunnableError, last_error_line, project_environment
from benchmarks.harness.experiment import Experiment, Outcome, Plan, ServerContender
from benchmarks.harness.load import Load, LoadError
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.processes import ServerProcess
from benchmarks.harness.samples import Sample, Samples
from benchmarks.harness.workloads import ONNX_RUNTIME, TORCH_EAGER, Workload
from benchmarks.runtimes.program import load_program
from benchmarks.servers.base import Launch, Server, base_environment
from benchmarks.servers.catalogue import EQUAL, PEERS, RECOMMENDED, own_servers, peers
from benchmarks.servers.echo import GrpcAioEcho
from benchmarks.servers.offramp import AUTO, write_model
from benchmarks.servers.triton import check_libraries

SUMMARY = """\
requests: 100 total, 100 started, 100 done, {succeeded} succeeded, {failed} failed, 0 errored, 0 timeout
traffic: 25.5KB (26112) total, 1.2KB (1228) headers (space savings 90.00%), 30.0KB ({data}) data
"""
SAMPLE = Sample("A", "identity", 1, 0, 100.0, 1.0, 2.0, 400.0, 50.0, 0.0, 100)
ONES = np.ones((16, 4), np.float32)
WORKLOAD = Workload("identity", Path("identity.pt2"), ONES, ONES)


def test_a_message_is_framed_as_grpc_frames_it() -> None:
    assert load.length_prefixed(b"abc") == b"\x00\x00\x00\x00\x03abc"


def test_h2load_output_with_every_call_answered_in_full_is_accepted() -> None:
    load.check_summary(SUMMARY.format(succeeded=100, failed=0, data=100 * 256), calls=100, answer_bytes=256)


def test_calls_that_fail_over_http_are_an_error() -> None:
    with pytest.raises(LoadError, match="3 of 100 calls failed"):
        load.check_summary(SUMMARY.format(succeeded=97, failed=3, data=100 * 256), 100, 256)


def test_grpc_errors_behind_http_200_are_noticed_by_their_missing_bytes() -> None:
    with pytest.raises(LoadError, match="25344 bytes of answers to 100 calls"):
        load.check_summary(SUMMARY.format(succeeded=100, failed=0, data=99 * 256), 100, 256)


def test_the_rate_runs_from_the_first_start_to_the_last_answer(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("1000000\t200\t500000\n1500000\t200\t1500000\n")
    result = load.read_log(log, client_cpu_s=0.1)
    assert (result.calls, result.seconds, result.rate) == (2, 2.0, 1.0)
    assert result.percentile_ms(50) == pytest.approx(1000.0)


def test_ratios_are_taken_within_a_round_and_not_between_medians() -> None:
    ours = [replace(SAMPLE, round=turn, cpu_us=cpu) for turn, cpu in enumerate([200.0, 400.0, 800.0])]
    control = [replace(SAMPLE, server="C", round=turn, cpu_us=cpu) for turn, cpu in enumerate([100.0, 200.0, 400.0])]
    ratio = Samples([*ours, *control]).paired("A", "C", "identity", 1, report.cpu_ratio)
    assert ratio is not None
    assert (ratio.median, ratio.spread) == (2.0, 0.0)


def test_a_comparison_without_a_control_is_missing_rather_than_invented() -> None:
    assert Samples([SAMPLE]).paired("A", "C", "identity", 1, report.cpu_ratio) is None


def test_a_server_that_could_not_run_stands_in_the_report_with_its_reason() -> None:
    outcome = Outcome(samples=[SAMPLE], not_run={"Peer": "pip install failed: no such | version"})
    run = report.Run("command", "client", describe_machine(), 1.0, 1, ["identity"], [1], outcome)
    assert "not run: pip install failed: no such \\| version" in report.to_markdown(run)


def test_a_report_names_no_home_folder() -> None:
    outcome = Outcome(not_run={"Peer": f"see {Path.home()}/x.log"})
    run = report.Run("command", "client", describe_machine(), 1.0, 1, ["identity"], [1], outcome)
    assert str(Path.home()) not in report.to_markdown(run)
    assert "~/x.log" in report.to_json(run)


def test_cpu_time_of_children_counts_as_the_servers() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "burnt\n"
        assert tree_cpu_seconds(parent.pid) >= 0.25
        parent.communicate("\n")


def test_a_process_that_ends_instead_of_serving_is_reported_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no model here')"]
    process = ServerProcess(command, base_environment(), tmp_path / "log")
    with pytest.raises(NotRunnableError, match="ended with status 1: no model here"):
        process.wait_for_line("ready", timeout_s=60)


def test_stopping_a_server_ends_the_processes_it_started(tmp_path: Path) -> None:
    code = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("ready", child.pid, flush=True)
child.wait()
"""
    process = ServerProcess([sys.executable, "-c", code], base_environment(), tmp_path / "log")
    child = int(process.wait_for_line("ready", timeout_s=60).split()[1])
    process.stop()
    assert not Path(f"/proc/{child}").exists() or "(zombie)" in Path(f"/proc/{child}/status").read_text()


def test_the_reason_for_a_failed_installation_is_pips_own(tmp_path: Path) -> None:
    log = tmp_path / "pip.log"
    log.write_text("Looking in indexes\nERROR: No matching distribution found for mlserver==9\n\n")
    assert last_error_line(log) == "ERROR: No matching distribution found for mlserver==9"


def test_an_executable_whose_libraries_are_all_found_is_runnable() -> None:
    check_libraries(Path("/bin/sh"), "")


def test_an_unknown_peer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown peer 'tritn': expected some of triton, mlserver, kserve"):
        peers(["tritn"], EQUAL, TORCH_EAGER)


class Steady:
    """A client that sees a constant rate, and remembers how many calls it was asked for."""

    name = "steady"

    def __init__(self, rate: float) -> None:
        self.asked: list[int] = []
        self._rate = rate

    def run(self, target: str, workload: Workload, concurrency: int, calls: int) -> Load:
        self.asked.append(calls)
        return Load(calls / self._rate, np.full(calls, 1 / self._rate), 0.0)


class Idle(Server):
    name = "idle"

    def install(self) -> None:
        return

    def versions(self) -> dict[str, str]:
        return {}

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        raise AssertionError("never started")

    def cpu_seconds(self) -> float:
        return time.monotonic()


def test_a_measurement_lasts_as_long_as_planned_whatever_the_server_does_per_second() -> None:
    client = Steady(rate=1000.0)
    sample = ServerContender(Idle(), client).measure(WORKLOAD, concurrency=8, seconds=2.0, turn=0)
    assert sample.calls == 2000
    assert sample.rate == pytest.approx(1000.0)
    assert client.asked == [32, 400, 2000]


class Absent(Idle):
    name = "absent"

    def install(self) -> None:
        raise NotRunnableError("no such wheel")


def test_whatever_cannot_be_installed_or_loaded_does_not_stop_the_others(tmp_path: Path) -> None:
    plan = Plan([WORKLOAD], concurrency=[1], rounds=1, seconds=0.1)
    outcome = Experiment(plan, Steady(1.0), tmp_path).run([Absent(), GrpcAioEcho()])
    assert outcome.not_run["absent"] == "no such wheel"
    assert "ended" in outcome.not_run["bare compute"]  # there is no identity.pt2
    assert [sample.server for sample in outcome.samples] == ["grpc.aio echo"]


def test_a_server_that_answers_with_other_numbers_falls_out(tmp_path: Path) -> None:
    plan = Plan([replace(WORKLOAD, outputs=2 * ONES)], concurrency=[1], rounds=1, seconds=0.1)
    outcome = Experiment(plan, Steady(1.0), tmp_path).run([GrpcAioEcho()])
    assert outcome.not_run["grpc.aio echo"] == "identity: answers differ from the model's by up to 1.0"
    assert outcome.samples == []


@pytest.mark.parametrize("settings", PEERS)
def test_every_peer_says_how_it_is_set_up_under_either_settings(settings: str) -> None:
    servers = [*own_servers(settings, TORCH_EAGER), *peers(list(PEERS[settings]), settings, TORCH_EAGER)]
    assert all(server.note and "{" not in server.note for server in servers)
    assert len({server.name for server in servers}) == len(servers)


def test_only_offramp_with_its_defaults_chooses_its_threads_itself() -> None:
    [offramp, _] = own_servers(RECOMMENDED, TORCH_EAGER)
    assert "OMP_NUM_THREADS" not in base_environment(offramp.compute_threads)
    assert base_environment(peers(["kserve"], RECOMMENDED, TORCH_EAGER)[0].compute_threads)["OMP_NUM_THREADS"] == "1"


def test_offramp_is_given_the_engines_own_file_and_only_the_exported_program_with_auto(tmp_path: Path) -> None:
    for suffix in (".pt2", ".onnx"):
        (tmp_path / f"identity{suffix}").touch()
    workload = replace(WORKLOAD, program=tmp_path / "identity.onnx")
    write_model(workload, ONNX_RUNTIME, tmp_path / "named")
    write_model(workload, AUTO, tmp_path / "auto", max_queue_items=2000)
    assert (tmp_path / "named" / "1" / "model.onnx").exists()
    named = (tmp_path / "named" / "model.toml").read_text()
    # By itself Offramp would use every core, where the peers have one instance.
    assert all(setting in named for setting in ('backend = "onnxruntime"', "instances = 1", "threads = 1"))
    assert (tmp_path / "auto" / "1" / "model.pt2").exists()
    automatic = (tmp_path / "auto" / "model.toml").read_text()
    assert "[engine]" not in automatic
    assert ("max_queue_items = 2000" in automatic, "max_queue_items" in named) == (True, False)


def test_a_request_of_many_items_holds_the_inputs_in_turn() -> None:
    inputs = np.arange(16, dtype=np.float32)[:, None]
    workload = replace(WORKLOAD, inputs=inputs, outputs=inputs, items=20)
    request = pb.ModelInferRequest.FromString(workload.request(15))
    values = np.frombuffer(request.raw_input_contents[0], np.float32)
    assert list(request.inputs[0].shape) == [20, 1]
    assert (values[0], values[1], values[16]) == (15.0, 0.0, 15.0)
    assert workload.answer_bytes == 80


def test_a_file_that_no_engine_runs_is_refused_with_those_that_are_run() -> None:
    with pytest.raises(ValueError, match="expected a file that ends in"):
        load_program("model.safetensors")


def test_an_environment_tells_the_release_of_a_package_without_starting_it() -> None:
    assert project_environment().version("numpy") == np.__version__
    assert project_environment().version("no-such-package") is None
