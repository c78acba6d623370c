"""A network in eight-bit integers, with what was measured of it, ready for a repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from offramp_common.text import quoted
from torch import Tensor

from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import ModelError
from offramp_compression.export.formats import Format
from offramp_compression.export.parity import INT8, Tolerance
from offramp_compression.export.program import NONE_VARY, Signature, VariableDimensions
from offramp_compression.export.publish import NOTHING, Additions, Exported, Target, publish
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance, installed_versions
from offramp_compression.quantization.layers import Int8Model, Quantizer, select
from offramp_compression.quantization.settings import QuantizationSettings
from offramp_compression.weight_sharing import expanded

REFERENCE = "the float network in torch eager"


@dataclass(frozen=True, slots=True)
class Quantized:
    """An INT8 `model`; `network` has the float module that it was made of, and the provenance of the INT8 one."""

    network: Network
    signature: Signature
    model: Int8Model
    format: Format

    def described(self, metrics: Mapping[str, float]) -> Quantized:
        """The same, with these figures in its provenance."""
        return replace(self, network=self.network.described(metrics=metrics))

    def publish(
        self, inputs: Sequence[Tensor], target: Target, tolerance: Tolerance = INT8, additions: Additions = NOTHING
    ) -> Exported:
        """Put it into a repository if its file answers as the float network does on `inputs`, within `tolerance`.

        Raises ExportError as `publish.publish` does. `target.format` has to be `format`.
        """
        return publish(
            self.network, self.signature, self.model.write, inputs, target, tolerance, REFERENCE, additions=additions
        )


def open_quantizer(
    network: Network,
    calibration: Dataset,
    format: Format,
    settings: QuantizationSettings,
    variable: VariableDimensions = NONE_VARY,
) -> Quantizer:
    """Calibrate `network` on examples from its training set; a few hundred are enough. Shared weights are written out.

    Raises ExportError if the network cannot be exported, ConfigurationError for a calibration that `format` lacks.
    """
    settings.chosen_calibration(format)
    network = expanded(network)
    if format == "onnx":
        from offramp_compression.quantization.onnx_static import OnnxQuantizer

        return OnnxQuantizer(network, calibration, settings, variable)
    from offramp_compression.quantization.pt2e import Pt2eQuantizer

    return Pt2eQuantizer(network, calibration, settings, variable)


def chosen_layers(network: Network, quantizer: Quantizer, settings: QuantizationSettings) -> frozenset[str]:
    """What `settings` say is to be quantised. Raises ModelError for a layer that cannot be, or if none is left."""
    wanted = select(network.module, settings.only, quantizer) if settings.only else frozenset(quantizer.layers)
    chosen = wanted - select(network.module, settings.keep_float, quantizer)
    if not chosen:
        known = ", ".join(map(quoted, quantizer.layers)) or "none"
        raise ModelError(f"no layer is left to be quantised; those that can be are: {known}")
    return chosen


def quantized(
    network: Network,
    quantizer: Quantizer,
    model: Int8Model,
    calibration: Dataset,
    format: Format,
    settings: QuantizationSettings,
) -> Quantized:
    """Say where `model`, which `quantizer` made of `network`, comes from."""
    in_float = [layer for layer in (*quantizer.layers, *quantizer.refusals) if layer not in model.layers]
    provenance = Provenance(
        "quantize",
        settings={**settings.as_settings(format), "calibration_examples": len(calibration), "in_float": in_float},
        data_digest=calibration.digest(),
        parents=(network.digest(),),
        versions=installed_versions(),
    )
    return Quantized(replace(network, provenance=provenance), quantizer.signature, model, format)


def quantize(
    network: Network,
    calibration: Dataset,
    format: Format,
    settings: QuantizationSettings | None = None,
    variable: VariableDimensions = NONE_VARY,
) -> Quantized:
    """Static post-training quantisation to INT8 (Jacob et al., Quantization and Training of Neural Networks, 2018).

    Raises what `open_quantizer` and `chosen_layers` raise.
    """
    settings = settings or QuantizationSettings()
    quantizer = open_quantizer(network, calibration, format, settings, variable)
    model = quantizer.quantize(chosen_layers(network, quantizer, settings))
    return quantized(network, quantizer, model, calibration, format, settings)
