"""The routes that the examples' recipes bring along, and the halves on which thresholds are chosen and measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from offramp_compression.data.sources import open_texts
from offramp_compression.data.text_files import write_tsv
from offramp_compression.recipes.read import read_recipe
from offramp_compression.recipes.run import Recipe
from offramp_compression.recipes.steps.early import ExitsStep
from offramp_server.repository.route_toml import read_route_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = ("fashion/demo.toml", "reviews/recipe.toml")


def served(recipe: Recipe) -> set[str]:
    names = set()
    for step in recipe.steps:
        for name, _ in step.served(recipe.table.name):
            stages = len(step.exits.modules) + 1 if isinstance(step, ExitsStep) else 0
            names |= {name, *(f"{name}-stage{number}" for number in range(1, stages + 1))}
    return names


@pytest.mark.parametrize("path", RECIPES)
def test_each_route_runs_models_that_the_recipe_serves(path: str) -> None:
    recipe = read_recipe(EXAMPLES / path)
    folders = [(EXAMPLES / path).parent / folder for folder in recipe.table.routes]
    assert folders
    for folder in folders:
        targets = {target.name for target in read_route_file(folder).definition.targets}
        assert targets <= served(recipe), folder.name


@pytest.mark.parametrize("path", RECIPES)
def test_no_route_is_left_out_of_the_recipe(path: str) -> None:
    recipe = read_recipe(EXAMPLES / path)
    there = {f"routes/{folder.name}" for folder in ((EXAMPLES / path).parent / "routes").iterdir()}
    assert there == set(recipe.table.routes)


@pytest.fixture
def reviews_data() -> ModuleType:
    # A script, not a package.
    spec = importlib.util.spec_from_file_location("reviews_data", EXAMPLES / "reviews" / "reviews_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_halves_of_the_reviews_share_no_sentence_and_are_always_the_same(
    reviews_data: ModuleType, tmp_path: Path
) -> None:
    rows = [(f"Sentence {number}.", ("negative", "positive")[number % 2]) for number in range(41)]
    write_tsv(tmp_path / "test.tsv", rows)
    reviews_data.write_halves(tmp_path, tmp_path / "halves")
    one, other = (open_texts(tmp_path / "halves" / f"{name}.tsv", "test") for name in ("calibration", "unseen"))
    assert [*one.texts, *other.texts] == [text for text, _ in rows]
    assert len(one.texts) == 20
    assert [one.class_names[label] for label in one.labels] == [label for _, label in rows[:20]]
