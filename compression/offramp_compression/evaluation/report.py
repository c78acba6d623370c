"""Evaluations as one HTML file that needs nothing else, and as JSON."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from offramp_compression.evaluation import pictures, tabulate
from offramp_compression.evaluation.evaluation import Evaluation


def write_html(evaluations: Sequence[Evaluation], path: Path, facts: Mapping[str, str]) -> None:
    """Write the table, the accuracy-latency frontier, confusion matrices, reliability diagrams and classes.

    ``facts`` are said above the table: data, machine, versions. The file appears whole or not at all.
    """
    template = Environment(autoescape=True).from_string(
        files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        facts=facts,
        header=tabulate.header(evaluations),
        rows=[tabulate.row(each) for each in evaluations],
        frontiers=[
            (timing.batch_size, _embedded(pictures.frontier(evaluations, column)))
            for column, timing in enumerate(evaluations[0].timings)
        ],
        about_times=tabulate.about_times(evaluations),
        models=[_section(each) for each in evaluations],
    )
    _write(path, page)


def write_json(evaluations: Sequence[Evaluation], path: Path, facts: Mapping[str, str]) -> None:
    """Write every figure, for programs. What is not defined (NaN) is null."""
    content = {"facts": dict(facts), "evaluations": [_plain(dataclasses.asdict(each)) for each in evaluations]}
    _write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _section(evaluation: Evaluation) -> dict[str, Any]:
    quality = evaluation.quality
    return {
        "name": evaluation.name,
        "engine": evaluation.engine,
        "temperature": f"{quality.temperature:.3f}",
        "confusion": _embedded(pictures.confusion(evaluation)),
        "reliability": _embedded(pictures.reliability(evaluation)),
        "classes": quality.classes,
    }


def _embedded(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case np.ndarray():
            return _plain(value.tolist())
        case float() if not math.isfinite(value):
            return None
    return value


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
