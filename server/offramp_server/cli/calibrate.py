"""`offramp calibrate`: temperatures and thresholds for an early-exit route."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from offramp_common.extras import needs_extra
from offramp_compression.cli.options import add_data_options, say

from offramp_server.cli.commands import Commands
from offramp_server.cli.connection import server_options
from offramp_server.cli.failures import Refused, UsageError, usage_errors
from offramp_server.repository.layout import ROUTE_TOML

if TYPE_CHECKING:
    from offramp_adapters.routes.early_exit import EarlyExitRoute
    from offramp_adapters.routes.exit_stages import BoundExits
    from offramp_adapters.routes.plan import Target

    from offramp_server.cli.asking import Asked
    from offramp_server.cli.calibration import Calibration, Labels, Parts, Wanted
    from offramp_server.cli.labelled import Labelled
    from offramp_server.cli.stage_answers import StageAnswers

DESCRIPTION = """\
Run every stage of an early-exit route on labelled examples that its models have
not learnt from, and propose temperatures and thresholds: the cheapest with which
the route's answers agree with its last stage as often as wanted. One half of the
examples is for choosing, the other for saying what the choice comes to; or name
others for that with --unseen. Nothing is changed without --write. If nothing may
leave early, nothing is written and the exit code is 1.

The figures are those of these examples. What holds for live traffic is what audits
of the live route show.
"""
_PICTURES = (".png", ".svg")


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """What the stages say of labelled examples."""

    exits: BoundExits
    answers: StageAnswers
    labels: Labels
    parts: Parts


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "calibrate",
        parents=[server_options(optional=True)],
        help="choose the thresholds of an early-exit route",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("route", type=Path, metavar="ROUTE", help="the route's folder, such as models/NAME")
    parser.add_argument(
        "--agreement", type=_share, default=0.99, help="with the last stage, that is wanted (%(default)s)"
    )
    parser.add_argument(
        "--confidence", type=_share, default=0.95,
        help="that the agreement is kept, by the examples that are chosen on (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--write", action="store_true", help="put the numbers into the route's route.toml")
    parser.add_argument("--picture", type=_picture, metavar="FILE", help="draw agreement against cost (.png or .svg)")
    add_data_options(parser, part="test")
    parser.add_argument(
        "--unseen",
        type=Path,
        metavar="PATH",
        help="examples by which the choice is measured, instead of half of --data",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the halves and of --limit (%(default)s)")
    parser.set_defaults(run=run)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, such as 0.99, got {text}")
    return value


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in _PICTURES:
        raise argparse.ArgumentTypeError(f"expected a name that ends in {' or '.join(_PICTURES)}, got {text}")
    return path


def run(options: argparse.Namespace) -> int:
    with needs_extra("compression", "offramp calibrate"):
        from offramp_server.cli.calibration import Wanted, calibrate
        from offramp_server.cli.calibration_report import report
    path = options.route / ROUTE_TOML
    route = _route(options.route.resolve())
    text = path.read_text(encoding="utf-8")
    wanted = Wanted(options.agreement, 1 - options.confidence)
    said = asyncio.run(_ask(options, route, wanted))
    found = calibrate(route, said.exits, said.answers, said.labels, wanted, said.parts)
    print(f"\n{report(route, found, wanted)}\n")
    if options.picture:
        _draw(found, wanted, options.picture)
    _require_exits(found, wanted, path)
    if options.write:
        _write(path, text, route, found)
    else:
        print(f"--write puts thresholds and temperatures into {path}")
    return 0


def _draw(found: Calibration, wanted: Wanted, path: Path) -> None:
    from offramp_server.cli.calibration_picture import draw

    with usage_errors():
        draw(found, wanted.agreement, path)
    print(f"{path} shows agreement against cost")


def _require_exits(found: Calibration, wanted: Wanted, path: Path) -> None:
    if found.chosen.shares[-1] == 1:
        raise Refused(
            f"{path}: on these examples nothing may leave early, if the agreement is to be {wanted.agreement:g} with "
            f"confidence {1 - wanted.delta:g}; nothing was written"
        )


# The file


def _route(folder: Path) -> EarlyExitRoute:
    """Raises UsageError for a route without thresholds that could be chosen."""
    from offramp_adapters.routes.early_exit import EarlyExitRoute
    from offramp_adapters.routes.exit_stages import SOFTMAX

    from offramp_server.repository.reader import read_route

    route = read_route(folder.parent, folder.name)
    if not isinstance(route, EarlyExitRoute):
        raise UsageError(f'route "{folder.name}" is of kind {route.kind}; only early_exit has thresholds')
    for stage in route.exits:
        if route.score_of(stage) not in SOFTMAX:
            raise UsageError(
                f'stage "{stage.label}" goes by score = "{route.score_of(stage)}"; thresholds are chosen for '
                f"{', '.join(SOFTMAX)}"
            )
        if stage.thresholds_by_class:
            raise UsageError(
                f'stage "{stage.label}" has thresholds_by_class, which would hold instead; take them out first'
            )
    return route


def _write(path: Path, text: str, route: EarlyExitRoute, found: Calibration) -> None:
    from offramp_server.cli.route_edits import replace_file, with_entries

    _require_valid(path, route, found)
    replace_file(path, with_entries(text, "stages", _entries(found)), text)
    print(f"wrote {path}; a running server takes it with: offramp models load {path.resolve().parent.name}")


def _require_valid(path: Path, route: EarlyExitRoute, found: Calibration) -> None:
    """What the route does under load may have been made for other thresholds."""
    labels = [stage.label for stage in route.stages]
    thresholds = zip(labels[:-1], found.chosen.thresholds, strict=True)
    try:
        route.with_settings({f"threshold.{label}": value for label, value in thresholds})
    except ValueError as error:
        raise Refused(f"{path}: {error}; nothing was written, change this first") from None


def _entries(found: Calibration) -> list[dict[str, float]]:
    thresholds = [{"threshold": value} for value in found.chosen.thresholds]
    temperatures = [{"temperature": value} for value in found.temperatures]
    return [{**one, **other} for one, other in zip([*thresholds, {}], temperatures, strict=True)]


# What the stages say


async def _ask(options: argparse.Namespace, route: EarlyExitRoute, wanted: Wanted) -> _Said:
    from offramp_server.cli.asking import open_asker
    from offramp_server.cli.stage_answers import joined, stage_answers

    async with open_asker(options, options.route.resolve().parent, route.targets) as asker:
        asked = {target: await asker.describe(target) for target in route.targets}
        exits = _bound(route, asked, options.route)
        examples = _examples(options, route, asked, exits)
        parts = _parts([len(each) for each in examples], options.seed)
        _require_enough(parts, wanted, options)
        count = sum(len(each) for each in examples)
        say(f"running {len(exits.stages)} stages on {count} examples")
        answers = joined([await stage_answers(asker, asked, exits.stages, each.inputs) for each in examples])
    _require_numbers(route.targets[-1], answers)
    return _Said(exits, answers, np.concatenate([each.labels for each in examples]), parts)


def _bound(route: EarlyExitRoute, asked: Mapping[Target, Asked], folder: Path) -> BoundExits:
    with usage_errors():
        exits = route.bind({target: each.endpoint for target, each in asked.items()}).exits
    if not exits.batched:
        raise UsageError(f"the stages of {folder} have no batch dimension; export them with one")
    if route.agreement.kind == "tolerance" and len(exits.outputs) > 1:
        raise UsageError(
            f'agreement.kind = "tolerance" compares {", ".join(exits.outputs)}; thresholds are chosen for what '
            f'{exits.decides} says alone: "class", "top_k" or "cosine"'
        )
    return exits


def _examples(
    options: argparse.Namespace, route: EarlyExitRoute, asked: Mapping[Target, Asked], exits: BoundExits
) -> list[Labelled]:
    from offramp_server.cli.labelled import classes_of, open_labelled

    outputs = [output for target in route.targets for output in asked[target].endpoint.outputs]
    classes = classes_of([output for output in outputs if output.name == exits.decides])
    paths = [options.data] if options.unseen is None else [options.data, options.unseen]
    sources = [argparse.Namespace(**{**vars(options), "data": path}) for path in paths]
    return [open_labelled(source, asked[route.targets[0]], classes) for source in sources]


def _parts(counts: Sequence[int], seed: int) -> Parts:
    from offramp_server.cli.calibration import Parts, halves

    if len(counts) == 1:
        return halves(counts[0], seed)
    return Parts(np.arange(counts[0]), counts[0] + np.arange(counts[1]))


def _require_enough(parts: Parts, wanted: Wanted, options: argparse.Namespace) -> None:
    from offramp_adapters.confidence.thresholds import examples_needed

    there, needed = len(parts.chosen_on), examples_needed(wanted.agreement, wanted.delta)
    if there < needed:
        whole = f"{2 * needed}, of which half are for choosing" if options.unseen is None else f"{needed}"
        raise UsageError(
            f"{options.data}: an agreement of {wanted.agreement:g} with confidence {options.confidence:g} cannot be "
            f"told from the {there} examples to choose on, whatever they show; expected at least {whole}, or a lower "
            f"--agreement or --confidence"
        )


def _require_numbers(reference: Target, answers: StageAnswers) -> None:
    broken = np.flatnonzero(np.isnan(answers.outputs[-1]).any(axis=1))
    if len(broken):
        raise Refused(
            f'"{reference}" answers {len(broken)} of {len(answers.outputs[-1])} examples with NaN, the first is '
            f"{broken[0]}; nothing can agree with that"
        )
