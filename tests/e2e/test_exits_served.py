"""Stages of a network and zero-shot classifiers, as the compression library writes them, served by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from eventually import PATIENCE
from exit_networks import encoder, tokens
from offramp_client import Client
from offramp_compression.exits.attach import attach
from offramp_compression.exits.segments import export_segments
from offramp_compression.export.program import text_lengths
from offramp_compression.export.publish import Target
from offramp_compression.network import Network
from offramp_compression.zero_shot.classifier import ZeroShotClassifier
from offramp_compression.zero_shot.export import export_zero_shot
from server_process import serving
from test_compression_zero_shot import SETTINGS, TEXTS, tiny_encoder

pytestmark = pytest.mark.timeout(540)


@pytest.fixture(scope="module")
def exits() -> Network:
    return attach(encoder(), ["encoder.layers.1"], tokens())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, exits: Network) -> Iterator[Client]:
    repository: Path = tmp_path_factory.mktemp("models")
    variable = text_lengths(exits.input_names, tokens())
    for format in ("pt2", "onnx"):
        export_segments(exits, tokens(), Target(repository, f"net-{format}", format), variable=variable)
    export_zero_shot(ZeroShotClassifier(tiny_encoder(), SETTINGS), TEXTS, Target(repository, "topics", "onnx"))
    with serving(repository, []) as server, Client(server.grpc, timeout=PATIENCE) as client:
        yield client


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize(("rows", "length"), [(1, 4), (6, 12)])
def test_stages_that_are_asked_in_turn_answer_as_the_whole_network(
    client: Client, exits: Network, format: str, rows: int, length: int
) -> None:
    inputs = tokens(rows, length)
    with torch.inference_mode():
        expected = [logits.numpy() for logits in exits.module(*inputs)]
    given = dict(zip(exits.input_names, (tensor.numpy() for tensor in inputs), strict=True))
    whole = client.infer(f"net-{format}", given)
    for number in (1, 2):
        answer = client.infer(f"net-{format}-stage{number}", given)
        np.testing.assert_allclose(answer["logits"], expected[number - 1], atol=1e-4)
        np.testing.assert_allclose(whole[f"logits_{number}"], expected[number - 1], atol=1e-4)
        given = {name: answer[name] for name in answer.outputs if name != "logits"}
    assert given == {}


def test_a_client_sees_which_network_a_stage_is_of(client: Client, exits: Network) -> None:
    provenance = client.model_config("net-onnx-stage2").provenance
    assert (provenance["settings.network"], provenance["settings.stage"]) == ("net-onnx", "2")
    assert provenance["settings.weights"] == exits.digest()


@pytest.mark.parametrize("labels", [None, ["the bank", "a team", "losses"]])
def test_a_zero_shot_classifier_is_served_for_its_own_labels_and_for_a_requests(
    client: Client, labels: list[str] | None
) -> None:
    settings = SETTINGS if labels is None else type(SETTINGS)(tuple(labels), templates=SETTINGS.templates)
    logits = ZeroShotClassifier(tiny_encoder(), settings).logits([TEXTS[0]])[0]
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    found = client.classify("topics", text=TEXTS[0], top_k=len(expected), labels=labels)
    assert {each.label for each in found} == set(settings.labels)
    by_label = {each.label: each.score for each in found}
    np.testing.assert_allclose([by_label[label] for label in settings.labels], expected, atol=1e-4)
