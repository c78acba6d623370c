"""A recipe's models in a repository that is there already."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_fakes import tiny_network
from offramp_common.errors import ConfigurationError
from offramp_compression.export.formats import FORMATS
from offramp_compression.recipes.read import read_recipe
from offramp_compression.recipes.schema import FileFormat
from offramp_compression.recipes.serve import _fingerprint, _is_there, _target
from offramp_compression.recipes.workshop import Product


def test_settings_that_cannot_be_read_are_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text("max_batch_size = \n")
    with pytest.raises(ConfigurationError, match=r"model\.toml"):
        _is_there(tmp_path, "0")


def test_a_model_is_there_if_it_is_of_the_same_step(tmp_path: Path) -> None:
    assert not _is_there(tmp_path, "0")
    (tmp_path / "model.toml").write_text('[metadata]\n"provenance.settings.recipe_fingerprint" = "0"\n')
    assert _is_there(tmp_path, "0")
    assert not _is_there(tmp_path, "1")


def product(recipe: Path, more: str = "") -> Product:
    recipe.write_text(f'name = "f"\n[[steps]]\nname = "a"\nkind = "train"\narchitecture = "tiny_cnn"\n{more}')
    (step,) = read_recipe(recipe).steps
    return Product(step, "fingerprint", recipe.parent, tiny_network(), 0.0)


def told(format: FileFormat, made: Product) -> str:
    return _fingerprint(_target(Path("models"), "net", format, made), made)


def test_other_settings_of_what_is_served_make_another_version(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    found = [told("onnx", product(recipe, more)) for more in ("", "max_batch_size = 8\n", "keep_network = false\n")]
    assert len(set(found)) == 3
    assert found[0] == told("onnx", product(recipe, 'require = { accuracy = 0.5 }\nserve_as = "b"\n'))


def test_another_torch_makes_another_version_of_its_own_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = product(tmp_path / "recipe.toml")
    before = {format: told(format, made) for format in FORMATS}
    monkeypatch.setattr(torch, "__version__", torch.__version__ + "+another.build")
    assert {format: told(format, made) for format in FORMATS} == before
    monkeypatch.setattr(torch, "__version__", "9.9.9+cpu")
    assert told("onnx", made) == before["onnx"]
    assert told("pt2", made) != before["pt2"]


def test_an_int8_program_is_made_again_by_another_torch(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    load = '[[steps]]\nname = "a"\nkind = "load"\nweights = "a.safetensors"\n'
    for format, bound in (("pt2", {"torch": torch.__version__.partition("+")[0]}), ("onnx", {})):
        recipe.write_text(
            f'name = "f"\n{load}[[steps]]\nname = "b"\nkind = "quantize"\nof = "a"\nformat = "{format}"\n'
        )
        assert read_recipe(recipe).steps[1].bound_to() == bound


def test_two_steps_are_not_served_under_one_name(tmp_path: Path) -> None:
    step = '[[steps]]\nname = "{}"\nkind = "train"\narchitecture = "tiny_cnn"\nserve = {}\n'
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "family"\n' + step.format("a", '["pt2", "onnx"]') + step.format("a-onnx", '["pt2"]'))
    with pytest.raises(ConfigurationError, match='steps "a" and "a-onnx" are both served as "family-a-onnx"'):
        read_recipe(recipe)
