"""`offramp fit-ensemble`: the numbers of an ensemble, from labelled examples."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from offramp_adapters.confidence.temperature import log_probabilities
from offramp_adapters.routes.alike import check_classes, check_inputs
from offramp_adapters.routes.deciding import Deciding, deciding_output
from offramp_adapters.routes.ensemble import Combine, EnsembleRoute
from offramp_adapters.routes.plan import Target
from offramp_common.extras import needs_extra
from offramp_common.tables import table
from offramp_common.toml_schema import bind, read_toml
from offramp_compression.cli.options import add_data_options
from open_inference.tensor import Array

from offramp_server.cli.answers_of import answers_of
from offramp_server.cli.asking import open_asker
from offramp_server.cli.commands import Commands
from offramp_server.cli.connection import server_options
from offramp_server.cli.failures import Refused, UsageError, usage_errors
from offramp_server.cli.labelled import classes_of, open_labelled
from offramp_server.repository.layout import ROUTE_TOML
from offramp_server.repository.route_kinds.ensemble import EnsembleToml

if TYPE_CHECKING:
    from offramp_adapters.routes.combine import Floats
    from offramp_adapters.routes.fitting import Labels

DESCRIPTION = """\
Fit the numbers of an ensemble, and write them into its route.toml as [fitted]: a
temperature for each member, and by --combine

  mean           nothing more
  weighted_mean  the weights of highest likelihood
  vote           weights by how often each member is right
  stack          a logistic regression over what all members say

The examples must not be those that the members have learnt from. What the fitted
ensemble is worth is measured by cross-validation; if it is no better than the
route as it is, nothing is written (exit code 1).
"""
# Significant digits of what is written: more than the datatypes of most answers have.
DIGITS = 9


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """What the members say of N labelled examples."""

    # At temperature 1, [members, N, classes].
    logarithms: Floats
    labels: Labels
    digest: str


@dataclass(frozen=True, slots=True)
class _Figures:
    accuracy: float
    # In nats.
    loss: float


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "fit-ensemble",
        parents=[server_options(optional=True)],
        help="fit the weights of an ensemble to labelled examples",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("route", type=Path, metavar="ROUTE", help="the route's folder, such as models/NAME")
    parser.add_argument("--combine", choices=get_args(Combine), help="default: what the route has")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, and write nothing")
    parser.add_argument("--force", action="store_true", help="write it even if it is no better")
    add_data_options(parser, part="test")
    parser.add_argument("--seed", type=int, default=0, help="of the folds and of --limit (%(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra("compression", "offramp fit-ensemble"):
        from offramp_adapters.routes import fitting

        from offramp_server.cli.route_edits import replace_file, with_fitted
    path = options.route / ROUTE_TOML
    file = _read(path)
    how: Combine = options.combine or file.settings.combine
    route = _as_it_is(file.settings, how, path)
    said = asyncio.run(_ask(options, route))
    if not 2 <= options.folds <= len(said.labels):
        raise UsageError(f"--folds {options.folds}: expected 2 to {len(said.labels)}, the number of examples")
    now = _figures(fitting.answer(route, said.logarithms), said.labels)
    held_out = fitting.cross_validated(route, how, said.logarithms, said.labels, options.folds, options.seed)
    then = _figures(held_out, said.labels)
    fitted = fitting.fit(route, how, said.logarithms, said.labels)
    print(_report(options, route, fitted, said, now, then))
    new = with_fitted(file.text, how, _fitted_table(fitted), _remark(said, then, options.folds))
    if options.dry_run:
        print(f"\n{path} would be:\n\n{new}", end="")
        return 0
    if not _better(how, then, now) and not options.force:
        raise Refused(f"{path}: the fitted ensemble is no better than the route as it is; nothing was written")
    replace_file(path, new, file.text)
    print(f"\nwrote {path}; a running server takes it with: offramp models load {options.route.resolve().name}")
    return 0


# The file


@dataclass(frozen=True, slots=True)
class _File:
    text: str
    settings: EnsembleToml


def _read(path: Path) -> _File:
    table = read_toml(path)
    if table.get("kind") != EnsembleRoute.kind:
        raise UsageError(f'{path}: expected kind = "{EnsembleRoute.kind}", got {table.get("kind")!r}')
    return _File(path.read_text(encoding="utf-8"), bind(EnsembleToml, table, path))


def _as_it_is(settings: EnsembleToml, how: Combine, path: Path) -> EnsembleRoute:
    """The route that now answers, or the mean where its stack has no weights yet."""
    try:
        unfitted = settings.unfitted(how)
        return unfitted if settings.combine == "stack" and not settings.has_stack else settings.definition()
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def _fitted_table(route: EnsembleRoute) -> dict[str, Any]:
    weighs = route.combine in ("weighted_mean", "vote")
    members = [
        {
            "model": member.target.name,
            **({"version": int(member.target.version)} if member.target.version else {}),
            **({"weight": _rounded(member.weight)} if weighs else {}),
            "temperature": _rounded(member.temperature),
        }
        for member in route.members
    ]
    stack: dict[str, Any] = {}
    if route.stack is not None:
        stack = {"stack": [list(map(_rounded, row)) for row in route.stack.weights],
                 "bias": list(map(_rounded, route.stack.bias))}  # fmt: skip
    return {**stack, "members": members}


def _remark(said: _Said, then: _Figures, folds: int) -> tuple[str, ...]:
    figures = f"accuracy {then.accuracy:.4f}, negative log-likelihood {then.loss:.4f} in {folds}-fold cross-validation"
    data = f"over {len(said.labels)} examples, digest {said.digest[:16]}"
    return f"By offramp fit-ensemble, {datetime.now(UTC).date()}:", figures, data


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


# What the members say


async def _ask(options: argparse.Namespace, route: EnsembleRoute) -> _Said:
    async with open_asker(options, options.route.resolve().parent, route.targets) as asker:
        asked = {target: await asker.describe(target) for target in route.targets}
        endpoints = {target: each.endpoint for target, each in asked.items()}
        deciding = {
            target: deciding_output(endpoints[target], f'"{target}"', route.output, route.scale)
            for target in route.targets
        }
        with usage_errors():
            check_inputs(route.targets, endpoints)
            check_classes(route.targets, deciding)
        first = route.targets[0]
        classes = classes_of([deciding[target].facts for target in route.targets])
        data = open_labelled(options, asked[first], classes)
        said = []
        for target in route.targets:
            output = deciding[target]
            values = (await answers_of(asker, asked[target], data.inputs, [output.name]))[output.name]
            said.append(_logarithms(target, values, output))
            print(f"{target} has answered {len(data)} examples", flush=True)
    return _Said(np.stack(said), data.labels, data.digest)


def _logarithms(target: Target, values: Array, output: Deciding) -> Floats:
    logarithms = log_probabilities(values, output.scale)
    broken = np.flatnonzero(np.isnan(logarithms).any(axis=1))
    if len(broken):
        raise Refused(f'"{target}" answers {len(broken)} of {len(values)} examples with NaN, the first is {broken[0]}')
    return logarithms


# What it is worth


def _figures(probabilities: Floats, labels: Labels) -> _Figures:
    from offramp_adapters.routes import fitting

    return _Figures(fitting.accuracy(probabilities, labels), fitting.negative_log_likelihood(probabilities, labels))


def _better(how: Combine, then: _Figures, now: _Figures) -> bool:
    """A vote's shares are no probabilities that a likelihood could judge."""
    return then.accuracy >= now.accuracy if how == "vote" else then.loss <= now.loss


def _report(
    options: argparse.Namespace, route: EnsembleRoute, fitted: EnsembleRoute, said: _Said, now: _Figures, then: _Figures
) -> str:
    alone = {
        f"{target} alone": _figures(np.exp(logarithms), said.labels)
        for target, logarithms in zip(route.targets, said.logarithms, strict=True)
    }
    rows = {
        **alone,
        f"as it is ({route.combine})": now,
        f"fitted ({fitted.combine}), {options.folds}-fold cross-validation": then,
    }
    figures = table(
        ("", "accuracy", "NLL"),
        [(name, f"{each.accuracy:.4f}", f"{each.loss:.4f}") for name, each in rows.items()],
        right=(1, 2),
    )
    members = table(
        ("member", "weight", "temperature"),
        [(str(each.target), f"{each.weight:.4f}", f"{each.temperature:.3f}") for each in fitted.members],
        right=(1, 2),
    )
    return f"\n{figures}\n\n{members}"
