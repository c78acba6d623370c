"""A recipe brings routes along, and exits that learnt before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exit_networks import image_data, resnet
from offramp_common.errors import ConfigurationError
from offramp_compression.cli.options import say
from offramp_compression.errors import ModelError
from offramp_compression.exits.learn import ExitSettings, learn_exits, load_exits
from offramp_compression.model_file import save
from offramp_compression.recipes.routes import publish_routes
from offramp_compression.training.settings import TrainingSettings

ROUTE = 'kind = "single"\nmodel = "teacher"\n'


@pytest.fixture
def route(tmp_path: Path) -> Path:
    folder = tmp_path / "routes" / "best"
    folder.mkdir(parents=True)
    (folder / "route.toml").write_text(ROUTE)
    return folder


def test_a_route_is_copied_once_and_stays_what_its_operator_makes_of_it(
    route: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    publish_routes([route], models, say)
    copied = models / "best" / "route.toml"
    assert copied.read_text() == ROUTE
    publish_routes([route], models, say)
    copied.write_text(ROUTE + "version = 2\n")
    publish_routes([route], models, say)
    assert copied.read_text() == ROUTE + "version = 2\n"
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(" ")[0] for line in said] == ["written", "in", "in"]
    assert "other than the recipe has it; delete it" in said[2]
    assert [path.name for path in models.iterdir()] == ["best"]


def test_a_route_neither_hides_a_model_nor_comes_from_nowhere(route: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "best" / "1").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="is a model; give the route"):
        publish_routes([route], models, say)
    with pytest.raises(ConfigurationError, match=r"there is no .*worse/route\.toml"):
        publish_routes([tmp_path / "worse"], models, say)


def test_heads_that_learnt_before_are_put_onto_their_trunk(tmp_path: Path) -> None:
    trunk, data = resnet(), image_data()
    exits = ExitSettings(("stages.0", "stages.1"), train="frozen")
    training = TrainingSettings(epochs=1, batch_size=16, learning_rate=0.05, threads=1)
    learnt = learn_exits(trunk, exits, data, training).network
    save(learnt, tmp_path / "exits.safetensors")

    again = load_exits(resnet(), exits, data, tmp_path / "exits.safetensors")

    ours, theirs = learnt.module.state_dict(), again.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_heads_of_other_exits_are_refused(tmp_path: Path) -> None:
    save(resnet(), tmp_path / "trunk.safetensors")
    with pytest.raises(ModelError, match=r"does not hold the heads of exits at stages\.0"):
        load_exits(resnet(), ExitSettings(("stages.0",)), image_data(), tmp_path / "trunk.safetensors")
