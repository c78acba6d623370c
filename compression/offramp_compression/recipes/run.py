"""Make a family: every step in turn, what is made already skipped; then the repository, then the judgement."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from offramp_common.errors import ConfigurationError

from offramp_compression.errors import CompressionError, ModelError
from offramp_compression.evaluation.guessing import guessing
from offramp_compression.network import Network
from offramp_compression.recipes import store
from offramp_compression.recipes.data import RecipeData
from offramp_compression.recipes.schema import Places, RecipeTable
from offramp_compression.recipes.store import Store
from offramp_compression.recipes.workshop import Made, Product, Step, Workshop


class BudgetSpent(CompressionError):
    """There was no time left for a step. What was made is kept."""

    reason = "budget"


@dataclass(frozen=True, slots=True)
class Recipe:
    table: RecipeTable
    steps: tuple[Step, ...]


def make(
    recipe: Recipe,
    places: Places,
    data: RecipeData,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    warn: Callable[[str], None] = lambda _: None,
) -> dict[str, Product]:
    """What every step has made, by its name, in the recipe's order. ``warn`` hears of models that have learnt nothing.

    Raises BudgetSpent, and whatever a step raises; the work folder then holds what was made until then, and a step that
    can go on from where it was stopped does so next time.
    """
    started = clock()
    kept = Store(places.work / "steps")
    products: dict[str, Product] = {}
    for step in recipe.steps:
        parents = [products[name].fingerprint for name in step.parents()]
        fingerprint = store.fingerprint(step, recipe.table, data, parents, places.base)
        found = kept.find(step, fingerprint, _networks(products))
        if found is not None:
            say(f"{step.name}: made before, in {found.seconds:.0f} s")
            products[step.name] = found
            continue
        _require_budget(recipe.table.budget.minutes, clock() - started, step)
        say(f"{step.name}: {step.kind}")
        begun = clock()
        workshop = Workshop(recipe.table, data, places.base, kept.folder(step, fingerprint), _networks(products), say)
        made = _judged(step, step.make(workshop), data, warn)
        products[step.name] = kept.keep(step, fingerprint, made, clock() - begun)
    return products


def _judged(step: Step, made: Made, data: RecipeData, warn: Callable[[str], None]) -> Made:
    """The same, with whether it is better than guessing in its provenance, where its step has measured it."""
    network = made if isinstance(made, Network) else made.network
    reached = network.provenance.metrics.get("validation_accuracy")
    # What is loaded may have been measured elsewhere, on other examples.
    if reached is None or step.kind == "load":
        return made
    found = guessing(reached, data.validation.labels)
    if not found.beaten:
        warn(found.warning(f"step {step.name}"))
    described = network.described(metrics=found.metrics())
    return described if isinstance(made, Network) else replace(made, network=described)


def _require_budget(minutes: float, spent: float, step: Step) -> None:
    if minutes and spent >= 60 * minutes:
        raise BudgetSpent(
            f"{spent / 60:.0f} of {minutes:g} minutes are spent and {step.name} is not made; what was made is kept: "
            f"run the recipe again to go on, or give it a larger [budget]"
        )


def _networks(products: dict[str, Product]) -> Callable[[str], Network]:
    def network(name: str) -> Network:
        made = products[name].made
        if not isinstance(made, Network):
            raise ModelError(
                f"step {name} makes a {made.path.suffix} file, which cannot be trained or changed any more; "
                f"start from a step before it"
            )
        return made

    return network


def chosen(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with these steps only, and those they are made of. Raises ConfigurationError for an unknown one."""
    by_name = {step.name: step for step in recipe.steps}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ConfigurationError(f"the recipe has no step {unknown[0]}; it has {', '.join(by_name)}")
    needed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(by_name[name].parents())
    return Recipe(recipe.table, tuple(step for step in recipe.steps if step.name in needed))


def default_places(recipe: Path, name: str, work: Path | None, repository: Path | None) -> Places:
    """`build/NAME` and its `repository` in the current folder, unless said otherwise."""
    folder = work or Path("build") / name
    return Places(recipe.parent, folder, repository or folder / "repository")
