"""What a user of `fit` relies on: it learns, it watches, it stops, and it says what is wrong."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from offramp_common.errors import ConfigurationError
from offramp_compression.data.batches import Batch
from offramp_compression.errors import TrainingError
from offramp_compression.evaluation.predict import predict
from offramp_compression.training.history import Epoch
from offramp_compression.training.objective import Objective, Supervised
from offramp_compression.training.placement import Placement
from offramp_compression.training.settings import TrainingSettings
from torch import Tensor, nn
from training_fakes import SETTINGS, Watched, network, pictures, train, weights


def test_a_network_learns() -> None:
    module = network()
    history = train(module, replace(SETTINGS, epochs=12, patience=0))
    found = (predict(module, pictures(40, seed=1)).argmax(1) == pictures(40, seed=1).labels).mean()
    assert found > 0.8
    assert history.epochs[-1].figures["validation_accuracy"] == pytest.approx(found)
    assert not module.training


def test_every_epoch_is_reported_with_its_figures() -> None:
    heard: list[Epoch] = []
    history = train(network(), replace(SETTINGS, patience=0), on_epoch=heard.append)
    assert [epoch.number for epoch in heard] == [1, 2, 3, 4]
    assert history.epochs == heard
    assert {"loss", "student", "validation_accuracy", "validation_loss"} <= heard[0].figures.keys()
    assert history.best_epoch == 4
    assert not history.stopped_early


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, second, other = network(), network(), network()
    train(first)
    torch.rand(3)
    train(second)
    train(other, replace(SETTINGS, seed=1))
    assert weights(first) == weights(second) != weights(other)


def test_the_callers_random_numbers_and_threads_are_left_as_they_were() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    train(network())
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


def test_adamw_and_clipping_train_too() -> None:
    module = network()
    settings = TrainingSettings(
        epochs=15, batch_size=16, optimizer="adamw", learning_rate=0.03, schedule="cosine", max_grad_norm=1.0, threads=1
    )
    history = train(module, settings)
    assert max(epoch.figures["validation_accuracy"] for epoch in history.epochs) > 0.7


def test_clipping_bounds_what_one_step_can_change() -> None:
    module = network()
    before = torch.cat([parameter.detach().clone().flatten() for parameter in module.parameters()])
    settings = TrainingSettings(
        epochs=1, batch_size=80, learning_rate=1.0, momentum=0.0, weight_decay=0.0, warmup=0.0, max_grad_norm=0.01,
        threads=1,
    )  # fmt: skip
    train(module, settings)
    after = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_frozen_parameters_and_their_batchnorm_do_not_change() -> None:
    module = network()
    module[0].requires_grad_(False)
    before = weights(module)
    train(module)
    after = weights(module)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"2.weight", "2.bias"}


def test_a_network_with_nothing_to_train_is_refused() -> None:
    module = network().requires_grad_(False)
    with pytest.raises(TrainingError, match=r"every parameter is frozen.*freeze fewer"):
        train(module)


class Plateau(nn.Module):
    """Right about all in its second epoch, and about nothing in any other."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.epoch = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> Tensor:
        if self.training:
            self.epoch.add_(1)
        right = 1.0 if self.epoch == 2 else -1.0
        labels = torch.tensor(pictures(len(image)).labels)
        return right * nn.functional.one_hot(labels, 3) + self.bias


def test_early_stopping_ends_the_run_and_restores_the_best_weights() -> None:
    module = Plateau()
    settings = TrainingSettings(epochs=50, batch_size=80, patience=3, threads=1)
    history = train(module, settings, validate=pictures())
    assert [epoch.figures["validation_accuracy"] for epoch in history.epochs] == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert history.best_epoch == 2
    assert history.stopped_early
    assert module.epoch == 2


def test_patience_without_a_validation_set_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="patience needs a validation set"):
        train(network(), validate=None)


def test_a_loss_that_is_no_number_stops_the_run_with_what_to_change() -> None:
    class Diverging(Supervised):
        def loss(self, module: nn.Module, batch: Batch) -> Tensor:
            return super().loss(module, batch) * float("nan")

    with pytest.raises(
        TrainingError, match=r"became nan in step 1 \(epoch 1\); lower learning_rate \(it is 0.05\), or"
    ):
        train(network(), objective=Diverging())


def test_interrupting_a_run_leaves_a_checkpoint_that_it_goes_on_from(tmp_path: Path) -> None:
    uninterrupted, interrupted = network(), network()
    train(uninterrupted)
    checkpoint = tmp_path / "run.checkpoint"
    settings = replace(SETTINGS, checkpoint_every=1000)

    def press_ctrl_c(step: int) -> None:
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(interrupted, settings, Watched(press_ctrl_c), checkpoint=checkpoint)
    assert torch.load(checkpoint, weights_only=True)["state"]["step"] == 7
    resumed = network(seed=9)
    train(resumed, settings, Watched(lambda step: None), checkpoint=checkpoint)
    assert weights(resumed) == weights(uninterrupted)


def test_a_second_interrupt_does_not_wait_for_the_step() -> None:
    def press_twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second interrupt did not interrupt")

    with pytest.raises(KeyboardInterrupt):
        train(network(), objective=Watched(press_twice))


def test_interrupts_mean_what_they_did_once_the_run_is_over() -> None:
    before = signal.getsignal(signal.SIGINT)
    train(network())
    assert signal.getsignal(signal.SIGINT) is before


def test_tensorboard_gets_the_figures_of_training_and_validation(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(network(), tensorboard=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    expected = {"train/loss", "train/student", "train/learning_rate", "validation/accuracy", "validation/loss"}
    assert tags == expected


def test_the_progress_bar_shows_the_students_accuracy_and_what_the_objective_adds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class WithTeacher(Supervised):
        def live(self) -> dict[str, float]:
            return {"teacher": 0.875}

    train(network(), objective=WithTeacher(), progress=True, name="small")
    bar = capsys.readouterr().err
    assert "small" in bar
    assert "student=" in bar
    assert "teacher=0.875" in bar
    assert "validation=0." in bar


def test_modules_of_the_objective_are_trained_along_and_the_network_is_prepared() -> None:
    class WithRegressor(Objective):
        def __init__(self) -> None:
            self.regressor = nn.Linear(3, 3)
            self.prepared: list[nn.Module] = []

        def modules(self) -> dict[str, nn.Module]:
            return {"regressor": self.regressor}

        def prepare(self, module: nn.Module) -> Any:
            self.prepared.append(module)
            return super().prepare(module)

        def loss(self, module: nn.Module, batch: Batch) -> Tensor:
            return nn.functional.cross_entropy(self.regressor(module(*batch.inputs)), batch.labels)

    objective, module = WithRegressor(), network()
    before = objective.regressor.weight.detach().clone()
    train(module, objective=objective)  # type: ignore[arg-type]
    assert not torch.equal(objective.regressor.weight, before)
    assert objective.prepared == [module]


@pytest.mark.parametrize("wanted", ["off", "auto"])
def test_a_cpu_computes_in_full_precision_unless_told_otherwise(wanted: Any) -> None:
    assert _dtype_in_training(wanted) == torch.float32


def test_bf16_is_there_for_who_asks_for_it() -> None:
    assert _dtype_in_training("bf16") == torch.bfloat16


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigurationError, match='"fp16" needs a CUDA device'):
        _dtype_in_training("fp16")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match='device "tpu9000" is not here'):
        train(network(), replace(SETTINGS, device="tpu9000"))


def _dtype_in_training(wanted: Any) -> torch.dtype:
    seen: list[torch.dtype] = []

    class Looking(Supervised):
        def loss(self, module: nn.Module, batch: Batch) -> Tensor:
            logits = module(*batch.inputs)
            seen.append(logits.dtype)
            return nn.functional.cross_entropy(logits.float(), batch.labels)

    train(network(), replace(SETTINGS, epochs=1, mixed_precision=wanted), Looking())
    return seen[0]


@pytest.mark.parametrize(("channels", "kernel", "safe"), [(4, 1, False), (8, 1, True), (4, 3, True)])
def test_layers_that_corrupt_memory_channels_last_are_not_trained_so(channels: int, kernel: int, safe: bool) -> None:
    module = nn.Sequential(nn.Conv2d(channels, 2 * channels, kernel, stride=2))
    assert Placement.of(SETTINGS, module).channels_last is safe
