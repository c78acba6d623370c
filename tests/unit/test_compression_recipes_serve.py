"""A recipe's models in a repository that is there already."""

from __future__ import annotations

from pathlib import Path

import pytest
from offramp_common.errors import ConfigurationError
from offramp_compression.recipes.read import read_recipe
from offramp_compression.recipes.serve import _is_there


def test_settings_that_cannot_be_read_are_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text("max_batch_size = \n")
    with pytest.raises(ConfigurationError, match=r"model\.toml"):
        _is_there(tmp_path, "0")


def test_a_model_is_there_if_it_is_of_the_same_step(tmp_path: Path) -> None:
    assert not _is_there(tmp_path, "0")
    (tmp_path / "model.toml").write_text('[metadata]\n"provenance.settings.recipe_fingerprint" = "0"\n')
    assert _is_there(tmp_path, "0")
    assert not _is_there(tmp_path, "1")


def test_two_steps_are_not_served_under_one_name(tmp_path: Path) -> None:
    step = '[[steps]]\nname = "{}"\nkind = "train"\narchitecture = "tiny_cnn"\nserve = {}\n'
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "family"\n' + step.format("a", '["pt2", "onnx"]') + step.format("a-onnx", '["pt2"]'))
    with pytest.raises(ConfigurationError, match='steps "a" and "a-onnx" are both served as "family-a-onnx"'):
        read_recipe(recipe)
