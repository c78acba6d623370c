from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exit_networks import encoder, image_data, images, resnet, text_data, tokens
from offramp_common.errors import ConfigurationError
from offramp_compression.data.batches import Batches
from offramp_compression.errors import ModelError
from offramp_compression.evaluation.predict import predict_exits
from offramp_compression.exits.attach import attach
from offramp_compression.exits.frozen import Heads, pool, pooled_batches
from offramp_compression.exits.learn import ExitSettings, learn_exits
from offramp_compression.exits.measure import measure_exits
from offramp_compression.exits.network import MultiExit
from offramp_compression.exits.objectives import JointExits, SelfDistilledExits
from offramp_compression.training.settings import TrainingSettings
from offramp_compression.training.trainer import fit
from torch import Tensor
from torch.nn import functional

SETTINGS = TrainingSettings(epochs=3, batch_size=16, learning_rate=0.05, threads=1)


def multi_exit(text: bool = False, seed: int = 0) -> MultiExit:
    torch.manual_seed(seed)
    plain, modules = (encoder(), ["encoder.layers.0", "encoder.layers.1"]) if text else (resnet(), ["stem", "stages.1"])
    module = attach(plain, modules, tokens() if text else images()).module
    assert isinstance(module, MultiExit)
    return module


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def loss_of(objective: JointExits, module: MultiExit) -> float:
    return objective.loss(module, Batches(image_data(), 16, 0).batch(0)).item()


def test_the_joint_loss_is_the_weighted_mean_of_the_exits_losses() -> None:
    module = multi_exit()
    batch = Batches(image_data(), 16, 0).batch(0)
    each = [functional.cross_entropy(logits, batch.labels).item() for logits in module(*batch.inputs)]
    assert loss_of(JointExits(), module) == pytest.approx(np.mean(each))
    assert loss_of(JointExits([1, 2, 5]), module) == pytest.approx(np.average(each, weights=[1, 2, 5]))


def test_joint_training_changes_trunk_and_heads_and_learns_at_every_exit() -> None:
    module = multi_exit()
    before = weights(module)
    history = fit(module, Batches(image_data(), 16, 0), replace(SETTINGS, epochs=12), JointExits())
    after = module.state_dict()
    assert not torch.equal(before["trunk.stages.0.0.conv1.weight"], after["trunk.stages.0.0.conv1.weight"])
    assert not torch.equal(before["heads.0.linear.weight"], after["heads.0.linear.weight"])
    assert set(history.epochs[-1].figures) >= {"exit_1", "exit_2"}
    accuracies = [
        float((logits.argmax(1) == image_data().labels).mean()) for logits in predict_exits(module, image_data())
    ]
    assert min(accuracies) > 0.6


@pytest.mark.parametrize("text", [False, True])
def test_a_frozen_trunk_keeps_every_weight_and_every_statistic(text: bool) -> None:
    module = multi_exit(text)
    before = weights(module)
    data = text_data() if text else image_data()
    fit(module, Batches(data, 16, 0), SETTINGS, JointExits(freeze_trunk=True))
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"heads.{number}.linear.{part}" for number in (0, 1) for part in ("weight", "bias")}
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("objective", [JointExits, SelfDistilledExits])
@pytest.mark.parametrize("text", [False, True])
def test_heads_trained_on_pooled_features_end_as_through_the_frozen_trunk(objective: Any, text: bool) -> None:
    slow, fast = multi_exit(text), multi_exit(text)
    data = text_data() if text else image_data()
    fit(slow, Batches(data, 16, 0), SETTINGS, objective(freeze_trunk=True))
    fit(Heads(fast), pooled_batches(fast, Batches(data, 16, 0)), SETTINGS, objective(freeze_trunk=True))
    assert not torch.allclose(
        fast.state_dict()["heads.0.linear.weight"], weights(multi_exit(text))["heads.0.linear.weight"]
    )
    for name, tensor in fast.state_dict().items():
        assert torch.allclose(tensor, slow.state_dict()[name], atol=1e-5), name


def test_heads_trained_on_pooled_features_see_the_last_short_batch_as_well() -> None:
    slow, fast = multi_exit(), multi_exit()
    fit(slow, Batches(image_data(), 16, 0, drop_last=False), SETTINGS, JointExits(freeze_trunk=True))
    short = pooled_batches(fast, Batches(image_data(), 16, 0, drop_last=False))
    fit(Heads(fast), short, SETTINGS, JointExits(freeze_trunk=True))
    assert torch.allclose(fast.heads.state_dict()["1.linear.bias"], slow.heads.state_dict()["1.linear.bias"], atol=1e-5)


def test_self_distillation_pulls_early_exits_to_the_deepest_but_not_the_other_way() -> None:
    module = multi_exit()
    batch = Batches(image_data(), 16, 0).batch(0)
    torch.autograd.backward(SelfDistilledExits([1, 1, 0], share=1.0).loss(module, batch))
    deepest, early = module.get_parameter("trunk.head.weight").grad, module.get_parameter("heads.0.linear.weight").grad
    assert deepest is None or torch.count_nonzero(deepest) == 0
    assert early is not None
    assert torch.count_nonzero(early) > 0


def test_without_its_share_self_distillation_is_the_joint_loss() -> None:
    assert loss_of(SelfDistilledExits(share=0.0), multi_exit()) == loss_of(JointExits(), multi_exit())


def test_self_distillation_does_not_pull_an_exit_that_answers_as_the_deepest_does() -> None:
    class Agreeing(torch.nn.Module):
        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            logits = image.flatten(1)[:, :3]
            return logits.clone(), logits

    batch = Batches(image_data(), 16, 0).batch(0)
    assert SelfDistilledExits([1, 0], share=1.0).loss(Agreeing(), batch).item() == pytest.approx(0, abs=1e-6)


def test_objectives_describe_all_that_a_resumed_run_must_share() -> None:
    described = SelfDistilledExits([1, 2], share=0.3, temperature=2, freeze_trunk=True).describe()
    assert described["weights"] == [1, 2]
    assert (described["share"], described["temperature"], described["freeze_trunk"]) == (0.3, 2, True)


def test_texts_are_pooled_without_their_padding_and_in_their_order() -> None:
    module = multi_exit(text=True)
    for whole, trimmed in zip(
        pool(module, text_data()).inputs, pool(module, text_data(), trim=True).inputs, strict=True
    ):
        assert np.allclose(whole, trimmed, atol=1e-5)


def test_augmented_examples_cannot_be_pooled() -> None:
    augmented = Batches(image_data(), 16, 0, augment=lambda inputs, generator: inputs)
    with pytest.raises(ModelError, match="augmented examples have to go through the trunk"):
        pooled_batches(multi_exit(), augmented)


@pytest.mark.parametrize("augment", [None, lambda inputs, generator: inputs])
def test_learning_exits_on_a_frozen_trunk_is_the_same_with_and_without_the_trunk(augment: Any) -> None:
    parent = resnet()
    learnt = learn_exits(
        parent, ExitSettings(("stem", "stages.1"), train="frozen"), image_data(), SETTINGS, augment=augment
    )
    reference = learn_exits(parent, ExitSettings(("stem", "stages.1"), train="frozen"), image_data(), SETTINGS)
    for name, tensor in learnt.network.module.state_dict().items():
        assert torch.allclose(tensor, reference.network.module.state_dict()[name], atol=1e-5), name
    provenance = learnt.network.provenance
    assert provenance.method == "attach-exits"
    assert provenance.parents == (parent.digest(),)
    assert provenance.data_digest == image_data().digest()
    assert provenance.settings["modules"] == ["stem", "stages.1"]
    assert set(provenance.metrics) >= {"exit_1", "exit_2"}


def test_learning_exits_draws_their_weights_by_the_seed_alone() -> None:
    settings = ExitSettings(("stem",), train="frozen", distill=0.5)
    first, second = (learn_exits(resnet(), settings, image_data(), SETTINGS).network.digest() for _ in range(2))
    other = learn_exits(resnet(), settings, image_data(), replace(SETTINGS, seed=1)).network.digest()
    assert first == second != other


def test_patience_cannot_watch_a_frozen_trunk() -> None:
    with pytest.raises(ConfigurationError, match="set it to 0"):
        learn_exits(resnet(), ExitSettings(("stem",), train="frozen"), image_data(), replace(SETTINGS, patience=2))


def test_each_exit_is_measured_with_what_it_costs() -> None:
    network = attach(resnet(), ["stages.0", "stages.2"], images())
    measured = measure_exits(network, image_data(12))
    assert [each.module for each in measured] == ["stages.0", "stages.2", ""]
    assert measured[0].flops < measured[1].flops < measured[2].flops
    assert measured[2].agreement == 1
    accuracy = np.mean(predict_exits(network.module, image_data(12))[0].argmax(1) == image_data(12).labels)
    assert measured[0].accuracy == accuracy


def test_wrong_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="none below 0"):
        JointExits([1, -1])
    with pytest.raises(ModelError, match="2 weights for 3 exits"):
        loss_of(JointExits([1, 1]), multi_exit())
    with pytest.raises(ModelError, match="temperature 0: expected"):
        SelfDistilledExits(temperature=0)


def test_a_network_without_exits_cannot_be_trained_for_several_answers() -> None:
    with pytest.raises(ModelError, match="attach exits to it first"):
        fit(resnet().module, Batches(image_data(), 16, 0), SETTINGS, JointExits())
