"""`offramp evaluate`: models side by side, on examples that none of them has learnt from."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_common.errors import ConfigurationError
from offramp_common.extras import needs_extra

from offramp_compression.cli.options import (
    EXTRA,
    Commands,
    add_data_options,
    add_run_options,
    open_data,
    prepare,
    say,
    terminal_width,
    warn,
)

if TYPE_CHECKING:
    from offramp_compression.data.dataset import Dataset
    from offramp_compression.evaluation.subject import Subject

DESCRIPTION = """\
Measure accuracy, precision, recall and F1, ROC AUC, calibration before and after
temperature scaling, agreement with a reference, size, FLOPs and time of one or
more models, with bootstrap intervals. A MODEL is a model file (.safetensors), a
.pt2, an .onnx, or a model's folder in a repository; NAME=PATH gives it another name.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure models side by side",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--reference", metavar="MODEL", help="whose answers to compare with, such as the teacher")
    add_data_options(parser, part="test")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report with pictures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (%(default)s)")
    parser.add_argument(
        "--batch-sizes", type=_sizes, default=(1, 16), metavar="N,N", help="that are timed (default 1,16)"
    )
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE",
        help="import this package if a model file says that its code builds the network; may be repeated",
    )  # fmt: skip
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    prepare(options)
    with needs_extra(EXTRA, "offramp evaluate"):
        from offramp_compression.evaluation import report, tabulate
        from offramp_compression.evaluation.bootstrap import Bootstrap
        from offramp_compression.evaluation.evaluation import evaluate
    subjects = open_subjects(options.models, options)
    reference = _reference(options, subjects)
    data = open_data(options, classes=common_classes([*subjects, *([reference] if reference else [])]))
    bootstrap = Bootstrap(max(0, options.resamples), seed=options.seed)
    evaluations = evaluate(
        subjects, data, reference=reference, batch_sizes=options.batch_sizes, bootstrap=bootstrap, say=say
    )
    say("\n" + tabulate.text(evaluations, terminal_width()))
    if about := tabulate.about_times(evaluations):
        warn(about)
    if options.html:
        report.write_html(evaluations, options.html, facts(options, data))
        say(f"\n{options.html} has the pictures")
    if options.json:
        report.write_json(evaluations, options.json, facts(options, data))
    return 0


def open_subjects(models: Sequence[str], options: argparse.Namespace) -> list[Subject]:
    """Raises ConfigurationError if two have the same name."""
    from offramp_compression.evaluation.subject import open_subject

    subjects = []
    for model in models:
        # A folder may be called after a setting.
        name, _, path = ("", "", model) if Path(model).exists() else model.rpartition("=")
        subjects.append(open_subject(Path(path), name, options.threads, trusted=options.trust))
    names = [subject.name for subject in subjects]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two models are called {name}; give one another name with NAME=PATH")
    return subjects


def _reference(options: argparse.Namespace, subjects: Sequence[Subject]) -> Subject | None:
    if options.reference is None:
        return None
    if options.reference in options.models:
        position: int = options.models.index(options.reference)
        return subjects[position]
    return open_subjects([options.reference], options)[0]


def common_classes(subjects: Sequence[Subject]) -> tuple[str, ...] | None:
    """The classes of those models that name them, in their order; None if no model does.

    Raises ConfigurationError if two models have other classes or another order.
    """
    naming = [subject for subject in subjects if subject.class_names is not None]
    for subject in naming:
        if subject.class_names != naming[0].class_names:
            raise ConfigurationError(
                f"{subject.name} and {naming[0].name} do not have the same classes in the same order; "
                f"evaluate them one by one"
            )
    return naming[0].class_names if naming else None


def facts(options: argparse.Namespace, data: Dataset) -> Mapping[str, str]:
    """What the figures depend on besides the models."""
    from offramp_compression.provenance import installed_versions

    return {
        "data": f"{len(data)} examples of part {options.part!r}, digest {data.digest()[:16]}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads used",
        "versions": ", ".join(f"{name} {version}" for name, version in installed_versions().items()),
    }


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in text.split(","))
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected numbers of at least 1")
    return sizes
