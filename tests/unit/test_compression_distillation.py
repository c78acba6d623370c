"""What a user of `distill` relies on."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import distillation_fakes
import numpy as np
import pytest
import torch
from distillation_fakes import SETTINGS, TRAINING, count_rows, learn, student, teacher
from offramp_common.errors import ConfigurationError
from offramp_compression.data.augment import trim_padding
from offramp_compression.data.batches import Batch, Batches
from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.distillation.distill import distill
from offramp_compression.distillation.objective import Distillation
from offramp_compression.distillation.settings import DistillationSettings
from offramp_compression.distillation.teachers import Live, Remembered, RepeatedViews, Tabulated, tabulate
from offramp_compression.errors import CheckpointError, ModelError
from offramp_compression.evaluation.predict import predict
from offramp_compression.new_network import new_network
from offramp_compression.training.history import Epoch
from offramp_compression.training.placement import Placement
from torch import Tensor, nn
from training_fakes import CLASSES, noise, pictures, weights


class Says(nn.Module):
    """The same logits for whatever it is asked."""

    def __init__(self, *logits: list[float]) -> None:
        super().__init__()
        self.exits = nn.ParameterList(torch.tensor([each]) for each in logits)

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        answers = tuple(each.expand(len(inputs), -1) for each in self.exits)
        return answers[0] if len(answers) == 1 else answers


BATCH = Batch((torch.zeros(2, 1, 6, 6),), torch.tensor([0, 0]), torch.tensor([0, 1]))
SURE = [2 * math.log(3), 0.0]
SOFT = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
HARD = math.log(2)


def _loss(settings: DistillationSettings, teachers: list[list[float]], pupil: nn.Module | None = None) -> float:
    said = Tabulated(np.array([[logits] * 2 for logits in teachers], np.float32), [])
    objective = Distillation(said, settings)
    return objective.loss(pupil or Says([0.0, 0.0]), BATCH).item()


def test_the_loss_is_a_mix_of_labels_and_teacher() -> None:
    settings = DistillationSettings(temperature=2.0, hard_weight=0.25)
    assert _loss(settings, [SURE]) == pytest.approx(0.25 * HARD + 0.75 * SOFT, rel=1e-5)


def test_the_loss_from_logits_is_their_squared_difference() -> None:
    settings = DistillationSettings(loss="mse", hard_weight=0.5)
    assert _loss(settings, [[2.0, 0.0], [0.0, 0.0]]) == pytest.approx(0.5 * HARD + 0.5 * (1.0 + 0.0) / 2)


def test_teachers_count_by_their_weights() -> None:
    settings = DistillationSettings(temperature=2.0, hard_weight=0.0, teacher_weights=(3.0, 1.0))
    mixed = [0.75 * 0.75 + 0.25 * 0.25, 0.75 * 0.25 + 0.25 * 0.75]
    by_hand = 4 * sum(p * math.log(p / 0.5) for p in mixed)
    assert _loss(settings, [SURE, SURE[::-1]]) == pytest.approx(by_hand, rel=1e-5)


def test_all_exits_of_a_student_learn() -> None:
    settings = DistillationSettings(temperature=2.0, hard_weight=0.0)
    assert _loss(settings, [SURE], Says([0.0, 0.0], SURE)) == pytest.approx(SOFT / 2, rel=1e-5)


def test_a_weight_is_needed_for_every_teacher_or_for_none() -> None:
    with pytest.raises(ModelError, match="1 weights for 2 teachers"):
        _loss(DistillationSettings(teacher_weights=(1.0,)), [SURE, SURE])


def test_a_student_learns_from_its_teacher_without_any_label() -> None:
    master, pupil = teacher(), student()
    before = _agreement(pupil.module, master.module)
    learn(pupil, DistillationSettings(hard_weight=0.0), teachers=[master], training=replace(TRAINING, epochs=20))
    assert _agreement(pupil.module, master.module) > before + 0.3


def test_a_teacher_is_left_as_it_was() -> None:
    master = teacher()
    before = weights(master.module)
    learn(student(), teachers=[master])
    assert weights(master.module) == before
    assert not master.module.training
    assert all(parameter.grad is None for parameter in master.module.parameters())


def test_the_provenance_names_teacher_settings_data_and_what_was_measured() -> None:
    master = teacher()
    learnt = learn(student(), teachers=[master], validate=pictures(40, seed=1))
    provenance = learnt.network.provenance
    assert provenance.method == "distill"
    assert provenance.parents == (master.digest(),)
    assert provenance.data_digest == pictures().digest()
    assert provenance.settings["temperature"] == 2.0
    assert provenance.settings["learning_rate"] == 0.05
    accuracy = (predict(learnt.network.module, pictures(40, seed=1)).argmax(1) == pictures(40, seed=1).labels).mean()
    assert provenance.metrics["validation_accuracy"] == pytest.approx(accuracy)


def test_the_teachers_accuracy_can_be_watched() -> None:
    learnt = learn(student())
    assert "teacher" in learnt.history.epochs[0].figures


def test_what_is_not_augmented_is_shown_to_a_teacher_once() -> None:
    master = teacher()
    rows = count_rows(master.module)
    learn(student(), teachers=[master], augment=None)
    assert sum(rows) == len(pictures())


def test_trimming_the_padding_of_texts_is_no_augmentation() -> None:
    lengths = np.arange(40) % 5 + 1
    mask = (np.arange(8) < lengths[:, None]).astype(np.int64)
    texts = Dataset((mask * 3, mask), np.arange(40, dtype=np.int64) % 2, ("even", "odd"))
    master, pupil = (new_network("embedding_bag", {"vocabulary_size": 9, "dimension": 4}, texts, n) for n in (0, 1))
    rows = count_rows(master.module)
    distill(pupil, [master], texts, SETTINGS, TRAINING, augment=trim_padding)
    assert sum(rows) == len(texts)


def test_augmented_batches_are_shown_to_a_teacher_as_the_student_sees_them() -> None:
    master, pupil = teacher(), student()
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for name, module in (("teacher", master.module), ("student", pupil.module)):
        module.register_forward_hook(lambda _, inputs, __, name=name: seen[name].append(inputs[0].clone()))
    learn(pupil, teachers=[master])
    assert len(seen["teacher"]) == 4 * 5
    assert all(torch.equal(*pair) for pair in zip(seen["teacher"], seen["student"], strict=True))


def test_repeated_views_are_shown_to_a_teacher_once_and_to_the_student_in_every_epoch() -> None:
    master, pupil = teacher(), student()
    teachers_rows, students_rows = count_rows(master.module), count_rows(pupil.module)
    learn(pupil, replace(SETTINGS, views=2), teachers=[master])
    assert len(teachers_rows) == 2 * 5
    assert len(students_rows) == 4 * 5


def test_a_view_that_comes_again_is_the_same_in_every_bit_and_differs_from_the_next() -> None:
    batches = RepeatedViews(pictures(), 16, 0, noise, 2)
    first, again, other = batches.batch(3), batches.batch(3 + 2 * 5), batches.batch(3 + 5)
    assert torch.equal(first.inputs[0], again.inputs[0])
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.inputs[0], other.inputs[0])


def test_what_is_remembered_or_tabulated_is_what_the_teacher_would_say() -> None:
    master = teacher()
    live, remembered = Live([master, master]), Remembered(Live([master, master]))
    table = tabulate([master, master], pictures(), Placement(torch.device("cpu"), channels_last=False))
    plain = RepeatedViews(pictures(), 16, 0, None, 1)
    for step in (0, 1, 0):
        batch = plain.batch(step)
        expected = live.logits(batch)
        assert expected.shape == (2, 16, len(CLASSES))
        assert torch.equal(remembered.logits(batch), expected)
        assert torch.allclose(table.logits(batch), expected, atol=1e-6)


def test_logits_are_remembered_for_repeated_views_only() -> None:
    with pytest.raises(ModelError, match="RepeatedViews"):
        Remembered(Live([teacher()])).logits(Batches(pictures(), 16, 0).batch(0))


def test_a_teacher_with_exits_teaches_what_its_deepest_one_says() -> None:
    master = replace(teacher(), module=Says([0.0, 0.0, 9.0], [1.0, 2.0, 3.0]))
    assert Live([master]).logits(BATCH)[0, 0].tolist() == [1.0, 2.0, 3.0]


def test_a_distillation_that_was_killed_and_resumed_has_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    # The second of two views has been seen in part, which the resumed run's teacher has to see again.
    step, views = 13, 2
    settings = replace(SETTINGS, views=views)
    straight = student()
    learn(straight, settings)
    checkpoint = tmp_path / "run.checkpoint"
    killed = subprocess.run(
        [sys.executable, distillation_fakes.__file__, str(checkpoint), str(step), str(views)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    resumed = student()
    epochs: list[Epoch] = []
    learn(resumed, settings, checkpoint=checkpoint, on_epoch=epochs.append)
    # It went on from where it was killed, instead of beginning again.
    assert epochs[0].number > 1
    assert weights(resumed.module) == weights(straight.module)


def test_a_checkpoint_of_another_teacher_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    learn(student(), checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=r"objective\.teachers is"):
        learn(student(), teachers=[teacher(seed=4)], checkpoint=checkpoint)


def test_teacher_and_student_need_the_same_classes() -> None:
    stranger = replace(teacher(), class_names=("a", "b", "c"))
    with pytest.raises(
        ModelError, match="a teacher of the classes a, b, c cannot teach a student of dark, bright, left"
    ):
        learn(student(), teachers=[stranger])


def test_there_has_to_be_a_teacher() -> None:
    with pytest.raises(ModelError, match="there is no teacher"):
        learn(student(), teachers=[])


def test_matched_features_become_more_like_the_teachers_than_those_that_are_not() -> None:
    explained = []
    for weight in (0.0, 1.0):
        pupil, master = student(), teacher()
        settings = DistillationSettings(features={"features": "features"}, feature_weight=weight)
        learn(pupil, settings, teachers=[master], training=replace(TRAINING, epochs=20, max_grad_norm=1.0))
        explained.append(_explained(pupil.module, master.module))
    assert explained[1] > explained[0] + 0.1


def test_a_killed_run_with_features_remembers_its_regressors(tmp_path: Path) -> None:
    settings = replace(SETTINGS, features={"features.0": "features.0"})
    straight, resumed = student(), student()
    learn(straight, settings)
    checkpoint = tmp_path / "run.checkpoint"

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        learn(student(), settings, checkpoint=checkpoint, on_epoch=fail)
    torch.manual_seed(77)
    learn(resumed, settings, checkpoint=checkpoint)
    assert weights(resumed.module) == weights(straight.module)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"feature": "features"}, 'no module "feature"; did you mean "features"?'),
        ({"features": "trunk.features"}, 'no module "trunk.features"; did you mean "features"?'),
        ({"features": "head"}, r"features \[2, 3, 3, 3\] of the student's \"features\" cannot be matched to \[2, 3\]"),
    ],
)
def test_modules_that_cannot_be_matched_are_refused(features: Mapping[str, str], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        learn(student(), replace(SETTINGS, features=features))


def test_features_cannot_be_remembered() -> None:
    with pytest.raises(ConfigurationError, match="leave out either features or views"):
        learn(student(), replace(SETTINGS, features={"features": "features"}, views=2))


def _agreement(one: nn.Module, other: nn.Module) -> float:
    data = pictures(200, seed=2)
    return float((predict(one, data).argmax(1) == predict(other, data).argmax(1)).mean())


def _explained(pupil: Any, master: Any) -> float:
    """The share of the teacher's features' variance that a linear map of the student's explains."""
    images = tensors(pictures(200, seed=2))[0]
    with torch.no_grad():
        mine, theirs = (nn.Sequential(each.normalise, each.features)(images) for each in (pupil, master))
    known, wanted = (each.permute(0, 2, 3, 1).reshape(-1, each.shape[1]).double().numpy() for each in (mine, theirs))
    known = np.c_[known, np.ones(len(known))]
    rest = wanted - known @ np.linalg.lstsq(known, wanted, rcond=None)[0]
    return float(1 - rest.var(0).sum() / wanted.var(0).sum())
