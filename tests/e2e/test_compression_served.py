"""What the compression library writes into a repository, served by worker processes and asked through the SDK."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from eventually import PATIENCE, eventually
from offramp_client import Client
from offramp_compression.data.dataset import tensors
from offramp_compression.evaluation.predict import Logits, predict
from offramp_compression.export.formats import FORMATS
from offramp_compression.export.publish import Target, export_network
from offramp_compression.quantization.quantize import quantize
from offramp_compression.quantization.sensitivity import logits
from quantization_fakes import CLASS_NAMES, bands, learn, network_of, trained
from server_process import ServerProcess, serving

UNSEEN = bands(48, seed=5)
(IMAGES,) = (tensor.numpy() for tensor in tensors(UNSEEN))

pytestmark = pytest.mark.timeout(540)


@dataclass(frozen=True)
class Served:
    repository: Path
    server: ServerProcess
    # What each model answered where it was made.
    expected: dict[str, Logits]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A network in float and in INT8, each as .pt2 and as .onnx."""
    repository = tmp_path_factory.mktemp("students")
    torch.set_num_threads(1)
    expected = {}
    for format in FORMATS:
        export_network(trained(), tensors(UNSEEN), Target(repository, f"float-{format}", format, manifest=True))
        expected[f"float-{format}"] = predict(trained().module, UNSEEN)
        quantized = quantize(trained(), bands(), format)
        quantized.publish(tensors(UNSEEN), Target(repository, f"int8-{format}", format, manifest=True))
        expected[f"int8-{format}"] = logits(quantized.model.answer, UNSEEN)
    with serving(repository, ["--poll-interval=0.1"]) as server:
        yield Served(repository, server, expected)
        assert server.stop() == 0


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.server.grpc, timeout=PATIENCE) as client:
        yield client


def ask(client: Client, model: str, rows: int = 16) -> Logits:
    parts = [client.infer(model, {"image": IMAGES[at : at + rows]})["logits"] for at in range(0, len(IMAGES), rows)]
    return np.concatenate(parts)


@pytest.mark.parametrize("model", ["float-pt2", "float-onnx", "int8-pt2", "int8-onnx"])
@pytest.mark.parametrize("rows", [1, 16])
def test_every_model_answers_as_it_did_where_it_was_made(served: Served, client: Client, model: str, rows: int) -> None:
    answers = ask(client, model, rows)
    # Where a sum lies between two integers, another order of adding may round it the other way.
    atol = 1e-3 if model.startswith("float") else 0.1
    np.testing.assert_allclose(answers, served.expected[model], rtol=1e-3, atol=atol)
    assert (answers.argmax(1) == UNSEEN.labels).mean() > 0.95


def test_a_client_sees_labels_and_where_a_model_comes_from(client: Client) -> None:
    config = client.model_config("int8-onnx")
    assert config.labels == {"logits": CLASS_NAMES}
    assert config.provenance["method"] == "quantize"
    assert config.provenance["data_digest"] == bands().digest()
    assert config.provenance["parents"] == trained().digest()
    assert float(config.parameters["parity.argmax_agreement"]) >= 0.95


async def test_a_server_that_watches_goes_over_to_a_new_version_that_is_whole(served: Served, client: Client) -> None:
    torch.manual_seed(1)
    other = learn(network_of(trained().blueprint.build(), trained().blueprint), bands(seed=9))
    exported = export_network(other, tensors(UNSEEN), Target(served.repository, "float-onnx", "onnx"))
    assert exported.folder.name == "2"
    await eventually(lambda: client.infer("float-onnx", {"image": IMAGES[:1]}).model_version == "2")
    np.testing.assert_allclose(ask(client, "float-onnx"), predict(other.module, UNSEEN), rtol=1e-3, atol=1e-3)
