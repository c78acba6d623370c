"""What a reader of the scaling report relies on: what grows is what is measured, and failures are seen."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.cpu import tree_memory_bytes
from benchmarks.harness.environments import NotRunnableError
from benchmarks.harness.load import GrpcClient, Load
from benchmarks.harness.samples import Sample
from benchmarks.harness.scaling import Dimension, Growth, Measured, Point, Scaling, Setup, Started
from benchmarks.harness.scaling_report import draw, in_bytes, section
from benchmarks.harness.workloads import Workload
from benchmarks.scaling import copy, dimension_names, traffic, wide
from benchmarks.servers.base import Launch, Server
from benchmarks.servers.echo import GrpcAioEcho

ONES = np.ones((16, 4), np.float32)
WORKLOAD = Workload("identity", Path("identity.pt2"), ONES, ONES)
SAMPLE = Sample("A", "identity", 1, 0, 100.0, 1.0, 2.0, 400.0, 50.0, 0.0, 100)


class Absent(Server):
    name = "absent"

    def install(self) -> None:
        raise NotRunnableError("no such wheel")

    def versions(self) -> dict[str, str]:
        return {}

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        raise AssertionError("never started")


class Steady:
    name = "steady"

    def run(self, target: str, workload: Workload, concurrency: int, calls: int) -> Load:
        return Load(calls / 1000.0, np.full(calls, 1e-3), 0.0)


def dimension(setups: Sequence[Setup], servers: Sequence[Server] = ()) -> Dimension:
    return Dimension("items", "Items", "items", setups, lambda: servers, with_bare_compute=False)


def test_every_point_is_measured_in_every_round_and_a_server_that_cannot_run_has_its_reason(tmp_path: Path) -> None:
    points = [Point(count, replace(WORKLOAD, items=count), 1) for count in (1, 4)]
    growing = dimension([Setup([WORKLOAD], points)], [GrpcAioEcho(), Absent()])
    growth = Scaling(Steady(), rounds=2, seconds=0.01, directory=tmp_path).run(growing)
    assert growth.not_run == {"absent": "no such wheel"}
    assert [(each.x, each.sample.round) for each in growth.measured] == [(1, 0), (1, 1), (4, 0), (4, 1)]
    [started] = growth.started
    assert started.ready_s > 0
    assert started.memory_mib > 1


def test_requests_to_all_models_name_each_of_them_in_turn() -> None:
    loaded = [replace(WORKLOAD, program=Path(f"copy-{number}.pt2")) for number in range(3)]
    to_one, to_all = traffic(loaded)
    assert (to_one.x, to_all.x) == (3, 3)
    assert isinstance(to_all.generator(Steady()), GrpcClient)
    assert [each.model for each in to_one.spread] == ["copy-0"]
    assert [each.model for each in to_all.spread] == ["copy-0", "copy-1", "copy-2"]


def test_one_loaded_model_has_no_others_to_spread_over() -> None:
    assert [point.series for point in traffic([WORKLOAD])] == ["to one"]


def test_a_copy_of_a_model_is_the_same_file_under_another_name(tmp_path: Path) -> None:
    for suffix in (".pt2", ".onnx"):
        (tmp_path / f"mlp{suffix}").write_text(suffix)
    copied = copy(replace(WORKLOAD, program=tmp_path / "mlp.onnx"), tmp_path / "copy-1")
    assert copied.model == "copy-1"
    assert (copied.program.read_text(), copied.exported.read_text()) == (".onnx", ".pt2")


def test_a_tensor_of_so_many_bytes_is_sent_and_expected_back() -> None:
    workload = wide(WORKLOAD, 4096)
    assert workload.answer_bytes == 4096
    assert 4096 < len(workload.request(0)) < 4096 + 200
    assert workload.input_dims == [-1]


@pytest.mark.parametrize(("count", "text"), [(512, "512 B"), (4096, "4 KiB"), (16 * 2**20, "16 MiB")])
def test_sizes_are_shown_in_the_unit_that_suits_them(count: int, text: str) -> None:
    assert in_bytes(count) == text


def test_the_report_has_items_per_second_where_a_request_holds_several(tmp_path: Path) -> None:
    growing = replace(dimension([]), rate_title="items per s", rate_factor=lambda items: items, starts_matter=True)
    growth = Growth("items", [Measured(4, "", SAMPLE), Measured(4, "to all", SAMPLE)], [Started(4, "A", 1.5, 200.0)])
    growth.not_run["B"] = "ended with status 1"
    report = " ".join(section(growing, growth, "items.png").split())
    assert "| 4 | A | 400.0 | 1.00 | 2.00 | 400 |" in report
    assert "| 4 | A, to all | 400.0 |" in report
    assert "| 4 | A | 1.5 | 200 |" in report
    assert "ended with status 1" in report
    draw(growing, growth, tmp_path / "items.png")
    assert (tmp_path / "items.png").stat().st_size > 1000


def test_an_unknown_dimension_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ArgumentTypeError, match="unknown dimension 'batches': expected some of batch, size, models"):
        dimension_names("batches")


def test_a_process_that_has_gone_holds_no_memory() -> None:
    assert tree_memory_bytes(2**22 + 1) == 0
