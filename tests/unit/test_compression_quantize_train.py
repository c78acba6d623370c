"""Fine-tuning with rounding in the loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from offramp_compression.data.batches import Batches
from offramp_compression.data.dataset import tensors
from offramp_compression.evaluation.predict import predict
from offramp_compression.export.formats import Format
from offramp_compression.quantization.pt2e_api import enable_observer
from offramp_compression.quantization.qat import RoundedNetwork, fine_tune_rounded
from offramp_compression.quantization.quantize import quantize
from offramp_compression.quantization.sensitivity import logits
from offramp_compression.quantization.settings import QuantizationSettings
from offramp_compression.training.learn import Learnt
from offramp_compression.training.objective import Supervised
from offramp_compression.training.settings import TrainingSettings
from quantization_fakes import bands, trained
from torch import Tensor

# Seconds of CPU, minutes on a machine that others keep busy.
pytestmark = pytest.mark.timeout(540)

UNSEEN = bands(60, seed=5)
SETTINGS = TrainingSettings(epochs=1, batch_size=30, learning_rate=0.01, threads=1)


@pytest.fixture(scope="module")
def before() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trained().module.state_dict().items()}


@pytest.fixture(scope="module")
def learnt(before: dict[str, Tensor]) -> Learnt:
    batches = Batches(bands(), SETTINGS.batch_size, seed=0)
    return fine_tune_rounded(
        trained(), batches, SETTINGS, Supervised(), reduce_range=True, keep_float=["features.0"], validate=UNSEEN
    )


def test_what_comes_out_is_a_float_network_that_has_learnt(learnt: Learnt, before: dict[str, Tensor]) -> None:
    state = learnt.network.module.state_dict()
    assert state.keys() == before.keys()
    assert not torch.equal(state["head.weight"], before["head.weight"])
    assert not torch.equal(state["features.1.running_mean"], before["features.1.running_mean"])
    assert (predict(learnt.network.module, UNSEEN).argmax(1) == UNSEEN.labels).mean() > 0.95
    assert not learnt.network.module.training


def test_the_network_that_was_given_stays_as_it_is(learnt: Learnt, before: dict[str, Tensor]) -> None:
    state = trained().module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.items())


def test_its_provenance_says_how_it_was_made(learnt: Learnt) -> None:
    provenance = learnt.network.provenance
    assert provenance.method == "quantization-aware fine-tuning"
    assert provenance.parents == (trained().digest(),)
    assert provenance.settings["reduce_range"] is True
    assert provenance.settings["keep_float"] == ["features.0"]
    assert provenance.metrics["validation_accuracy"] > 0.95


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_it_can_be_quantised_in_either_format(learnt: Learnt, format: Format) -> None:
    made = quantize(learnt.network, bands(), format, QuantizationSettings(reduce_range=True))
    assert (logits(made.model.answer, UNSEEN).argmax(1) == UNSEEN.labels).mean() > 0.95


@pytest.fixture(scope="module")
def rounded() -> RoundedNetwork:
    rounded = RoundedNetwork(trained(), tensors(bands(30)), reduce_range=True)
    rounded.eval()
    # Observing in evaluation mode: in training mode batch norms answer otherwise, and learn.
    rounded.prepared.apply(enable_observer)
    rounded(*tensors(bands()))
    rounded.eval()
    return rounded


def test_training_sees_what_the_quantised_network_will_answer(rounded: RoundedNetwork) -> None:
    """Where nothing is learnt, rounding in training and quantising afterwards are the same."""
    made = quantize(trained(), bands(), "pt2", QuantizationSettings("minmax", reduce_range=True))
    quantised = logits(made.model.answer, UNSEEN)
    with torch.no_grad():
        seen = rounded(*tensors(UNSEEN)).numpy()
    exact = predict(trained().module, UNSEEN)
    assert np.abs(seen - exact).max() > 0
    assert np.abs(seen - quantised).mean() < np.abs(quantised - exact).mean() * 2
    assert (seen.argmax(1) == quantised.argmax(1)).mean() > 0.95


def test_asking_for_answers_does_not_move_the_ranges(rounded: RoundedNetwork) -> None:
    with torch.no_grad():
        first = rounded(*tensors(UNSEEN))
        rounded(*(10 * tensor for tensor in tensors(UNSEEN)))
        assert torch.equal(rounded(*tensors(UNSEEN)), first)
