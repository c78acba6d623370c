"""A real Prometheus scrapes a real server that has answered real requests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from eventually import PATIENCE

T = TypeVar("T")

ANSWERED = 3


def until(what: str, attempt: Callable[[], T | None]) -> T:
    """Ask another process again and again until it has something to say."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = attempt()
        if found is not None:
            return found
        time.sleep(0.05)
    pytest.fail(f"{what}: not within {PATIENCE} s")


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return json.load(answer)["data"]


def installed(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{tool} is not there: install the Debian package prometheus")
        pytest.skip(f"{tool} is not installed (Debian package prometheus)")
    return path


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, which doubles its input."""
    folder = tmp_path_factory.mktemp("models")
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])], "double", tensors[:1], tensors[1:]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (folder / "double" / "1").mkdir(parents=True)
    (folder / "double" / "1" / "model.onnx").write_bytes(model.SerializeToString())
    return folder


@dataclass(frozen=True)
class Served:
    grpc: str
    http: str


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Served]:
    """`offramp serve` after three answers and one refusal."""
    command = [str(Path(sys.executable).parent / "offramp"), "serve", "--model-repository", str(repository)]
    command += ["--grpc-port", "0", "--http-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            ready = re.fullmatch(r"ready grpc=(\S+) http=(\S+) models=1\n", line)
            assert ready is not None, line
            addresses = Served(*ready.groups())
            call(addresses.grpc)
            yield addresses
        finally:
            server.terminate()
            server.wait(PATIENCE)
        assert server.returncode == 0


def call(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        for items in range(1, ANSWERED + 1):
            assert client.infer("double", [tensor((items, 4))]).as_numpy("y").tolist() == [[2.0] * 4] * items
        with pytest.raises(triton.InferenceServerException):
            client.infer("double", [tensor((1, 5))])


def tensor(shape: tuple[int, ...]) -> triton.InferInput:
    found = triton.InferInput("x", list(shape), "FP32")
    found.set_data_from_numpy(np.ones(shape, np.float32))
    return found


@dataclass(frozen=True)
class Prometheus:
    """The HTTP interface of a Prometheus that scrapes one target."""

    url: str

    def target(self) -> dict[str, Any]:
        """The target after a scrape that was not merely too late: a busy machine may take longer than one interval."""

        def scraped() -> dict[str, Any] | None:
            targets = get(f"{self.url}/api/v1/targets")["activeTargets"]
            return next((target for target in targets if target["health"] != "unknown" and not late(target)), None)

        return until("a first scrape", scraped)

    def value(self, query: str) -> float:
        """The one value that the query finds."""
        address = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        found = until(query, lambda: get(address)["result"] or None)
        assert len(found) == 1
        return float(found[0]["value"][1])

    def types(self) -> dict[str, str]:
        metadata = get(f"{self.url}/api/v1/metadata")
        return {name: entries[0]["type"] for name, entries in metadata.items()}


@pytest.fixture(scope="module")
def prometheus(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    target = {"job_name": "offramp", "scrape_interval": "500ms", "scrape_timeout": "500ms"}
    scrape = target | {"static_configs": [{"targets": [served.http]}]}
    # YAML reads JSON.
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))
    log = folder / "log"
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with log.open("w") as sink:
        yield from run_prometheus([installed("prometheus"), *arguments, "--web.listen-address=127.0.0.1:0"], sink, log)


def late(target: dict[str, Any]) -> bool:
    return "context deadline exceeded" in target["lastError"]


def is_ready(url: str) -> bool | None:
    """It listens before it has opened its storage, and answers 503 until then."""
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=PATIENCE):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return None


def run_prometheus(command: list[str], sink: IO[str], log: Path) -> Iterator[Prometheus]:
    def address() -> str | None:
        found = re.search(r'msg="Listening on" address=(\S+)', log.read_text())
        return None if found is None else found[1]

    with subprocess.Popen(command, stdout=sink, stderr=sink) as process:
        try:
            url = f"http://{until('the address of Prometheus', address)}"
            until("a ready Prometheus", lambda: is_ready(url))
            yield Prometheus(url)
        finally:
            process.terminate()
            process.wait(PATIENCE)


def test_prometheus_reads_every_line(prometheus: Prometheus) -> None:
    target = prometheus.target()
    assert (target["health"], target["lastError"]) == ("up", "")


def test_prometheus_knows_what_was_answered_and_what_was_refused(prometheus: Prometheus) -> None:
    prometheus.target()
    model = 'model="double",version="1"'
    assert prometheus.value(f'offramp_requests_total{{{model},status="ok"}}') == ANSWERED
    assert prometheus.value(f'offramp_requests_total{{{model},status="invalid_argument"}}') == 1
    assert prometheus.value(f"offramp_items_total{{{model}}}") == 1 + 2 + 3
    assert prometheus.value(f"offramp_request_duration_seconds_count{{{model}}}") == ANSWERED
    assert prometheus.value(f"offramp_model_ready{{{model}}}") == 1
    assert prometheus.value(f"sum(offramp_engine_info{{{model}}})") == 1
    assert prometheus.value("sum(offramp_workers)") >= 1
    assert prometheus.value("process_resident_memory_bytes") > 1 << 20


def test_a_query_of_a_triton_dashboard_finds_its_numbers(prometheus: Prometheus) -> None:
    prometheus.target()
    assert prometheus.value('nv_inference_request_success{model="double"}') == ANSWERED
    assert prometheus.value('nv_inference_count{model="double"}') == 1 + 2 + 3
    assert prometheus.value('sum by (model) (nv_inference_request_failure{model="double"})') == 1
    assert prometheus.value('nv_inference_request_duration_us{model="double"}') > 0


def test_quantiles_can_be_computed_from_the_histograms(prometheus: Prometheus) -> None:
    prometheus.target()
    median = "histogram_quantile(0.5, sum by (le) (offramp_request_duration_seconds_bucket))"
    assert 0 < prometheus.value(median) < 10


def test_prometheus_learns_the_types(prometheus: Prometheus) -> None:
    prometheus.target()
    types = prometheus.types()
    assert types["offramp_queue_items"] == "gauge"
    assert types["offramp_request_duration_seconds"] == "histogram"
    # Prometheus files a counter under its family or under its sample, depending on the format it was told in.
    assert "counter" in (types.get("offramp_requests"), types.get("offramp_requests_total"))


def test_promtool_has_nothing_to_say_about_a_live_server(served: Served) -> None:
    with urllib.request.urlopen(
        f"http://{served.http}/metrics?collect[]=offramp&collect[]=process", timeout=PATIENCE
    ) as page:
        text = page.read()
    assert b"offramp_requests_total" in text
    check = [installed("promtool"), "check", "metrics"]
    done = subprocess.run(check, input=text, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
