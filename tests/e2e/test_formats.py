"""What a model file may look like, what is refused and why, and that one bad model harms no other."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from eventually import PATIENCE, eventually
from metrics_page import metric
from model_files import export_add_sub, export_linear, write_add_sub_onnx, write_linear_onnx
from offramp_client import Client, aio, errors
from server_process import ServerProcess, serving
from shared_models import EAGER, make_hostile, write_manifest
from traffic import Traffic

ROW = np.arange(16, dtype=np.int32).reshape(1, 16)
OPERANDS = {"INPUT0": ROW, "INPUT1": ROW}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.grpc, timeout=PATIENCE) as client:
        yield client


# Shapes


@pytest.mark.parametrize("length", [1, 7, 64])
@pytest.mark.parametrize("rows", [1, 5])
def test_several_inputs_and_outputs_may_share_a_variable_dimension(client: Client, length: int, rows: int) -> None:
    random = np.random.default_rng(length)
    tokens = random.standard_normal((rows, length, 4), dtype=np.float32)
    mask = random.integers(0, 2, (rows, length)).astype(np.float32)

    result = client.infer("sequence", {"tokens": tokens, "mask": mask})

    np.testing.assert_allclose(result["output0"], (tokens * mask[:, :, None]).sum(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["output1"], tokens.sum(2), rtol=1e-4, atol=1e-5)


def test_a_variable_dimension_has_the_bounds_of_the_export_and_is_the_same_everywhere(client: Client) -> None:
    def infer(tokens: int, mask: int) -> None:
        client.infer(
            "sequence", {"tokens": np.zeros((1, tokens, 4), np.float32), "mask": np.zeros((1, mask), np.float32)}
        )

    with pytest.raises(errors.InvalidArgument, match="from 1 to 64, got 65"):
        infer(65, 65)
    with pytest.raises(errors.InvalidArgument, match="expected the same"):
        infer(5, 6)


async def test_requests_of_different_lengths_do_not_disturb_each_other(server: ServerProcess) -> None:
    async with aio.Client(server.grpc, timeout=PATIENCE) as client:

        async def call(length: int) -> None:
            tokens = np.full((1, length, 4), length, np.float32)
            result = await client.infer("sequence", {"tokens": tokens, "mask": np.ones((1, length), np.float32)})
            assert result["output0"].tolist() == [[length * length] * 4]
            assert result["output1"].tolist() == [[4.0 * length] * length]

        lengths = iter(range(1, 1000))
        async with Traffic(lambda: call(1 + next(lengths) % 20), callers=8) as traffic:
            await traffic.more(200)


def test_a_model_without_a_batch_dimension_is_served_one_request_at_a_time(client: Client) -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(client.infer("unbatched", {"x": values})["y"], values)
    assert client.model_metadata("unbatched").inputs[0].shape == (2, -1)
    with pytest.raises(errors.InvalidArgument, match=r"expected FP32\[2,-1\], got FP32\[4,4\]"):
        client.infer("unbatched", {"x": np.zeros((4, 4), np.float32)})


# Refused files


@dataclass(frozen=True)
class Mixed:
    """A server of good and of bad models, and where they lie."""

    server: ServerProcess
    client: Client
    repository: Path
    # A hostile file would make this one if it were unpickled.
    marker: Path

    def reasons(self) -> dict[str, str]:
        """Why each model is not ready; "" if it is."""
        index = self.client.repository_index()
        return {entry.name: "" if entry.state == "READY" else f"{entry.state}: {entry.reason}" for entry in index}


def write_unknown_operator(path: Path) -> None:
    """A file that nothing is wrong with until an engine looks at its graph."""
    write_add_sub_onnx(path)
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    repository, marker = tmp_path_factory.mktemp("mixed"), tmp_path_factory.mktemp("marker") / "marker"
    for name in ("good", "manifested", "tampered"):
        write_add_sub_onnx(repository / name / "1" / "model.onnx")
    write_manifest(repository / "manifested")
    write_manifest(repository / "tampered")
    write_linear_onnx(repository / "tampered" / "1" / "model.onnx")
    export_linear(repository / "hostile" / "1" / "model.pt2")
    make_hostile(repository / "hostile" / "1" / "model.pt2", marker)
    export_linear(repository / "cut" / "1" / "model.pt2")
    with (repository / "cut" / "1" / "model.pt2").open("r+b") as file:
        file.truncate(1000)
    write_add_sub_onnx(repository / "misspelt" / "1" / "model.onnx")
    (repository / "misspelt" / "model.toml").write_text("max_bach_size = 4\n")
    (repository / "empty" / "1").mkdir(parents=True)
    write_unknown_operator(repository / "unrunnable" / "1" / "model.onnx")
    with serving(repository, ["--in-process"]) as server, Client(server.grpc, timeout=PATIENCE) as client:
        yield Mixed(server, client, repository, marker)


def test_the_good_models_are_served_beside_the_bad_ones(mixed: Mixed) -> None:
    assert mixed.server.models == 2
    for model in ("good", "manifested"):
        np.testing.assert_array_equal(mixed.client.infer(model, OPERANDS)["OUTPUT0"], 2 * ROW)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("tampered", "model.onnx: sha256"),
        ("hostile", 'its pickle would call "posix.system"'),
        ("cut", "model.pt2"),
        ("misspelt", 'did you mean "max_batch_size"?'),
        ("empty", "expected model.pt2 or model.onnx"),
        ("unrunnable", "ONNX Runtime cannot load model.onnx"),
    ],
)
def test_the_index_says_why_a_model_is_not_served_and_so_does_a_request(mixed: Mixed, model: str, reason: str) -> None:
    assert mixed.reasons()[model].startswith("UNAVAILABLE: ")
    assert reason in mixed.reasons()[model]
    with pytest.raises(errors.NotFound) as caught:
        mixed.client.infer(model, OPERANDS)
    assert reason in str(caught.value)
    with pytest.raises(errors.FailedPrecondition) as refused:
        mixed.client.load_model(model)
    assert reason in str(refused.value)


def test_a_hostile_file_does_not_run(mixed: Mixed) -> None:
    with pytest.raises(errors.FailedPrecondition):
        mixed.client.load_model("hostile")
    assert not mixed.marker.exists()


def test_each_model_has_one_entry_in_the_index(mixed: Mixed) -> None:
    names = [entry.name for entry in mixed.client.repository_index()]
    assert sorted(names) == sorted(set(names))


def test_a_model_that_is_put_right_can_be_loaded(mixed: Mixed) -> None:
    shutil.copy(mixed.repository / "good" / "1" / "model.onnx", mixed.repository / "tampered" / "1" / "model.onnx")
    write_manifest(mixed.repository / "tampered")

    mixed.client.load_model("tampered")

    assert mixed.reasons()["tampered"] == ""
    np.testing.assert_array_equal(mixed.client.infer("tampered", OPERANDS)["OUTPUT1"], 0 * ROW)


# A worker that runs torch


async def test_killing_a_torch_worker_under_load_fails_no_request(tmp_path: Path) -> None:
    export_add_sub(tmp_path / "add_sub" / "1" / "model.pt2")
    with (tmp_path / "add_sub" / "model.toml").open("a") as toml:
        toml.write(EAGER)
    with serving(tmp_path) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:

            async def call() -> None:
                result = await client.infer("add_sub", OPERANDS)
                np.testing.assert_array_equal(result["OUTPUT0"], 2 * ROW)

            async with Traffic(call, callers=8) as traffic:
                await traffic.more(50)
                await eventually(lambda: metric(server, "offramp_workers", state="standby") == 1)
                os.kill(server.worker_pids()[0], signal.SIGKILL)
                await eventually(lambda: metric(server, "offramp_worker_restarts_total", reason="signal_9") == 1)
                await traffic.more(200)
        assert metric(server, "offramp_requests_total", model="add_sub", status="ok") == traffic.answered
        assert server.stop() == 0
