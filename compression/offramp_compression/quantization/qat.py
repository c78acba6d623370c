"""Quantisation-aware fine-tuning: the network learns with weights and activations rounded as INT8 will round them.

Rounding has no useful gradient and is passed by as if it were not there (straight-through estimator; Jacob et al.,
Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018). What comes out is
the float network with weights that bear rounding: it is quantised like any other, in either format.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from offramp_compression.data.batches import Batches
from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import ModelError
from offramp_compression.export.program import NONE_VARY, Names, VariableDimensions, capture
from offramp_compression.network import Network
from offramp_compression.quantization import pt2e_api as api
from offramp_compression.quantization.pt2e import EPSILON, config, quantizer
from offramp_compression.training.learn import Learnt, Watching, learn
from offramp_compression.training.objective import Objective
from offramp_compression.training.settings import TrainingSettings


def fine_tune_rounded(
    network: Network,
    train: Batches,
    settings: TrainingSettings,
    objective: Objective,
    *,
    reduce_range: bool,
    keep_float: Collection[str] = (),
    variable: VariableDimensions = NONE_VARY,
    validate: Dataset | None = None,
    **watching: Unpack[Watching],
) -> Learnt:
    """The network, fine-tuned for being quantised but for the layers `keep_float`, with weights of 7 bits if
    `reduce_range`. The network that is given stays as it is.

    `validate`, early stopping and the figures of the history are of the rounded network. Raises ExportError for one
    that cannot be exported in training mode, and what `training.learn.learn` raises.
    """
    rounded = RoundedNetwork(network, train.batch(0).inputs, reduce_range, keep_float, variable)
    learnt = learn(
        replace(network, module=rounded), train, settings, objective,
        method="quantization-aware fine-tuning",
        details={"reduce_range": reduce_range, "keep_float": sorted(keep_float)},
        origin=network.digest(), validate=validate, **watching,
    )  # fmt: skip
    return Learnt(replace(learnt.network, module=rounded.learnt(network.module)), learnt.history)


class RoundedNetwork(nn.Module):
    """A copy of a network that rounds as INT8 does. Ranges are those of `inputs` at first, follow what is seen while
    training, and are fixed otherwise."""

    def __init__(
        self,
        network: Network,
        inputs: Iterable[Tensor],
        reduce_range: bool,
        keep_float: Collection[str] = (),
        variable: VariableDimensions = NONE_VARY,
    ) -> None:
        super().__init__()
        names = Names(network.input_names, network.output_names, variable)
        examples = tuple(inputs)
        program = capture(copy.deepcopy(network.module).train(), examples, names)
        graph = program.module()
        assert isinstance(graph, GraphModule)
        learning = config(*_fake_quantizers(), reduce_range, is_qat=True)
        self.prepared = api.prepare_qat_pt2e(graph, quantizer(learning, keep_float))
        # Its own train() and eval() would raise.
        api.allow_exported_model_train_eval(self.prepared)
        self._observe(examples)

    def forward(self, *inputs: Tensor) -> object:
        return self.prepared(*inputs)

    def train(self, mode: bool = True) -> RoundedNetwork:
        self.training = mode
        self.prepared.train(mode)
        self.prepared.apply(api.enable_observer if mode else api.disable_observer)
        return self

    def _observe(self, examples: tuple[Tensor, ...]) -> None:
        """Begin with real ranges. Without any, observers have empty tensors that they enlarge in place, which fails,
        or corrupts memory, once somebody has looked at them through numpy."""
        self.prepared.eval()
        self.prepared.apply(api.enable_observer)
        with torch.no_grad():
            self.prepared(*examples)
        self.train()

    def learnt(self, original: nn.Module) -> nn.Module:
        """A copy of the network's module with the weights that were learnt, in evaluation mode."""
        learnt = self.prepared.state_dict()
        state = {name: tensor for name, tensor in learnt.items() if name in original.state_dict()}
        missing = original.state_dict().keys() - state.keys()
        if missing:
            raise ModelError(f"torchao has left no trace of the weight {min(missing)}; fine-tune without quantisation")
        module = copy.deepcopy(original)
        module.load_state_dict(state)
        return module.eval()


def _fake_quantizers() -> tuple[object, object]:
    fake = api.FusedMovingAvgObsFakeQuantize
    return (
        fake.with_args(observer=api.MovingAverageMinMaxObserver, eps=EPSILON),
        fake.with_args(observer=api.MovingAveragePerChannelMinMaxObserver, eps=EPSILON),
    )
