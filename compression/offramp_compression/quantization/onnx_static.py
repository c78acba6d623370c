"""Static INT8 for `.onnx`: ONNX Runtime's quantiser, with quantize and dequantize operators in the graph (QDQ).

ONNX Runtime fuses them into integer kernels when it loads the file.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import ExportError
from offramp_compression.export.answers import onnx_answer
from offramp_compression.export.formats import write_onnx
from offramp_compression.export.program import Names, Signature, VariableDimensions, capture, describe
from offramp_compression.network import Network
from offramp_compression.quantization.batches import batches
from offramp_compression.quantization.layers import Int8Model, weighted_layers
from offramp_compression.quantization.onnx_graph import layer_nodes, operators, quantized_nodes
from offramp_compression.quantization.settings import QuantizationSettings

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_OPTIONS = {
    # Products of two activations stay in float: what they gain is little, and attention loses much.
    "MatMulConstBOnly": True,
    # What a product returns is rounded only where the next layer wants it so: logits keep all their digits.
    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
}


class OnnxQuantizer:
    """See `layers.Quantizer`. The calibration set is run once, however often the network is then quantised."""

    def __init__(
        self, network: Network, calibration: Dataset, settings: QuantizationSettings, variable: VariableDimensions
    ) -> None:
        """Raises ExportError for a network that cannot be written as ONNX."""
        self._reduce_range = settings.reduces_range
        names = Names(network.input_names, network.output_names, variable)
        rows = list(batches(calibration))
        program = capture(network.module.eval(), rows[0], names)
        self.signature: Signature = describe(program, names)
        with tempfile.TemporaryDirectory(prefix="offramp-") as scratch:
            plain, path = _prepared(program, names, Path(scratch))
            self._model = onnx.load(path)
            known = weighted_layers(network.module)
            self._nodes = layer_nodes(onnx.load(plain), self._model, known)
            self.layers = tuple(sorted(self._nodes, key=list(self._order()).index))
            self.refusals: Mapping[str, str] = {
                name: "the exported graph has no convolution or product with its weight as a constant"
                for name in known
                if name not in self._nodes
            }
            self._ranges = _calibrated(path, self._observed(), _feeds(names, rows), settings)

    def quantize(self, layers: Collection[str]) -> Int8Model:
        nodes = self._chosen(layers)
        quantizer = QDQQuantizer(
            # It changes the graph that it is given.
            copy.deepcopy(self._model),
            True,
            self._reduce_range,
            QuantType.QInt8,
            QuantType.QUInt8,
            self._ranges,
            nodes,
            [],
            operators(self._model, nodes),
            dict(_OPTIONS),
        )
        quantizer.quantize_model()
        # It appends what it adds, and ONNX wants every node after those that it depends on.
        quantizer.model.topological_sort()
        content: bytes = quantizer.model.model.SerializeToString()

        def write(path: Path) -> None:
            path.write_bytes(content)

        return Int8Model(tuple(name for name in self.layers if name in layers), onnx_answer(content), write)

    def _chosen(self, layers: Collection[str]) -> list[str]:
        return quantized_nodes(self._model, {node for layer in layers for node in self._nodes[layer]})

    def _observed(self) -> list[str]:
        return operators(self._model, self._chosen(self.layers))

    def _order(self) -> Mapping[str, None]:
        """Layers as they are first executed."""
        layer_of = {node: layer for layer, nodes in self._nodes.items() for node in nodes}
        return dict.fromkeys(layer_of[node.name] for node in self._model.graph.node if node.name in layer_of)


def _prepared(program: torch.export.ExportedProgram, names: Names, scratch: Path) -> tuple[Path, Path]:
    """The float model, and the same with inferred shapes and ONNX Runtime's fusions, as its quantiser wants it."""
    plain, prepared = scratch / "plain.onnx", scratch / "prepared.onnx"
    write_onnx(program, names, plain)
    try:
        # torch's exporter has written the symbolic shapes already, and ONNX Runtime's inference of them fails on some.
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    except Exception as error:
        # ONNX Runtime has no type for it.
        raise ExportError(f"ONNX Runtime cannot prepare the network to be quantised: {error}") from error
    return plain, prepared


def _calibrated(
    path: Path, observed: Sequence[str], feeds: Sequence[Mapping[str, Any]], settings: QuantizationSettings
) -> Any:
    method = settings.chosen_calibration("onnx")
    # By default its percentiles are symmetric, which halves the resolution of everything behind a ReLU.
    options = {"symmetric": False, **({"percentile": settings.percentile} if method == "percentile" else {})}
    calibrator = create_calibrator(
        path, observed, str(path.with_name("observed.onnx")), _METHODS[method], extra_options=options
    )
    # It prints what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        for feed in feeds:
            # One batch at a time: within one call everything observed stays in memory.
            calibrator.collect_data(_Reader(feed))
        return calibrator.compute_data()


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feed: Mapping[str, Any]) -> None:
        self._feeds = iter([feed])

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._feeds, None)


def _feeds(names: Names, rows: Sequence[tuple[Tensor, ...]]) -> list[dict[str, Any]]:
    return [{name: tensor.numpy() for name, tensor in zip(names.inputs, row, strict=True)} for row in rows]
