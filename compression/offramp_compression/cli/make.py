"""`offramp make`: a whole family of models from a recipe."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_common.extras import needs_extra
from offramp_common.tables import table

from offramp_compression.cli.options import EXTRA, Commands, say, terminal_width, warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from offramp_compression.evaluation.evaluation import Evaluation
    from offramp_compression.recipes.data import RecipeData
    from offramp_compression.recipes.judge import Verdict
    from offramp_compression.recipes.run import Recipe
    from offramp_compression.recipes.schema import Places


DESCRIPTION = """\
Make what a recipe describes: load or train a teacher, make students of it, put
them into a model repository, and measure all of them side by side on examples that
no step has seen. What was made before and still fits is not made again, and what
was stopped in the middle goes on from there. Exits with 1 if a model misses what
the recipe requires of it.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "make",
        help="make a family of models from a recipe",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a .toml file")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="the examples, instead of those that the recipe names"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="for what is made on the way (build/NAME)")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="for what is served (WORK/repository)")
    parser.add_argument("--only", metavar="STEP,STEP", help="make these steps and those they need")
    parser.add_argument("--limit", type=int, metavar="N", help="take so many examples of each part, for a trial")
    parser.add_argument("--threads", type=int, help="of the processor, instead of the recipe's")
    parser.add_argument("--no-evaluation", action="store_true", help="leave out measuring")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp make"):
        from offramp_compression.recipes.data import RecipeData
        from offramp_compression.recipes.read import read_recipe
        from offramp_compression.recipes.routes import publish_routes
        from offramp_compression.recipes.run import chosen, default_places, make
        from offramp_compression.recipes.serve import publish_family
        from offramp_compression.runtime import prepare
    recipe = _as_asked(read_recipe(options.recipe), options)
    if options.only:
        recipe = chosen(recipe, options.only.split(","))
    prepare(recipe.table.seed, recipe.table.threads, recipe.table.device)
    places = default_places(options.recipe, recipe.table.name, options.work, options.repository)
    data = RecipeData(recipe.table.data, places.base, recipe.table.seed, options.data)
    products = make(recipe, places, data, say, warn=warn)
    served = publish_family(recipe, products, places.repository, data, say)
    if not options.only:
        publish_routes([places.base / route for route in recipe.table.routes], places.repository, say)
    if served:
        say(f"\nserve them with: offramp serve --model-repository {places.repository}")
    if options.no_evaluation:
        return 0
    from offramp_compression.recipes.judge import judge

    evaluations, verdicts = judge(recipe, products, served, data, recipe.table.threads, say)
    return _report(recipe, evaluations, verdicts, places, data)


def _as_asked(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    table = recipe.table
    threads = options.threads or table.threads or os.cpu_count() or 1
    limit = table.data.limit if options.limit is None else options.limit
    return replace(recipe, table=replace(table, threads=threads, data=replace(table.data, limit=limit)))


def _report(
    recipe: Recipe, evaluations: Sequence[Evaluation], verdicts: Sequence[Verdict], places: Places, data: RecipeData
) -> int:
    from offramp_compression.evaluation import report, tabulate

    say("\n" + tabulate.text(evaluations, terminal_width()))
    if about := tabulate.about_times(evaluations):
        warn(about)
    facts = _facts(recipe, data)
    report.write_html(evaluations, places.work / "report.html", facts)
    report.write_json(evaluations, places.work / "report.json", facts)
    say(f"\n{places.work / 'report.html'} has the pictures")
    if verdicts:
        rows = [(each.step, each.asked, each.measured, "yes" if each.reached else "NO") for each in verdicts]
        say("\n" + table(("step (model)", "required", "measured", "reached"), rows))
    return 0 if all(verdict.reached for verdict in verdicts) else 1


def _facts(recipe: Recipe, data: RecipeData) -> Mapping[str, str]:
    from offramp_compression.provenance import installed_versions

    return {
        "recipe": recipe.table.name,
        "examples": f"{len(data.test)} of part {recipe.table.data.test!r}, digest {data.test.digest()[:16]}",
        "threads": str(recipe.table.threads),
        "versions": ", ".join(f"{name} {version}" for name, version in installed_versions().items()),
    }
