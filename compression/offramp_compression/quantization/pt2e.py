"""Static INT8 for `.pt2`: PyTorch 2 export quantisation (PT2E) with the quantiser for x86 CPUs of torchao.

The file holds the float operators between quantize and dequantize operators, which every engine of torch can run.
torch.compile with frozen weights replaces them by integer kernels; one by one they are slower than the float network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from offramp_compression.data.dataset import Dataset
from offramp_compression.export.answers import of_module
from offramp_compression.export.program import Names, Signature, VariableDimensions, capture, describe
from offramp_compression.network import Network
from offramp_compression.quantization import pt2e_api as api
from offramp_compression.quantization.batches import batches
from offramp_compression.quantization.layers import Int8Model, weighted_layers
from offramp_compression.quantization.settings import QuantizationSettings

_WEIGHTED = frozenset({torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default, torch.ops.aten.linear.default})
# The smallest scale: below it, products of scales lose their precision.
EPSILON = 2**-12


class Pt2eQuantizer:
    """See `layers.Quantizer`."""

    def __init__(
        self, network: Network, calibration: Dataset, settings: QuantizationSettings, variable: VariableDimensions
    ) -> None:
        """Raises ExportError for a network that cannot be exported."""
        self._calibration = list(batches(calibration))
        self._names = Names(network.input_names, network.output_names, variable)
        self._program = capture(network.module.eval(), self._calibration[0], self._names)
        self._config = static_config(settings)
        self._refused = _refused(network.module)
        self.signature: Signature = describe(self._program, self._names)
        self.layers = self._annotated(network.module)
        self.refusals: Mapping[str, str] = {
            name: self._refused.get(name, "torchao's quantiser for x86 finds no pattern of its own around it")
            for name in weighted_layers(network.module)
            if name not in self.layers
        }

    def quantize(self, layers: Collection[str]) -> Int8Model:
        # It refuses to calibrate what has gradients.
        with torch.no_grad():
            left_out = [name for name in (*self.layers, *self._refused) if name not in layers]
            prepared = api.prepare_pt2e(_graph(self._program), quantizer(self._config, left_out))
            for batch in self._calibration:
                prepared(*batch)
            converted = api.convert_pt2e(prepared)
        _drop_unused(converted)
        program = capture(converted, self._calibration[0], self._names)

        def write(path: Path) -> None:
            torch.export.save(program, path)

        return Int8Model(tuple(name for name in self.layers if name in layers), of_module(program.module()), write)

    def _annotated(self, module: nn.Module) -> tuple[str, ...]:
        known = weighted_layers(module)
        graph = _graph(self._program)
        quantizer(self._config, list(self._refused)).annotate(graph)
        found = [_layer(node) for node in graph.graph.nodes if node.target in _WEIGHTED and api.ANNOTATION in node.meta]
        return tuple(dict.fromkeys(name for name in found if name in known))


def static_config(settings: QuantizationSettings) -> api.QuantizationConfig:
    histogram = settings.chosen_calibration("pt2") == "histogram"
    activation = (api.HistogramObserver if histogram else api.MinMaxObserver).with_args(eps=EPSILON)
    weight = api.PerChannelMinMaxObserver.with_args(eps=EPSILON)
    return config(activation, weight, settings.reduces_range, is_qat=False)


def config(activation: object, weight: object, reduce_range: bool, is_qat: bool) -> api.QuantizationConfig:
    """torchao's default for x86, but that a reduced range is the weights', as in ONNX Runtime: Inductor writes
    activations of all 256 values whatever the range that was asked for."""
    low, high = (-64, 63) if reduce_range else (-128, 127)
    activations = api.QuantizationSpec(
        dtype=torch.uint8, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=activation,
    )  # fmt: skip
    weights = api.QuantizationSpec(
        dtype=torch.int8, quant_min=low, quant_max=high, qscheme=torch.per_channel_symmetric, ch_axis=0,
        observer_or_fake_quant_ctr=weight,
    )  # fmt: skip
    return api.QuantizationConfig(activations, activations, weights, None, is_qat)


def quantizer(config: api.QuantizationConfig, left_out: Collection[str]) -> api.X86Quantizer:
    """For all layers but those `left_out`."""
    made = api.X86Quantizer()
    made.set_global(config)
    # Products of activations are not layers: masks and attention lose more by it than they gain.
    made.set_function_type_qconfig(torch.mul, None)
    for name in left_out:
        made.set_module_name_qconfig(name, None)
    return made


def _refused(module: nn.Module) -> dict[str, str]:
    convolutions = [(name, child) for name, child in module.named_modules() if isinstance(child, nn.Conv1d | nn.Conv2d)]
    return {
        name: "its input has one channel, which torch.compile (2.13) lays out wrongly behind a quantised convolution "
        "for batches of any size; quantise it as .onnx"
        for name, child in convolutions
        if child.in_channels == 1
    }


def _graph(program: ExportedProgram) -> GraphModule:
    """A fresh one over the same weights, which quantisation replaces and does not write to."""
    module = program.module()
    assert isinstance(module, GraphModule)
    return module


def _layer(node: Node) -> str:
    weight = node.args[1]
    return str(weight.target).removesuffix(".weight") if isinstance(weight, Node) else ""


def _drop_unused(module: GraphModule) -> None:
    """Conversion leaves the float weights in the module, and an export writes whatever is in it."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in used]:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)
