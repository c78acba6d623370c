"""Give a network exits."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import asdict

import torch
from offramp_common.text import quoted
from torch import Tensor, nn

from offramp_compression.blueprint import Edit
from offramp_compression.errors import ModelError
from offramp_compression.exits.heads import AUTO, choose_head
from offramp_compression.exits.network import ExitPoint, MultiExit, apply_exits, captured
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance, installed_versions

# What a forward's argument is called that marks padding, where nothing else is said.
MASK = "attention_mask"


def attach(
    network: Network,
    modules: Sequence[str],
    example: tuple[Tensor, ...],
    *,
    head: str = AUTO,
    mask: str | None = None,
) -> Network:
    """A copy of `network` that has exits, with fresh weights from torch's global random state, at the named `modules`.

    The module of the result is a `MultiExit` in evaluation mode, its exits in the order in which the modules run.
    `example` are forward's arguments for a small batch: it runs once to find the sizes. `head` is a key of
    `heads.POOLINGS`, or "auto" to go by the shape of what a module returns. `mask` names forward's argument [N, L] that
    says which positions are not padding; left out, it is "attention_mask" where forward has one. Raises ModelError for
    a module that does not exist, does not run exactly once, or returns what the head does not take.
    """
    _check(network.module, modules)
    trunk = copy.deepcopy(network.module).eval()
    points = _points(trunk, modules, example, head, len(network.class_names))
    edit = Edit("exits", _arguments(points, len(network.class_names), mask or _mask_of(trunk)))
    module = apply_exits(trunk, edit.arguments).eval()
    _try(module, example)
    return Network(
        module=module,
        blueprint=network.blueprint.with_edit(edit),
        class_names=network.class_names,
        input_names=network.input_names,
        output_names=tuple(f"logits_{number}" for number in range(1, len(points) + 2)),
        provenance=Provenance(
            "attach-exits",
            settings={"modules": [point.module for point in points], "heads": [point.head for point in points]},
            parents=(network.digest(),),
            versions=installed_versions(),
        ),
    )


def _check(module: nn.Module, modules: Sequence[str]) -> None:
    if isinstance(module, MultiExit):
        raise ModelError("the network has exits already; attach all of them at once to the network without")
    if not modules:
        raise ModelError("no module is named; give at least one to attach an exit to")
    twice = [name for name in modules if list(modules).count(name) > 1]
    if twice:
        raise ModelError(f"module {quoted(twice[0])} is named twice; name each once")
    if "" in modules:
        raise ModelError("an exit at the whole network would be its own answer again; name a module inside it")


def _points(
    trunk: nn.Module, modules: Sequence[str], example: tuple[Tensor, ...], head: str, num_classes: int
) -> list[ExitPoint]:
    with torch.inference_mode(), captured(trunk, modules) as hidden:
        final = trunk(*example)
    if not isinstance(final, Tensor) or final.shape[1:] != (num_classes,):
        shape = list(final.shape) if isinstance(final, Tensor) else type(final).__name__
        raise ModelError(f"the network returns {shape}; exits need logits [N, {num_classes}], one for each class")
    for name, state in hidden.items():
        if state is final:
            raise ModelError(f"module {quoted(name)} gives the network's own answer; attach exits to modules before it")
    return [ExitPoint(name, *choose_head(head, state, name)) for name, state in hidden.items()]


def _try(module: nn.Module, example: tuple[Tensor, ...]) -> None:
    try:
        with torch.inference_mode():
            module(*example)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"an exit head does not take what its module returns ({reason}); the mask has to have one number for every "
            f"position of it, [N, L] for [N, L, D]"
        ) from error


def _arguments(points: Sequence[ExitPoint], num_classes: int, mask: str | None) -> dict[str, object]:
    return {"exits": [asdict(point) for point in points], "num_classes": num_classes, "mask": mask}


def _mask_of(trunk: nn.Module) -> str | None:
    return MASK if MASK in inspect.signature(trunk.forward).parameters else None
