"""Evaluations as rows of text, for the terminal and for the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from offramp_common.tables import table

from offramp_compression.evaluation.bootstrap import Estimate
from offramp_compression.evaluation.evaluation import Evaluation
from offramp_compression.evaluation.load import remark

HEADER = (
    "model",
    "engine",
    "accuracy",
    "macro F1",
    "ROC AUC",
    "ECE",
    "ECE scaled",
    "agreement",
    "parameters",
    "bytes",
    "MFLOPs",
)


def header(evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    timed = (f"ms at batch {timing.batch_size}" for timing in evaluations[0].timings)
    return (*HEADER, *timed)


def row(evaluation: Evaluation) -> tuple[str, ...]:
    quality = evaluation.quality
    return (
        evaluation.name,
        evaluation.engine,
        percent(quality.accuracy),
        percent(quality.f1_macro),
        decimal(quality.roc_auc_macro),
        decimal(quality.calibration_error),
        decimal(quality.calibration_error_scaled),
        percent(quality.agreement) if quality.agreement else "",
        "" if evaluation.parameters is None else f"{evaluation.parameters:,}",
        f"{evaluation.size_bytes:,}",
        "" if evaluation.flops is None else f"{evaluation.flops / 1e6:.1f}",
        *(milliseconds(timing.seconds) for timing in evaluation.timings),
    )


def text(evaluations: Sequence[Evaluation], width: int | None = None) -> str:
    """A row for each model; or a column, where rows are longer than ``width`` and columns are not as long."""
    names, rows = header(evaluations), [row(each) for each in evaluations]
    wide = table(names, rows, right=range(2, len(names)))
    if width is None or _width(wide) <= width:
        return wide
    first, *others = zip(names, *rows, strict=True)
    tall = table(first, others, right=range(1, len(first)))
    return tall if _width(tall) < _width(wide) else wide


def _width(shown: str) -> int:
    return max(map(len, shown.splitlines()))


def about_times(evaluations: Sequence[Evaluation]) -> str:
    """What to know of the times before they are believed; empty if the machine had nothing else to do."""
    return remark(min((timing.processor_share for each in evaluations for timing in each.timings), default=1.0))


def percent(estimate: Estimate) -> str:
    return _with_interval(estimate, lambda value: f"{value:.2%}")


def decimal(estimate: Estimate) -> str:
    return _with_interval(estimate, lambda value: f"{value:.4f}")


def milliseconds(estimate: Estimate) -> str:
    return _with_interval(estimate, lambda value: f"{value * 1e3:.3g}")


def _with_interval(estimate: Estimate, write: Callable[[float], str]) -> str:
    if math.isnan(estimate.value):
        return "-"
    if math.isnan(estimate.low):
        return write(estimate.value)
    return f"{write(estimate.value)} [{write(estimate.low)}, {write(estimate.high)}]"
