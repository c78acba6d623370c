"""`offramp calibrate`: temperatures and thresholds for an early-exit route."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_common.extras import needs_extra
from offramp_common.tables import table
from offramp_compression.cli.options import add_data_options

from offramp_server.cli.commands import Commands
from offramp_server.cli.connection import server_options
from offramp_server.cli.failures import UsageError
from offramp_server.repository.layout import ROUTE_TOML

if TYPE_CHECKING:
    from offramp_adapters.confidence.thresholds import Point
    from offramp_adapters.routes.early_exit import EarlyExitRoute
    from offramp_adapters.routes.exit_stages import BoundExits

    from offramp_server.cli.calibration import Calibration
    from offramp_server.cli.labelled import Labelled
    from offramp_server.cli.stage_answers import StageAnswers

DESCRIPTION = """\
Run every stage of an early-exit route on labelled examples that its models have
not learnt from, and propose temperatures and thresholds: the cheapest with which
the route's answers agree with its last stage as often as wanted. One half of the
examples is for choosing, the other for saying what the choice comes to. Nothing is
changed without --write; a running server takes the numbers from the file when
it reloads the route, or at once from offramp routes set.

The figures are those of these examples. What holds for live traffic is what audits
of the live route show.
"""
# Agreements that the table of the curve shows what they cost.
SHOWN = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


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
        help="that the agreement is kept, on the half that is chosen on (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--write", action="store_true", help="put the numbers into the route's route.toml")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw agreement against cost (.png or .svg)")
    parser.add_argument("--seed", type=int, default=0, help="of the halves (%(default)s)")
    add_data_options(parser, part="test")
    parser.set_defaults(run=run)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and below 1, got {text}")
    return value


def run(options: argparse.Namespace) -> int:
    with needs_extra("compression", "offramp calibrate"):
        from offramp_server.cli.calibration import Wanted, calibrate
        from offramp_server.cli.route_edits import set_entries
    route = _route(options)
    exits, labelled, answers = asyncio.run(_ask(options, route))
    wanted = Wanted(options.agreement, 1 - options.confidence)
    found = calibrate(route, exits, answers, labelled.labels, wanted, options.seed)
    _show(route, found, len(labelled), options)
    if options.picture:
        from offramp_server.cli.calibration_picture import draw

        draw(found, options.agreement, options.picture)
        print(f"\n{options.picture} shows agreement against cost")
    path = options.route / ROUTE_TOML
    if options.write:
        set_entries(path, "stages", _entries(found))
        print(f"\n{path}: thresholds and temperatures are written")
    else:
        print(f"\n--write puts them into {path}")
    return 0


def _route(options: argparse.Namespace) -> EarlyExitRoute:
    """Raises UsageError for a route without thresholds that could be chosen."""
    from offramp_adapters.routes.early_exit import EarlyExitRoute
    from offramp_adapters.routes.exit_stages import SOFTMAX

    from offramp_server.repository.reader import read_route

    folder = options.route.resolve()
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


async def _ask(options: argparse.Namespace, route: EarlyExitRoute) -> tuple[BoundExits, Labelled, StageAnswers]:
    from offramp_server.cli.asking import open_asker
    from offramp_server.cli.labelled import open_labelled
    from offramp_server.cli.stage_answers import stage_answers

    async with open_asker(options, options.route.resolve().parent, route.targets) as asker:
        asked = {target: await asker.describe(target) for target in route.targets}
        exits = route.bind({target: each.endpoint for target, each in asked.items()}).exits
        if not exits.batched:
            raise UsageError(f"the stages of {options.route} have no batch dimension; export them with one")
        first = asked[route.targets[0]]
        [decides] = [each for each in asked[route.targets[-1]].endpoint.outputs if each.name == exits.decides]
        labelled = open_labelled(options, first, decides.labels or decides.dims[0])
        if len(labelled) < 2:
            raise UsageError(f"{options.data}: expected at least two examples, one for each half")
        return exits, labelled, await stage_answers(asker, asked, exits.stages, labelled.inputs)


def _entries(found: Calibration) -> list[dict[str, float]]:
    thresholds = [{"threshold": value} for value in found.chosen.thresholds]
    temperatures = [{"temperature": value} for value in found.temperatures]
    return [{**one, **other} for one, other in zip([*thresholds, {}], temperatures, strict=True)]


def _show(route: EarlyExitRoute, found: Calibration, examples: int, options: argparse.Namespace) -> None:
    from offramp_adapters.confidence.binomial import lower_bound

    unseen = found.unseen
    rows = [
        (
            stage.label,
            f"{found.chosen.thresholds[number]:g}" if number < len(route.exits) else "",
            f"{found.temperatures[number]:g}",
            f"{unseen.shares[number]:.1%}",
            f"{found.stage_accuracies[number]:.2%}",
        )
        for number, stage in enumerate(route.stages)
    ]
    print(table(("stage", "threshold", "temperature", "answers", "accuracy alone"), rows, right=range(1, 5)))
    agreed = unseen.examples - unseen.disagreements
    low = lower_bound(agreed, unseen.examples, 1 - options.confidence)
    print(
        f"\non the {unseen.examples} of {examples} examples that nothing was chosen on:\n"
        f"agreement with {route.stages[-1].label}: {unseen.agreement:.2%}, at least {low:.2%} with confidence "
        f"{options.confidence:g} (wanted {options.agreement:.2%})\n"
        f"accuracy: {found.accuracy:.2%}\n"
        f"cost: {unseen.cost * 1e3:.2f} ms an item, {unseen.cost / found.reference_cost:.2f} of the last stage alone\n"
    )
    best = [(wish, point) for wish in SHOWN if (point := _cheapest(found.curve, wish)) is not None]
    curve = [
        (f"{wish:.1%}", f"{point.cost / found.reference_cost:.2f}", *(f"{share:.0%}" for share in point.shares))
        for wish, point in best
    ]
    header = ("agreement", "cost", *(stage.label for stage in route.stages))
    print(table(header, curve, right=range(1, len(header))))


def _cheapest(points: list[Point], agreement: float) -> Point | None:
    good = [point for point in points if point.agreement >= agreement]
    return min(good, key=lambda point: point.cost, default=None)
