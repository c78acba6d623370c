"""A mistake in a TOML file is answered with the file, the key, what was expected and the nearest valid key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from offramp_common.toml_schema import between, bind, every, matches, one_of, read_toml
from offramp_server.errors import ConfigurationError


@dataclass(frozen=True)
class Oven:
    degrees: Annotated[int, between(30, 300)] = 180
    fan: bool = False
    minutes: float = 1.0


@dataclass(frozen=True)
class Cake:
    name: str
    kind: Literal["sponge", "tart"] = "sponge"
    oven: Oven = field(default_factory=Oven)
    layers: tuple[Oven, ...] = ()
    servings: Literal["all"] | tuple[int, ...] = "all"
    recipe: Path | None = None
    price: Annotated[int, between(1)] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


def refusal(table: dict[str, Any], **rules: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        bind(Cake, table, Path("cake.toml"), rules)
    return str(caught.value)


def test_a_complete_table_becomes_the_dataclass_with_its_defaults() -> None:
    table = {
        "name": "lemon",
        "oven": {"degrees": 200, "minutes": 5},
        "layers": [{"fan": True}],
        "servings": [1, 2],
        "recipe": "a/b",
        "notes": {"from": "grandma"},
    }

    cake = bind(Cake, table, "cake.toml")

    assert cake == Cake(
        name="lemon",
        oven=Oven(degrees=200, minutes=5.0),
        layers=(Oven(fan=True),),
        servings=(1, 2),
        recipe=Path("a/b"),
        notes={"from": "grandma"},
    )
    assert isinstance(cake.oven.minutes, float)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"name": "x", "knd": "tart"}, 'cake.toml: unknown key "knd"; did you mean "kind"?'),
        (
            {"name": "x", "oven": {"dgrees": 1}},
            'cake.toml: unknown key "oven.dgrees"; did you mean "oven.degrees"?',
        ),
        (
            {"name": "x", "layers": [{}, {"fun": True}]},
            'cake.toml: unknown key "layers[1].fun"; did you mean "layers[1].fan"?',
        ),
        ({}, 'cake.toml: "name" is missing; expected a string'),
        ({"name": 3}, "cake.toml: name: expected a string, got 3"),
        ({"name": "x", "kind": "bread"}, 'cake.toml: kind: expected "sponge" or "tart", got "bread"'),
        ({"name": "x", "oven": 7}, "cake.toml: oven: expected a table, got 7"),
        ({"name": "x", "oven": {"degrees": 10}}, "cake.toml: oven.degrees: expected a number from 30 to 300, got 10"),
        ({"name": "x", "oven": {"degrees": 99.5}}, "oven.degrees: expected a number from 30 to 300, got 99.5"),
        ({"name": "x", "oven": {"fan": 1}}, "cake.toml: oven.fan: expected true or false, got 1"),
        ({"name": "x", "oven": {"minutes": float("inf")}}, "oven.minutes: expected a number, got inf"),
        ({"name": "x", "layers": {}}, "cake.toml: layers: expected a list of tables, got a table"),
        ({"name": "x", "layers": [1]}, "cake.toml: layers[0]: expected a table, got 1"),
        (
            {"name": "x", "servings": ["one"]},
            "cake.toml: servings: expected \"all\" or a list, each element an integer, got ['one']",
        ),
        ({"name": "x", "price": 0}, "cake.toml: price: expected a number of at least 1, got 0"),
        ({"name": "x", "price": "1"}, 'cake.toml: price: expected a number of at least 1, got "1"'),
        ({"name": "x", "recipe": ""}, 'cake.toml: recipe: expected a path, got ""'),
        ({"name": "x", "notes": {"n": 1}}, "cake.toml: notes: expected a table of strings, got a table"),
    ],
)
def test_a_mistake_is_named_together_with_what_would_be_right(table: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(table)


def test_true_does_not_pass_for_a_number() -> None:
    assert "oven.degrees: expected a number from 30 to 300, got true" in refusal(
        {"name": "x", "oven": {"degrees": True}}
    )


def test_a_key_like_no_other_is_answered_with_the_valid_ones() -> None:
    assert "valid keys: kind, layers, name, notes, oven, price, recipe, servings" in refusal({"name": "x", "zzzz": 1})


def test_rules_can_be_given_from_outside_for_dataclasses_that_do_not_know_of_toml() -> None:
    sentence = refusal({"name": "Bad Name"}, name=matches(r"[a-z]+", "lower-case letters"))
    assert sentence == 'cake.toml: name: expected lower-case letters, got "Bad Name"'
    assert 'expected "a", "b" or "c", got "d"' in refusal({"name": "d"}, name=one_of("a", "b", "c"))
    assert "each element a number of at least 1" in refusal(
        {"name": "x", "servings": [1, 0]}, servings=every(between(1))
    )


def test_a_rule_from_outside_holds_for_every_element_of_a_list_of_tables() -> None:
    sentence = refusal({"name": "x", "layers": [{"minutes": 1}, {"minutes": -1}]}, **{"layers.minutes": between(0)})
    assert sentence == "cake.toml: layers[1].minutes: expected a number of at least 0, got -1"


def test_a_file_that_is_not_toml_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    path.write_text('ok = 1\nbroken = "\n')
    with pytest.raises(ConfigurationError, match=r"model\.toml: not valid TOML: .*line 2"):
        read_toml(path)


def test_a_file_that_is_not_text_or_not_there_is_a_sentence_too(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigurationError, match="not UTF-8 text"):
        read_toml(path)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        read_toml(tmp_path / "absent.toml")
