"""Routes of every kind, called by clients that know nothing of routes: Triton's and KServe's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from offramp_client import Client, InferResult, InvalidArgument
from route_models import KINDS, LABELS, ROUTES, ROWS, check, write_routes
from server_process import ServerProcess, serving
from triton_calls import tensor
from tritonclient.utils import InferenceServerException

SCRIPT = Path(__file__).with_name("kserve_routes.py")


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("routes")
    write_routes(repository)
    with serving(repository) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
def client(routes: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(routes.grpc) as client:
        yield client


def said(result: triton.InferResult) -> dict[str, str]:
    return {name: value.string_param for name, value in result.get_response().parameters.items()}


@pytest.mark.parametrize("name", ROUTES)
def test_triton_client_infers(client: triton.InferenceServerClient, name: str) -> None:
    for unit in ("ana", "ben", "cy", "dee"):
        result = client.infer(name, [tensor("x", ROWS, "FP32")], parameters={"offramp_unit": unit}, request_id="mine")
        check(name, result.as_numpy("logits"), said(result))
        assert (result.get_response().model_name, result.get_response().id) == (name, "mine")


def test_a_unit_stays_at_its_arm_and_units_are_spread(client: triton.InferenceServerClient) -> None:
    def arm(unit: int) -> str:
        parameters = {"offramp_unit": f"user-{unit}"}
        return said(client.infer("ab", [tensor("x", ROWS[:1], "FP32")], parameters=parameters))["offramp_arm"]

    first = [arm(unit) for unit in range(24)]
    assert first == [arm(unit) for unit in range(24)]
    assert set(first) == {"new", "old"}


@pytest.mark.parametrize("name", ROUTES)
def test_triton_client_gets_classes_by_their_labels(client: triton.InferenceServerClient, name: str) -> None:
    wanted = triton.InferRequestedOutput("logits", class_count=1)
    result = client.infer(name, [tensor("x", ROWS, "FP32")], outputs=[wanted])
    assert [row[0].decode().split(":")[1:] for row in result.as_numpy("logits")] == [["0", "cat"], ["1", "dog"]]


@pytest.mark.parametrize("name", ROUTES)
def test_triton_client_is_told_what_a_route_takes_and_what_it_is(
    client: triton.InferenceServerClient, name: str
) -> None:
    metadata = client.get_model_metadata(name)
    assert (metadata.name, list(metadata.versions)) == (name, ["1"])
    assert metadata.platform == f"offramp_route_{KINDS[name]}"
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [("x", "FP32", [-1, 3])]
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.outputs] == [("logits", "FP32", [-1, 3])]

    config = client.get_model_config(name).config
    assert (config.platform, config.backend) == (f"offramp_route_{KINDS[name]}", "offramp")
    assert json.loads(config.parameters["labels.logits"].string_value) == list(LABELS)
    steps = {step.model_name for step in config.ensemble_scheduling.step}
    assert steps == {
        "one": {"student"}, "blend": {"student", "teacher"}, "sure": {"student", "teacher"}, "ab": {"sure", "teacher"},
    }[name]  # fmt: skip
    assert client.is_model_ready(name)


def test_triton_client_sees_what_ran_in_the_statistics(client: triton.InferenceServerClient) -> None:
    def counts() -> dict[str, int]:
        return {row.name: row.inference_count for row in client.get_inference_statistics().model_stats}

    before = counts()
    client.infer("sure", [tensor("x", ROWS, "FP32")])
    after = counts()
    assert {name: after[name] - before.get(name, 0) for name in ("sure", "student", "teacher")} == {
        "sure": 2, "student": 2, "teacher": 1,
    }  # fmt: skip


def test_triton_client_lists_unloads_and_loads_routes(tmp_path: Path) -> None:
    write_routes(tmp_path)
    with serving(tmp_path, ["--in-process"]) as server, triton.InferenceServerClient(server.grpc) as client:
        assert {row.name for row in client.get_model_repository_index().models if row.state == "READY"} >= {*ROUTES}
        for name in ROUTES:
            client.unload_model(name)
            # What runs the route that went cannot answer without it.
            gone = {name, "ab"} if name == "sure" else {name}
            assert {route for route in ROUTES if not client.is_model_ready(route)} == gone
            with pytest.raises(InferenceServerException):
                client.infer(name, [tensor("x", ROWS, "FP32")])
            client.load_model(name)
            assert all(client.is_model_ready(route) for route in ROUTES)
            result = client.infer(name, [tensor("x", ROWS, "FP32")])
            check(name, result.as_numpy("logits"), said(result))


def test_settings_of_every_kind_count_for_the_next_request_and_go_back_to_the_file(tmp_path: Path) -> None:
    write_routes(tmp_path)
    with serving(tmp_path, ["--in-process"]) as server, Client(server.grpc) as client:

        def answer(name: str) -> InferResult:
            return client.infer(name, {"x": ROWS}, unit="ana")

        before = answer("blend")["logits"]
        assert client.update_route("blend", {"temperature.student": 5.0}).settings["temperature.student"] == 5.0
        assert np.abs(answer("blend")["logits"] - before).max() > 0.01

        assert answer("sure").path.exits == ("student", "teacher")
        client.update_route("sure", {"threshold.student": 1.1})
        assert answer("sure").path.exits == ("teacher", "teacher")
        client.update_route("sure", {"threshold.student": 0.0})
        assert answer("sure").path.exit == "student"

        for arm, other in (("new", "old"), ("old", "new")):
            client.update_route("ab", {f"weight.{arm}": 1.0, f"weight.{other}": 0.0})
            assert answer("ab").path.arm == arm
        with pytest.raises(InvalidArgument, match="every arm has weight 0"):
            client.update_route("ab", {"weight.old": 0.0})

        for name in ("blend", "sure", "ab"):
            assert client.reset_route(name).file_settings == {}
        np.testing.assert_array_equal(answer("blend")["logits"], before)
        assert answer("sure").path.exits == ("student", "teacher")
        assert [route.name for route in client.routes() if not route.settings] == ["one"]


def test_a_request_that_asks_for_what_a_route_cannot_do_is_told(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="offramp_max_exit") as caught:
        client.infer("sure", [tensor("x", ROWS, "FP32")], parameters={"offramp_max_exit": "nowhere"})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_kserve_client_infers(routes: ServerProcess) -> None:
    if sys.version_info >= (3, 14):
        pytest.skip("kserve declares no Python newer than 3.13")
    folders = [str(SCRIPT.parent), str(SCRIPT.parents[1] / "integration"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), routes.grpc],
        capture_output=True, text=True, timeout=150, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert {answer["name"] for answer in answers} == {*ROUTES}
    for answer in answers:
        assert answer["ready"]
        check(answer["name"], np.array(answer["logits"], np.float32), answer["parameters"])
