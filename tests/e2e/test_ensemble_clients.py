"""Ensembles as third-party clients see them: called like a model, described like Triton's own ensembles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from classifiers import write_classifier, write_route
from server_process import ServerProcess, serving
from triton_calls import tensor
from tritonclient.utils import InferenceServerException

LABELS = ("cat", "dog", "owl")
RANDOM = np.random.default_rng(4)
WEIGHTS = {name: RANDOM.normal(size=(6, 3)) for name in ("small", "large")}
ROWS = RANDOM.normal(size=(5, 6)).astype(np.float32)
ROUTE = 'kind = "ensemble"\n[[members]]\nmodel = "small"\n[[members]]\nmodel = "large"\nversion = 1\n'


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With worker processes."""
    repository = tmp_path_factory.mktemp("ensembles")
    write_all(repository)
    with serving(repository) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def client(ensemble: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(ensemble.grpc) as client:
        yield client


def write_all(repository: Path) -> None:
    write_classifier(repository, "small", WEIGHTS["small"], labels=LABELS)
    write_classifier(repository, "large", WEIGHTS["large"], config="max_batch_size = 8")
    write_route(repository, "both", ROUTE)


def mean() -> np.ndarray:
    powers = [np.exp(ROWS.astype(np.float64) @ weights) for weights in WEIGHTS.values()]
    result: np.ndarray = sum(each / each.sum(axis=1, keepdims=True) for each in powers) / len(powers)
    return result


def test_an_ensemble_is_called_like_a_model(client: triton.InferenceServerClient) -> None:
    result = client.infer("both", [tensor("x", ROWS, "FP32")], model_version="1", request_id="mine")
    logits = result.as_numpy("logits")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(np.exp(logits), mean(), rtol=1e-5)
    parameters = result.get_response().parameters
    assert parameters["offramp_models"].string_param == "small:1,large:1"
    assert [float(each) for each in parameters["offramp_confidence"].string_param.split(",")] == pytest.approx(
        mean().max(axis=1).tolist(), rel=1e-3
    )


def test_the_classification_extension_names_the_ensembles_classes(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("logits", class_count=1)]
    result = client.infer("both", [tensor("x", ROWS, "FP32")], outputs=wanted)
    named = [each.decode().split(":")[2] for each in result.as_numpy("logits").reshape(-1)]
    assert named == [LABELS[best] for best in mean().argmax(axis=1)]


def test_metadata_and_configuration_describe_an_ensemble_and_what_it_is_composed_of(
    client: triton.InferenceServerClient,
) -> None:
    metadata = client.get_model_metadata("both", as_json=True)
    assert metadata["platform"] == "offramp_route_ensemble"
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "6"]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["-1", "3"]}]
    config = client.get_model_config("both").config
    # As large as the smallest of the members.
    assert config.max_batch_size == 8
    assert config.WhichOneof("scheduling_choice") == "ensemble_scheduling"
    steps = config.ensemble_scheduling.step
    assert [(step.model_name, dict(step.input_map), dict(step.output_map)) for step in steps] == [
        ("small", {"x": "x"}, {"logits": "logits"}),
        ("large", {"x": "x"}, {"logits": "logits"}),
    ]
    index = {entry.name: entry.state for entry in client.get_model_repository_index().models}
    assert index == {"both": "READY", "small": "READY", "large": "READY"}


def test_statistics_count_the_ensemble_and_the_models_that_it_is_composed_of(
    client: triton.InferenceServerClient,
) -> None:
    def items(name: str) -> int:
        [stats] = client.get_inference_statistics(name).model_stats
        return int(stats.inference_count)

    before = {name: items(name) for name in ("both", "small", "large")}
    client.infer("both", [tensor("x", ROWS, "FP32")])
    assert {name: items(name) - count for name, count in before.items()} == {"both": 5, "small": 5, "large": 5}
    client.infer("both", [tensor("x", ROWS, "FP32")], parameters={"offramp_route": "model:small"})
    assert {name: items(name) - count for name, count in before.items()} == {"both": 10, "small": 10, "large": 5}


def test_what_does_not_fit_is_refused_as_by_a_model(client: triton.InferenceServerClient) -> None:
    nine = np.zeros((9, 6), np.float32)
    for rows, sentence in (
        (ROWS[:, :4], r"expected FP32\[-1,6\], got FP32\[5,4\]"),
        (nine, "batch size from 1 to 8, got 9"),
    ):
        with pytest.raises(InferenceServerException, match=sentence) as caught:
            client.infer("both", [tensor("x", rows, "FP32")])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_the_same_requests_in_the_same_order_are_answered_with_the_same_bits_by_another_server(
    client: triton.InferenceServerClient, tmp_path: Path
) -> None:
    write_all(tmp_path)

    def answers(client: triton.InferenceServerClient) -> list[bytes]:
        return [
            client.infer("both", [tensor("x", ROWS[:count], "FP32")]).as_numpy("logits").tobytes()
            for count in (1, 5, 3, 1)
        ]

    with serving(tmp_path) as server, triton.InferenceServerClient(server.grpc) as other:
        assert answers(other) == answers(client)


def test_an_ensemble_is_loaded_reloaded_and_unloaded_like_a_model(tmp_path: Path) -> None:
    write_all(tmp_path)
    with serving(tmp_path, ["--in-process"]) as server, triton.InferenceServerClient(server.grpc) as client:

        def answer() -> np.ndarray:
            logits: np.ndarray = client.infer("both", [tensor("x", ROWS, "FP32")]).as_numpy("logits")
            return logits

        before = answer()
        write_route(tmp_path, "both", f'combine = "vote"\n{ROUTE}')
        client.load_model("both")
        assert not np.array_equal(answer(), before)
        write_route(tmp_path, "both", f"quorum = 5\n{ROUTE}")
        with pytest.raises(InferenceServerException, match="quorum: expected 1 to 2"):
            client.load_model("both")
        # What was there goes on answering.
        assert client.is_model_ready("both")
        client.unload_model("both")
        assert not client.is_model_ready("both")
