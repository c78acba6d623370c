"""A network with exits, as it is exported, is an early-exit route."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from classifiers import write_route
from exit_models import exit_route
from exit_networks import encoder, tokens
from offramp_compression.exits.attach import attach
from offramp_compression.exits.segments import export_segments
from offramp_compression.export.publish import Target
from offramp_server.core import serve_in_process
from offramp_server.inference import InferRequest
from open_inference.tensor import Tensor


def sure(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    highest: np.ndarray = powers.max(axis=1) / powers.sum(axis=1)
    return highest


async def test_an_exported_network_answers_each_text_at_the_exit_that_is_sure_of_it(repository: Path) -> None:
    network = attach(encoder(), ["encoder.layers.1"], tokens())
    lengths = {"input_ids": [1], "attention_mask": [1]}
    export_segments(network, tokens(), Target(repository, "net", "pt2", backend="torch-eager"), variable=lengths)
    asked = tokens(8, 5)
    with torch.inference_mode():
        first, last = (logits.numpy() for logits in network.module(*asked))
    # Between the fourth and the fifth of eight.
    threshold = float(np.sort(sure(first))[3:5].mean())
    write_route(repository, "r", exit_route(["net-stage1", "net-stage2"], [threshold]))
    async with serve_in_process(repository) as serving:
        names = ("input_ids", "attention_mask")
        inputs = [Tensor.from_numpy(name, each.numpy()) for name, each in zip(names, asked, strict=True)]
        response = await serving.infer(InferRequest("r", inputs))
        labels = serving.endpoint("r").outputs[0].labels
    early = sure(first) >= threshold
    assert response.parameters["offramp_exit"] == ",".join("net-stage1" if each else "net-stage2" for each in early)
    [output] = response.outputs
    np.testing.assert_allclose(output.numpy(), np.where(early[:, None], first, last), atol=1e-5)
    assert labels == ("a", "b", "c")
