"""A run that was killed ends as if it had not been; a checkpoint of another run is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training_fakes
from offramp_compression.data.batches import Batches
from offramp_compression.errors import CheckpointError
from offramp_compression.new_network import new_network
from offramp_compression.training.learn import learn
from offramp_compression.training.objective import Supervised
from training_fakes import SETTINGS, Watched, network, pictures, train, weights

# Five batches make an epoch and every second step writes a checkpoint: one dies within an epoch, one after its end.
STEPS = (4, 16)


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, bytes]:
    module = network()
    train(module, objective=Watched(lambda step: None))
    return weights(module)


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_was_killed_and_resumed_has_the_weights_of_one_that_was_not(
    step: int, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    killed = subprocess.run(
        [sys.executable, training_fakes.__file__, str(checkpoint), str(step)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    state = torch.load(checkpoint, weights_only=True)["state"]
    assert 0 < state["step"] < step
    module = network(seed=7)
    train(module, objective=Watched(lambda step: None), checkpoint=checkpoint)
    assert weights(module) == uninterrupted


def test_a_resumed_run_remembers_the_best_epoch_and_its_weights(tmp_path: Path) -> None:
    straight, resumed = network(), network(seed=3)
    settings = replace(SETTINGS, epochs=30, learning_rate=0.3, schedule="constant", patience=2)
    expected = train(straight, settings, Watched(lambda step: None))
    checkpoint = tmp_path / "run.checkpoint"
    _stop_after(expected.best_epoch + 1, settings, checkpoint)
    found = train(resumed, settings, Watched(lambda step: None), checkpoint=checkpoint)
    assert expected.stopped_early
    assert found == expected
    assert weights(resumed) == weights(straight)


def test_a_finished_run_only_loads_its_weights(tmp_path: Path) -> None:
    module, again = network(), network(seed=5)
    checkpoint = tmp_path / "run.checkpoint"
    history = train(module, objective=Watched(lambda step: None), checkpoint=checkpoint)

    def never(step: int) -> None:
        raise AssertionError("it trained again")

    assert train(again, objective=Watched(never), checkpoint=checkpoint) == history
    assert weights(again) == weights(module)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("learning_rate is 0.05 there and 0.5 here", {"settings": replace(SETTINGS, learning_rate=0.5)}),
        ("objective.label_smoothing is 0.0 there and 0.1 here", {"objective": Supervised(label_smoothing=0.1)}),
        ("data is", {"data": pictures(seed=8)}),
        ("validation data is", {"validate": pictures(seed=8)}),
        ("network is", {"module": network(channels=8)}),
        ("origin is  there and abc here", {"origin": "abc"}),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(
    words: str, change: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    train(network(), checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=words) as refused:
        train(change.pop("module", network()), checkpoint=checkpoint, **change)
    assert "delete it to begin again" in str(refused.value)


def test_a_checkpoint_of_a_network_that_began_with_other_weights_is_refused(tmp_path: Path) -> None:
    data = pictures()
    batches = Batches(data, SETTINGS.batch_size, seed=0)

    def run(seed: int) -> None:
        begun = new_network("tiny_cnn", {"channels": [2]}, data, seed)
        settings = replace(SETTINGS, patience=0)
        learn(begun, batches, settings, Supervised(), checkpoint=tmp_path / "run.checkpoint")

    run(seed=0)
    run(seed=0)
    with pytest.raises(CheckpointError, match="origin is"):
        run(seed=1)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_learnt(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    seen: list[object] = []
    with pytest.raises(CheckpointError, match=r"run.checkpoint cannot be written: .*; choose another place"):
        train(network(), checkpoint=tmp_path / "file" / "run.checkpoint", on_epoch=seen.append)
    assert not seen


def test_where_and_how_often_may_differ_from_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    train(network(), checkpoint=checkpoint)
    train(network(), replace(SETTINGS, threads=2, checkpoint_every=3), checkpoint=checkpoint)


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda whole: b"x" * 99])
def test_a_damaged_checkpoint_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    train(network(), checkpoint=checkpoint)
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(CheckpointError, match="delete it to begin again"):
        train(network(), checkpoint=checkpoint)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    torch.save({"format": 1, "identity": print}, checkpoint)
    with pytest.raises(CheckpointError, match="damaged"):
        train(network(), checkpoint=checkpoint)


def _stop_after(epoch: int, settings: Any, checkpoint: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(step: int) -> None:
        if step == 5 * epoch + 1:
            raise Stopped

    with pytest.raises(Stopped):
        train(network(), settings, Watched(stop), checkpoint=checkpoint)
