"""docs/recipes.md says everything that a recipe may say, and nothing else."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from offramp_compression.architectures import ARCHITECTURES
from offramp_compression.data.sources import FORMATS
from offramp_compression.recipes.read import read_recipe
from offramp_compression.recipes.schema import RecipeTable, StepTable
from offramp_compression.recipes.steps import STEPS

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
TEXT = PAGE.read_text(encoding="utf-8")
# What the data decide, and no recipe has to say.
FROM_DATA = {"num_classes", "in_channels", "image_size", "mean", "std", "vocabulary", "vocabulary_size"}
EVERY_STEP = "What every step has"


def section(heading: str) -> str:
    """What stands under a heading, up to the next of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/recipes.md has no section {heading}"
    return found[1]


def rows(heading: str) -> dict[str, str]:
    """The keys of a section's table, and their defaults as they are written."""
    return dict(re.findall(r"^\| `([^`]+)` \| (.+?) \|", section(heading), re.MULTILINE))


def tables() -> Iterator[tuple[str, type]]:
    """Every dataclass that a recipe is bound to, with the heading that it has in the documentation."""
    yield "The recipe", RecipeTable
    yield EVERY_STEP, StepTable
    yield from nested(RecipeTable, lambda name: f"`[{name}]`")
    yield from nested(StepTable, lambda name: f"`{name}`")
    for kind, step in STEPS.items():
        yield f'`kind = "{kind}"`', step
        yield from nested(step, lambda name: f"`{name}`")


def nested(table: type, heading: Any) -> Iterator[tuple[str, type]]:
    for name, kind in get_type_hints(table).items():
        for inner in (kind, *get_args(kind)):
            if dataclasses.is_dataclass(inner) and isinstance(inner, type):
                yield heading(name), inner


def written(default: Any) -> str:
    """A default as TOML has it."""
    match default:
        case None:
            return "left out"
        case bool():
            return str(default).lower()
        case str():
            return f'"{default}"'
        case tuple():
            return f"[{', '.join(map(written, default))}]"
        case Mapping():
            return "{}"
    return str(default)


def expected(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = written(field.default)
        return value if value == "left out" else f"`{value}`"
    return "required" if field.default_factory is dataclasses.MISSING else "`{}`"


@pytest.mark.parametrize(("heading", "table"), sorted(set(tables()), key=str))
def test_every_key_is_there_with_its_default(heading: str, table: type) -> None:
    common = set() if table is StepTable else {field.name for field in dataclasses.fields(StepTable)}
    fields = {
        field.name: expected(field)
        for field in dataclasses.fields(table)
        if heading == EVERY_STEP or not issubclass(table, StepTable) or field.name not in common
    }
    said = rows(heading)
    if table is RecipeTable:
        said = {key: "`{}`" if default == "see below" else default for key, default in said.items()}
    assert said == fields


@pytest.mark.parametrize(("heading", "table"), sorted(set(tables()), key=str))
def test_every_value_that_can_be_chosen_is_named(heading: str, table: type) -> None:
    text = section(heading)
    for field, kind in get_type_hints(table).items():
        for choice in choices(kind):
            if choice and field in rows(heading) and field != "kind":
                assert f'"{choice}"' in text, f"{heading}: {field} may be {choice}"


def choices(kind: Any) -> Iterator[str]:
    """Of a Literal, wherever it is within a type."""
    if get_origin(kind) in (Union, types.UnionType, tuple, Annotated):
        for argument in get_args(kind):
            yield from choices(argument)
    elif not isinstance(kind, type):
        yield from (choice for choice in get_args(kind) if isinstance(choice, str))


def test_the_worked_example_is_a_recipe(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", section("A whole recipe"), re.DOTALL)
    path = tmp_path / "recipe.toml"
    path.write_text(block)
    recipe = read_recipe(path)
    assert [step.kind for step in recipe.steps] == ["train", "distill", "prune", "quantize", "exits"]


def test_every_architecture_is_there_with_its_arguments_and_their_defaults() -> None:
    said = rows("Architectures")
    # Not a classifier: zero-shot's.
    assert said.keys() == ARCHITECTURES.keys() - {"minilm_encoder"}
    for name, arguments in said.items():
        parameters = inspect.signature(ARCHITECTURES[name]).parameters.values()
        taken = [f"`{each.name} = {written(each.default)}`" for each in parameters if each.name not in FROM_DATA]
        assert arguments == ", ".join(taken), name


def test_every_layout_of_data_is_there() -> None:
    assert rows("Layouts of data").keys() - {"x`, or `x0`, `x1`, ...", "labels", "class_names", "x"} == FORMATS.keys()


def test_the_arrays_that_the_page_names_are_those_that_are_read(tmp_path: Path) -> None:
    from offramp_compression.data.sources import open_dataset

    (line,) = re.findall(r"```python\n(.*?)```", section("Layouts of data"), re.DOTALL)
    pixels = np.zeros((4, 8, 8), np.uint8)
    exec(
        line.replace('"train.npz"', "path"),
        {"numpy": np, "pixels": pixels, "labels": np.arange(4) % 2, "path": tmp_path / "train.npz"},
    )
    data = open_dataset(tmp_path)
    assert data.class_names == ("stop", "yield")
    assert data.inputs[0].shape == (4, 1, 8, 8)


def test_the_texts_that_the_page_shows_can_be_read(tmp_path: Path) -> None:
    from offramp_compression.data.sources import open_texts

    (block,) = re.findall(r"^```\n(text\tlabel\n.*?)```", section("Layouts of data"), re.DOTALL | re.MULTILINE)
    (tmp_path / "train.tsv").write_text(block)
    assert open_texts(tmp_path).class_names == ("negative", "positive")
