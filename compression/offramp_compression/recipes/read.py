"""A recipe's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp_common.errors import ConfigurationError
from offramp_common.text import did_you_mean, quoted
from offramp_common.toml_schema import bind, read_toml

from offramp_compression.recipes.run import Recipe
from offramp_compression.recipes.schema import RecipeTable
from offramp_compression.recipes.steps import STEPS
from offramp_compression.recipes.workshop import Step


def read_recipe(path: Path) -> Recipe:
    """Raises ConfigurationError for a file that is no recipe, saying which key of which step is at fault."""
    table = read_toml(path)
    written = table.pop("steps", [])
    recipe = bind(RecipeTable, table, path)
    if not isinstance(written, list) or not written or not all(isinstance(step, Mapping) for step in written):
        raise ConfigurationError(f"{path}: a recipe needs at least one [[steps]]")
    steps = tuple(_step(step, number, path) for number, step in enumerate(written, start=1))
    _check(steps, recipe, path)
    return Recipe(recipe, steps)


def _step(table: Mapping[str, Any], number: int, path: Path) -> Step:
    where = f"{path}: step {quoted(table['name']) if 'name' in table else number}"
    if "kind" not in table:
        raise ConfigurationError(f'{where}: "kind" is missing{did_you_mean("", STEPS)}')
    kind = str(table["kind"])
    if kind not in STEPS:
        raise ConfigurationError(f"{where}: there is no kind {quoted(kind)}{did_you_mean(kind, STEPS)}")
    return bind(STEPS[kind], table, where)


def _check(steps: Sequence[Step], recipe: RecipeTable, path: Path) -> None:
    before: list[str] = []
    served: dict[str, str] = {}
    for step in steps:
        if step.name in before:
            raise ConfigurationError(f"{path}: two steps are named {quoted(step.name)}; give each its own name")
        for parent in step.parents():
            if parent not in before:
                raise ConfigurationError(
                    f"{path}: step {quoted(step.name)} needs {quoted(parent)}, which no step before it makes"
                    f"{did_you_mean(parent, before)}"
                )
        if step.problem():
            raise ConfigurationError(f"{path}: step {quoted(step.name)}: {step.problem()}")
        for name, _ in step.served(recipe.name):
            if name in served:
                raise ConfigurationError(
                    f"{path}: steps {quoted(served[name])} and {quoted(step.name)} are both served as {quoted(name)}; "
                    f"give each its own serve_as"
                )
            served[name] = step.name
        before.append(step.name)
    reference = recipe.evaluation.reference
    if reference and reference not in before:
        raise ConfigurationError(
            f"{path}: evaluation.reference: there is no step {quoted(reference)}{did_you_mean(reference, before)}"
        )
