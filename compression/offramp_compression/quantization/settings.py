"""How a network is quantised: everything that the result depends on besides the network and the calibration set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from offramp_common.errors import ConfigurationError
from offramp_common.toml_schema import Rule

from offramp_compression.export.formats import Format
from offramp_compression.quantization.processor import needs_reduced_range

Calibration: TypeAlias = Literal["minmax", "entropy", "percentile", "histogram"]
# What each format's quantiser offers, the default first.
CALIBRATIONS: dict[Format, tuple[Calibration, ...]] = {
    "onnx": ("minmax", "entropy", "percentile"),
    "pt2": ("histogram", "minmax"),
}


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """Weights become INT8 (symmetric, a scale for each output channel), activations UINT8 (affine, a scale a tensor).

    Layers are named as modules of the network; a module's name stands for all layers in it.
    """

    # How the range of an activation is chosen; "": the format's default. "minmax": all values seen. "entropy": with the
    # least KL divergence. "percentile": all but the rarest. "histogram": with the least squared error.
    calibration: Calibration | Literal[""] = ""
    # Of "percentile": the share of values that is kept.
    percentile: Annotated[float, Rule("above 50 and at most 100", lambda value: 50 < value <= 100)] = 99.99
    # Weights of 7 bits. None: where this machine's processor needs it.
    reduce_range: bool | None = None
    # Quantise only these; empty: every layer that can be.
    only: tuple[str, ...] = ()
    # Leave these in float.
    keep_float: tuple[str, ...] = ()

    def chosen_calibration(self, format: Format) -> Calibration:
        """Raises ConfigurationError for one that the format's quantiser does not have."""
        offered = CALIBRATIONS[format]
        if not self.calibration:
            return offered[0]
        if self.calibration not in offered:
            raise ConfigurationError(
                f'calibration "{self.calibration}" is not available for .{format}; expected {" or ".join(offered)}'
            )
        return self.calibration

    @property
    def reduces_range(self) -> bool:
        return needs_reduced_range() if self.reduce_range is None else self.reduce_range

    def as_settings(self, format: Format) -> dict[str, Any]:
        """For the provenance of the result."""
        calibration = self.chosen_calibration(format)
        return {
            "calibration": calibration,
            **({"percentile": self.percentile} if calibration == "percentile" else {}),
            "reduce_range": self.reduces_range,
        }
