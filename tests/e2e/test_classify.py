"""Apps that send texts and pictures: tritonclient, the SDK and the command line against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from metrics_page import metric
from model_files import write_linear_onnx
from offramp_client import AsyncClient, Classification, Client, InvalidArgument
from offramp_client._transports import TransportName
from offramp_server.cli.main import main
from onnx import TensorProto, helper, numpy_helper
from pictures import encoded
from PIL import Image
from server_process import ServerProcess, serving
from text_models import write_sentiment, write_zero_shot
from triton_calls import tensor
from tritonclient.utils import InferenceServerException

DARK, LIGHT = np.full((4, 4), 20, np.uint8), np.full((4, 4), 230, np.uint8)


def write_brightness(repository: Path) -> None:
    """Pictures [1,4,4] to the sum of their darkness and that of their brightness."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["scores"]),
    ]
    constants = [
        numpy_helper.from_array(np.repeat(np.array([[-1, 1]], np.float32), 16, axis=0), "weight"),
        numpy_helper.from_array(np.array([16, 0], np.float32), "bias"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 4, 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "brightness", [image], [scores], constants)
    folder = repository / "brightness" / "1"
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (repository / "brightness" / "model.toml").write_text(
        '[[outputs]]\nname = "scores"\nlabels = ["dark", "light"]\n[preprocess]\nkind = "image"\n'
        '[metadata]\n"provenance.method" = "by hand"\n"provenance.metrics.accuracy" = "1.0"\ncolour = "grey"\n'
    )


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory, transport: dict[str, str]) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("classifiers")
    write_sentiment(repository)
    write_zero_shot(repository)
    write_brightness(repository)
    write_linear_onnx(repository / "linear" / "1" / "model.onnx")
    with serving(repository, environment=transport) as server:
        yield server
        assert server.stop() == 0


class Blocking:
    """The asyncio client with the blocking one's manners."""

    def __init__(self, target: str, transport: TransportName) -> None:
        self._target = target
        self._transport = transport

    def classify(self, *arguments: Any, **options: Any) -> Any:
        async def call() -> Any:
            async with AsyncClient(self._target, transport=self._transport) as client:
                return await client.classify(*arguments, **options)

        return asyncio.run(call())


@pytest.fixture(params=["blocking", "asyncio", "blocking native", "asyncio native"])
def client(request: pytest.FixtureRequest, classifiers: ServerProcess) -> Iterator[Any]:
    transport: TransportName = "native" if request.param.endswith("native") else "grpcio"
    if request.param.startswith("asyncio"):
        yield Blocking(classifiers.grpc, transport)
        return
    with Client(classifiers.grpc, transport=transport) as client:
        yield client


@pytest.fixture(scope="module")
def triton_client(classifiers: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(classifiers.grpc) as client:
        yield client


def bytes_input(name: str, *elements: str | bytes) -> triton.InferInput:
    raw = [element.encode() if isinstance(element, str) else element for element in elements]
    return tensor(name, np.array(raw, dtype=object).reshape(-1, 1), "BYTES")


# The SDK


def test_texts_are_classified(client: Any) -> None:
    found = client.classify("sentiment", text="good good film")
    assert isinstance(found, Classification)
    assert [(score.label, score.score, score.index) for score in found] == [("good", 2.0, 1), ("bad", 0.0, 0)]
    assert [item.label for item in client.classify("sentiment", text=["good", "bad"])] == ["good", "bad"]
    assert (found.model_name, found.model_version) == ("sentiment", "1")


def test_more_texts_than_fit_a_batch_are_classified(client: Any) -> None:
    texts = ["good", "bad", "bad"] * 20
    assert [item.label for item in client.classify("sentiment", text=texts, top_k=1)] == texts


@pytest.mark.parametrize("form", ["bytes", "path", "array", "pillow"])
def test_pictures_are_classified_in_whatever_form_they_are(client: Any, form: str, tmp_path: Path) -> None:
    (tmp_path / "light.png").write_bytes(encoded(LIGHT))
    forms: dict[str, Callable[[], Any]] = {
        "bytes": lambda: encoded(LIGHT, "JPEG"),
        "path": lambda: tmp_path / "light.png",
        "array": lambda: LIGHT,
        "pillow": lambda: Image.fromarray(LIGHT),
    }
    found = client.classify("brightness", image=forms[form]())
    assert found.label == "light"
    assert found.score == pytest.approx(16 * 230 / 255, rel=0.02)
    assert [item.label for item in client.classify("brightness", image=[DARK, LIGHT])] == ["dark", "light"]


def test_texts_are_classified_by_labels_that_come_with_them(client: Any) -> None:
    assert client.classify("topics", text="film").label == "movies"
    found = client.classify("topics", text="good", labels=["bad", "good", "book"])
    assert (found.label, found.index, found.output) == ("good", 1, "probabilities")
    assert sum(score.score for score in found) == pytest.approx(1, abs=1e-4)


def test_what_cannot_be_classified_is_said_in_a_sentence(client: Any) -> None:
    with pytest.raises(InvalidArgument, match=r'model "linear" takes x: FP32\[4\], not text: its model.toml needs'):
        client.classify("linear", text="good")
    with pytest.raises(InvalidArgument, match='model "sentiment" takes text, not pictures'):
        client.classify("sentiment", image=LIGHT)
    with pytest.raises(InvalidArgument, match='model "sentiment" has labels of its own'):
        client.classify("sentiment", text="good", labels=["a", "b"])
    with pytest.raises(InvalidArgument, match='input "image_bytes", item 1: expected a JPEG or PNG file'):
        client.classify("brightness", image=[LIGHT, b"GIF89a"])
    with pytest.raises(InvalidArgument, match="expected a JSON list of 2 to 256 different strings"):
        client.classify("topics", text="good", labels=["only one"])


def test_provenance_can_be_read(classifiers: ServerProcess) -> None:
    with Client(classifiers.grpc) as client:
        config = client.model_config("brightness")
        assert config.provenance == {"method": "by hand", "metrics.accuracy": "1.0"}
        assert config.parameters["colour"] == "grey"
        assert config.labels == {"scores": ("dark", "light")}
        assert len(config.parameters["sha256"]) == 64


# Triton's client


def test_triton_s_client_sends_texts_as_bytes(triton_client: triton.InferenceServerClient) -> None:
    metadata = triton_client.get_model_metadata("sentiment")
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [("text", "BYTES", [-1, 1])]
    result = triton_client.infer("sentiment", [bytes_input("text", "good film", "bad bad")])
    np.testing.assert_array_equal(result.as_numpy("logits"), [[0, 1], [2, 0]])


def test_triton_s_client_sends_pictures_as_bytes(triton_client: triton.InferenceServerClient) -> None:
    [config] = triton_client.get_model_config("brightness").config.input
    assert (config.name, list(config.dims)) == ("image_bytes", [1])
    result = triton_client.infer("brightness", [bytes_input("image_bytes", encoded(LIGHT), encoded(DARK))])
    scores = result.as_numpy("scores")
    np.testing.assert_allclose(scores[:, 1], [16 * 230 / 255, 16 * 20 / 255], rtol=1e-5)


def test_triton_s_client_may_still_send_tensors(triton_client: triton.InferenceServerClient) -> None:
    pixels = np.ones((3, 1, 4, 4), np.float32)
    scores = triton_client.infer("brightness", [tensor("image", pixels, "FP32")]).as_numpy("scores")
    np.testing.assert_array_equal(scores, [[0, 16]] * 3)


def test_triton_s_classification_extension_answers_with_the_labels_of_the_request(
    triton_client: triton.InferenceServerClient,
) -> None:
    wanted = [triton.InferRequestedOutput("probabilities", class_count=2)]
    inputs = [bytes_input("text", "film")]
    own = triton_client.infer("topics", inputs, outputs=wanted)
    assert [row.decode().split(":")[2] for row in own.as_numpy("probabilities")[0]] == ["movies", "reading"]
    labels = json.dumps(["good", "bad", "film"])
    given = triton_client.infer("topics", inputs, outputs=wanted, parameters={"offramp_labels": labels})
    assert given.as_numpy("probabilities")[0][0].decode().split(":")[1:] == ["2", "film"]
    assert json.loads(given.get_response().parameters["offramp_labels"].string_param) == ["good", "bad", "film"]


@pytest.mark.parametrize(
    ("model", "inputs", "sentence"),
    [
        ("sentiment", [bytes_input("text", "good", b"\xff\xfe")], 'input "text", item 1: expected UTF-8'),
        ("brightness", [bytes_input("image_bytes", b"")], 'input "image_bytes", item 0: expected a JPEG or PNG file'),
        ("brightness", [bytes_input("image_bytes", encoded(LIGHT)[:40])], 'input "image_bytes", item 0: '),
        ("brightness", [tensor("image_bytes", np.zeros((1, 1), np.float32), "FP32")], "expected BYTES[-1,1]"),
    ],
)
def test_what_cannot_be_prepared_is_an_invalid_argument(
    model: str, inputs: list[triton.InferInput], sentence: str, triton_client: triton.InferenceServerClient
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        triton_client.infer(model, inputs)
    assert caught.value.status() == str(grpc.StatusCode.INVALID_ARGUMENT)
    assert sentence in caught.value.message()


# The command line and the metrics


def test_the_command_line_sends_files_as_they_are(
    classifiers: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "light.png").write_bytes(encoded(LIGHT))
    (tmp_path / "review.txt").write_text("bad film\n")
    assert main(["infer", "brightness", str(tmp_path / "light.png"), "--target", classifiers.grpc]) == 0
    assert "light" in capsys.readouterr().out
    assert main(["infer", "sentiment", str(tmp_path / "review.txt"), "--target", classifiers.grpc]) == 0
    assert "bad" in capsys.readouterr().out


def test_the_command_line_names_the_labels_that_it_was_given(
    classifiers: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "review.txt").write_text("bad")
    labels = 'offramp_labels=["good", "bad", "book"]'
    assert (
        main(["infer", "topics", str(tmp_path / "review.txt"), "--parameter", labels, "--target", classifiers.grpc])
        == 0
    )
    shown = capsys.readouterr().out
    assert "movies" not in shown
    assert shown.index("     1  bad") < shown.index("     0  good")


def test_the_command_line_tells_where_a_model_comes_from(
    classifiers: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "list", "--verbose", "--target", classifiers.grpc]) == 0
    shown = capsys.readouterr().out
    assert "\nbrightness 1\n  " in shown
    assert "\n  provenance.method = by hand\n" in shown
    assert '\n  labels.scores = ["dark", "light"]\n' in shown
    assert main(["models", "list", "--verbose", "--json", "--target", classifiers.grpc]) == 0
    found = {entry["name"]: entry["parameters"] for entry in json.loads(capsys.readouterr().out)}
    assert found["brightness"]["provenance.metrics.accuracy"] == "1.0"
    assert found["topics"]["zero_shot"] == '["{}"]'


def test_preparing_shows_in_the_metrics(classifiers: ServerProcess) -> None:
    with Client(classifiers.grpc) as client:
        before = metric(classifiers, "offramp_preprocess_seconds_count", model="sentiment", version="1")
        client.classify("sentiment", text=["good", "bad"])
        assert metric(classifiers, "offramp_preprocess_seconds_count", model="sentiment", version="1") == before + 1
