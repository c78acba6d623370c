"""What is used of torchao's PT2E quantisation, imported without what torchao says about itself."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from torch.fx import GraphModule

# Where a quantizer notes on a node what is to be done with it.
ANNOTATION = "quantization_annotation"

__all__ = [
    "ANNOTATION",
    "FusedMovingAvgObsFakeQuantize",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "PerChannelMinMaxObserver",
    "QuantizationConfig",
    "QuantizationSpec",
    "X86Quantizer",
    "allow_exported_model_train_eval",
    "convert_pt2e",
    "disable_observer",
    "enable_observer",
    "prepare_pt2e",
    "prepare_qat_pt2e",
]


@contextlib.contextmanager
def _import_noise_hidden() -> Iterator[None]:
    """torchao 0.18 logs that libraries for GPUs and for another Python do not load, has torch log that an enumeration
    is registered needlessly, and decorates with a function that torch has deprecated."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.script_method` is deprecated", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


with _import_noise_hidden():
    from torchao.quantization.pt2e import (
        FusedMovingAvgObsFakeQuantize,
        HistogramObserver,
        MinMaxObserver,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        PerChannelMinMaxObserver,
        allow_exported_model_train_eval,
        disable_observer,
        enable_observer,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationSpec
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import QuantizationConfig, X86InductorQuantizer


class X86Quantizer(X86InductorQuantizer):  # type: ignore[misc]
    """Without a warning about each pooling layer behind a layer that stays in float."""

    def annotate(self, model: GraphModule) -> GraphModule:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The input of maxpool2d is not quantized", UserWarning)
            annotated: GraphModule = super().annotate(model)
        _drop_empty_notes(annotated)
        return annotated


def _drop_empty_notes(model: GraphModule) -> None:
    """It marks what stays in float by an empty annotation, at which preparing a batch norm behind it for training
    (torchao 0.18) stumbles; none at all means the same."""
    for node in model.graph.nodes:
        note = node.meta.get(ANNOTATION)
        if note is not None and not note.input_qspec_map and note.output_qspec is None:
            del node.meta[ANNOTATION]
