"""What a family is worth: its models side by side on the test part, and whether each has reached what it had to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from offramp_compression.errors import ModelError
from offramp_compression.evaluation.bootstrap import Bootstrap
from offramp_compression.evaluation.evaluation import Evaluation, evaluate
from offramp_compression.evaluation.subject import Subject, open_subject
from offramp_compression.network import Network
from offramp_compression.recipes.data import RecipeData
from offramp_compression.recipes.run import Recipe
from offramp_compression.recipes.schema import Requirement
from offramp_compression.recipes.serve import Served
from offramp_compression.recipes.store import network_file
from offramp_compression.recipes.workshop import Product


@dataclass(frozen=True, slots=True)
class Verdict:
    """One requirement of one step: what was asked, what was measured, whether that is enough."""

    step: str
    asked: str
    measured: str
    reached: bool


def judge(
    recipe: Recipe,
    products: Mapping[str, Product],
    served: Sequence[Served],
    data: RecipeData,
    threads: int,
    say: Callable[[str], None],
) -> tuple[list[Evaluation], list[Verdict]]:
    """Evaluate the network of every step, in eager mode, and every model that is served, on the test part.

    The best of a step's models counts for its requirements: a student that is exported twice is as fast as the faster.
    A network of other classes, which was only there to be fine-tuned, is left out. Where it is the reference, or where
    the recipe names none, the first that is left takes its place. Raises ModelError if none is.
    """
    subjects, owners = _subjects(_comparable(products, data.test.class_names), served, threads)
    if not subjects:
        raise ModelError("no step has made a network of the classes that the data have; there is nothing to compare")
    wanted = recipe.table.evaluation.reference
    reference = next((subject for subject in subjects if owners[subject.name] == wanted), subjects[0])
    table = recipe.table.evaluation
    evaluations = evaluate(
        subjects, data.test, reference=reference, batch_sizes=table.batch_sizes,
        bootstrap=Bootstrap(table.resamples, seed=recipe.table.seed), say=say,
    )  # fmt: skip
    by_name = {each.name: each for each in evaluations}
    verdicts = [
        verdict
        for step in recipe.steps
        for verdict in verdicts_on(
            step.name, step.require, by_name[reference.name],
            [each for each in evaluations if owners[each.name] == step.name],
        )
    ]  # fmt: skip
    return evaluations, verdicts


def _comparable(products: Mapping[str, Product], class_names: tuple[str, ...]) -> dict[str, Product]:
    return {
        name: product
        for name, product in products.items()
        if not isinstance(product.made, Network) or product.made.class_names == class_names
    }


def _subjects(
    products: Mapping[str, Product], served: Sequence[Served], threads: int
) -> tuple[list[Subject], dict[str, str]]:
    """What to evaluate, and the step that each belongs to, by its name."""
    subjects: list[Subject] = []
    owners: dict[str, str] = {}
    for name, product in products.items():
        if isinstance(product.made, Network):
            subjects.append(open_subject(network_file(product), f"{name} (network)", threads))
            owners[subjects[-1].name] = name
        for model in served:
            if model.step == name:
                subjects.append(open_subject(model.folder, model.name, threads))
                owners[model.name] = name
    return subjects, owners


def verdicts_on(
    step: str, asked: Requirement, reference: Evaluation, candidates: Sequence[Evaluation]
) -> list[Verdict]:
    """Whether one of the candidates reaches all that is asked; if none does, how far the last of them gets.

    It has to be one and the same: a fast file that is wrong and a right one that is slow are no model.
    """
    # Files of other formats do not tell parameters from other constants; those of a step have the same.
    known = next((each.parameters for each in candidates if each.parameters is not None), None)
    found = [_verdicts(step, asked, reference, candidate, known) for candidate in candidates]
    return next((each for each in found if all(verdict.reached for verdict in each)), found[-1] if found else [])


def _verdicts(
    step: str, asked: Requirement, reference: Evaluation, candidate: Evaluation, known: int | None
) -> list[Verdict]:
    accuracy = candidate.quality.accuracy.value
    lost = 100 * (reference.quality.accuracy.value - accuracy)
    speedup = _items_per_second(candidate) / _items_per_second(reference)
    parameters = known if candidate.parameters is None else candidate.parameters
    verdicts = []

    def check(wanted: float | None, words: str, measured: str, reached: bool) -> None:
        if wanted is not None:
            verdicts.append(Verdict(f"{step} ({candidate.name})", words, measured, reached))

    check(asked.accuracy, f"accuracy at least {asked.accuracy}", f"{accuracy:.4f}", accuracy >= (asked.accuracy or 0))
    check(
        asked.points_lost, f"at most {asked.points_lost} points lost", f"{lost:+.2f}", lost <= (asked.points_lost or 0)
    )
    check(asked.speedup, f"at least {asked.speedup}x", f"{speedup:.2f}x", speedup >= (asked.speedup or 0))
    few = parameters is not None and parameters <= (asked.parameters or 0)
    counted = "cannot be counted" if parameters is None else f"{parameters}"
    check(asked.parameters, f"at most {asked.parameters} parameters", counted, few)
    return verdicts


def _items_per_second(evaluation: Evaluation) -> float:
    return max(evaluation.timings, key=lambda timing: timing.batch_size).items_per_second
