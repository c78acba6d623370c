"""What a reader of the transports' report relies on: heads are what clients send, and ratios are of the right pairs."""

from __future__ import annotations

import itertools
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from hpack import Decoder

from benchmarks.harness.certificate import write_certificate
from benchmarks.harness.environments import NotRunnableError
from benchmarks.harness.experiment import Outcome
from benchmarks.harness.labelled import Examples
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.processes import ServerProcess
from benchmarks.harness.report import Run, against_peers
from benchmarks.harness.samples import Sample, Samples
from benchmarks.harness.scaling import Growth, Measured
from benchmarks.harness.transports_report import CPP_ECHO, Scenario, over_grpcio, to_markdown
from benchmarks.harness.verify import verify
from benchmarks.harness.workloads import Workload
from benchmarks.routes import Run as Routes
from benchmarks.routes import Turn, transports_table
from benchmarks.runtimes.export_models import take_over_onnx
from benchmarks.runtimes.header_fields import INDEXED, METADATA, SAME, UNINDEXED, heads, unique_fields
from benchmarks.runtimes.http2_load import Calls, Connection, LoadFailed, run
from benchmarks.runtimes.program import load_program
from benchmarks.runtimes.route_load import METHOD
from benchmarks.servers.echo import GrpcAioEcho, built_echo
from benchmarks.transports import KINDS, scenario_names

ONES = np.ones((16, 4), np.float32)
WORKLOAD = Workload("identity", Path("identity.pt2"), ONES, ONES)
SAMPLE = Sample("A", "plain", 1, 0, 100.0, 1.0, 2.0, 400.0, 50.0, 0.0, 100)
# More than a table of the usual size holds of unique fields.
CALLS = 100


def decoded(metadata: str) -> list[dict[str, str]]:
    """The heads of one connection's calls, as a server reads them."""
    decoder = Decoder()
    blocks = heads("/a/b", "host", unique_fields(metadata, seed=1), metadata == INDEXED, first=0)
    said = [decoder.decode(block) for block in itertools.islice(blocks, CALLS)]
    return [{str(name): str(value) for name, value in fields} for fields in said]


@pytest.mark.parametrize("metadata", METADATA)
def test_every_head_says_where_the_call_goes_whatever_has_left_the_table(metadata: str) -> None:
    for head in decoded(metadata):
        assert (head[":path"], head[":authority"], head["content-type"]) == ("/a/b", "host", "application/grpc")


@pytest.mark.parametrize("metadata", [UNINDEXED, INDEXED])
def test_no_two_calls_have_the_same_trace(metadata: str) -> None:
    said = decoded(metadata)
    assert len({head["traceparent"] for head in said}) == len({head["x-request-id"] for head in said}) == CALLS
    assert all(head["traceparent"].startswith("00-") and len(head["traceparent"]) == 55 for head in said)


def test_only_the_fields_that_enter_the_table_change_the_rest_of_the_block() -> None:
    def sizes(metadata: str) -> list[int]:
        blocks = heads("/a/b", "host", unique_fields(metadata, seed=1), metadata == INDEXED, first=0)
        return [len(block) for block in itertools.islice(blocks, 3)]

    same, unindexed, indexed = map(sizes, (SAME, UNINDEXED, INDEXED))
    assert same[1] == same[2] < same[0]
    assert unindexed[1] == unindexed[2] > indexed[2] > same[2]


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """Echoes bytes, but for those that it refuses."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"no":
            context.abort(grpc.StatusCode.INTERNAL, "no")
        return request

    server = grpc.server(ThreadPoolExecutor(4))
    service, _, method = METHOD.removeprefix("/").partition("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def load(target: str, requests: Sequence[bytes], order: Sequence[int], connections: int, answer_bytes: int) -> Calls:
    calls, numbers = Calls(), iter(order)
    framed = [b"\0" + len(request).to_bytes(4) + request for request in requests]
    unique = unique_fields(INDEXED, seed=1)
    run(
        [
            Connection(target, framed, numbers, heads(METHOD, target, unique, True, first), answer_bytes, calls, True)
            for first in range(connections)
        ]
    )
    return calls


def test_the_bare_client_sends_every_request_once_and_keeps_its_answer(echo: str) -> None:
    # The last one is more than a peer takes without being told that there is room.
    requests = [b"a", b"bc", bytes(range(256)) * 1200]
    calls = load(echo, requests, [0, 1, 2] * 4, connections=20, answer_bytes=1)
    assert sorted(calls.requests) == sorted([0, 1, 2] * 4)
    assert all(answer == requests[number] for number, answer in zip(calls.requests, calls.answers, strict=True))
    assert all(seconds > 0 for seconds in calls.latencies_s)


@pytest.mark.parametrize("request_bytes", [b"no", b"short"])
def test_an_answer_without_its_tensor_ends_the_load(echo: str, request_bytes: bytes) -> None:
    with pytest.raises(LoadFailed, match="bytes that should bring 100"):
        load(echo, [request_bytes], [0], connections=1, answer_bytes=100)


def test_a_server_with_tls_is_checked_like_any_other(tmp_path: Path) -> None:
    server = GrpcAioEcho(tls=write_certificate(tmp_path / "certificate"))
    try:
        server.start([WORKLOAD], tmp_path / "server")
        assert server.target.startswith("https://127.0.0.1:")
        verify(server.target, WORKLOAD)
    finally:
        server.stop()


def test_without_a_compiler_the_cpp_echo_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotRunnableError, match=r"g\+\+, protoc, grpc_cpp_plugin, pkg-config not installed"):
        built_echo()


def test_each_server_is_a_share_of_the_controls_and_of_itself_over_grpcio() -> None:
    servers = {
        "Offramp, in-process, grpcio transport": (100.0, 400.0),
        "Offramp, in-process": (600.0, 40.0),
        "grpc.aio echo": (200.0, 320.0),
        CPP_ECHO: (1200.0, 20.0),
    }
    samples = [replace(SAMPLE, server=name, rate=rate, cpu_us=cpu) for name, (rate, cpu) in servers.items()]
    growth = Growth("no-tls", [Measured(1, "plain", sample) for sample in samples])
    growth.not_run["worse"] = "ended with status 1"
    scenario = Scenario("plain", "Plain calls", (1, 32))
    report = to_markdown("command", "h2load", describe_machine(), 1, 1.0, [scenario], [growth])
    squeezed = " ".join(report.split())
    assert "Offramp, in-process | 600 | 1.00 | 2.00 | 40 | 3.00 | 0.12 | 0.50 | 2.00 | 6.00 | 0.10 | 0% |" in squeezed
    assert "| CPU, c=1 | <= 0.35 | 0.12 | 0.10 |" in squeezed
    assert "ended with status 1" in report


def test_only_a_native_transport_has_one_over_grpcio() -> None:
    assert over_grpcio("Offramp, worker process") == "Offramp, worker process, grpcio transport"
    assert over_grpcio("Offramp, worker process, grpcio transport") == "Offramp, worker process, grpcio transport"
    assert over_grpcio("grpc.aio echo") == "grpc.aio echo"


def test_every_scenario_has_samples_of_its_own_name() -> None:
    large = replace(WORKLOAD, name="any-width")
    points = [point for kind in KINDS.values() for point in kind.points(WORKLOAD, large)]
    assert all(point.workload.name == point.series for point in points)
    assert {point.series for point in points if point.client is None} == {"plain", "large", "connections", "tls"}


def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ArgumentTypeError, match="unknown scenario 'tsl': expected some of plain, same"):
        scenario_names("tsl")


def test_a_served_onnx_file_is_taken_over_with_the_names_that_every_server_knows(tmp_path: Path) -> None:
    def tensor(name: str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4])

    nodes = [onnx.helper.make_node("Neg", ["image"], ["half"]), onnx.helper.make_node("Relu", ["half"], ["logits"])]
    graph = onnx.helper.make_graph(nodes, "g", [tensor("image")], [tensor("logits")])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "model.onnx")
    take_over_onnx(tmp_path / "model.onnx", tmp_path / "taken.onnx")
    taken = onnx.load(tmp_path / "taken.onnx").graph
    assert ([each.name for each in taken.input], [each.name for each in taken.output]) == (["input"], ["output"])
    with np.load(tmp_path / "taken.npz") as arrays:
        assert arrays["inputs"].shape == arrays["outputs"].shape == (16, 4)
        assert np.array_equal(load_program(tmp_path / "taken.onnx")(arrays["inputs"]), arrays["outputs"])


@pytest.mark.parametrize(("ours", "peers"), [("native", ["grpcio", "Triton"]), ("grpcio", ["Triton"])])
def test_peers_are_held_against_each_transport_that_took_part(ours: str, peers: list[str]) -> None:
    names = {"grpcio": "Offramp, worker process, grpcio transport", "native": "Offramp, worker process"}
    samples = [replace(SAMPLE, server=name) for name in (*names.values(), "Offramp, in-process", "Triton")]
    run = Run("command", "client", describe_machine(), 1.0, 1, ["plain"], [1], Outcome(samples=samples))
    tables = against_peers(Samples(samples), run).split("## ")
    [section] = [part for part in tables if part.startswith(f"{names[ours]}, divided")]
    compared = [line.split("|")[2].strip() for line in section.splitlines() if line.startswith("| plain")]
    assert compared == [names.get(peer, peer) for peer in peers]


def test_a_route_over_one_transport_is_a_share_of_itself_over_the_other(tmp_path: Path) -> None:
    process = ServerProcess(["true"], {}, tmp_path / "log")
    runs = [Routes(process, "", Examples([], np.array([], np.int64)), "logits", each) for each in ("grpcio", "native")]
    turns = [
        Turn("r, grpcio", 1, 1, rate=100.0, p50_ms=4.0, p99_ms=8.0, server_cpu_us=400.0, other_cores=0.0),
        Turn("r, native", 1, 1, rate=300.0, p50_ms=1.0, p99_ms=4.0, server_cpu_us=100.0, other_cores=0.0),
    ]
    said = " ".join(transports_table(turns, runs, ["r"], [1]).split())
    assert "Divided by the same path, grpcio" in said
    assert "| r, native | 1 | 3.00 | 0.25 | 0.50 | 0.25 |" in said
    assert transports_table(turns, runs[:1], ["r"], [1]) == ""
    process.stop()
