"""Which parts of a network are trained."""

from __future__ import annotations

import re

from offramp_common.errors import ConfigurationError
from torch import nn

from offramp_compression.modules import get_module


def freeze(module: nn.Module, policy: str, head: str) -> None:
    """Let only those parameters of `module` be trained that `policy` names, and freeze the others.

    "head" is the classifier, the module called `head`; "top:N" is that and the last N of the other `blocks`; "all" is
    everything. Raises ConfigurationError for another policy or more blocks than there are.
    """
    if policy == "all":
        module.requires_grad_(True)
        return
    trained = [head, *_top(module, policy, head)]
    module.requires_grad_(False)
    for name in trained:
        get_module(module, name).requires_grad_(True)


def blocks(module: nn.Module) -> list[str]:
    """The names of the parts that a network is a stack of, in the order in which they are declared.

    A part that holds a stack of parts, itself made of several modules each, is taken apart; all else is one block: a
    ResNet's stem and its residual blocks, a transformer's embeddings and its layers, a classifier.
    """
    return _blocks(module, "")


def _top(module: nn.Module, policy: str, head: str) -> list[str]:
    match = re.fullmatch(r"top:([1-9]\d*)", policy)
    if policy != "head" and match is None:
        raise ConfigurationError(f'cannot train "{policy}"; expected "head", "top:N" for the last N blocks, or "all"')
    count = int(match[1]) if match else 0
    others = [name for name in blocks(module) if name != head and not head.startswith(f"{name}.")]
    if count > len(others):
        raise ConfigurationError(
            f'cannot train "{policy}": besides its head the network has {len(others)} blocks, {", ".join(others)}; '
            'expected as many at most, or "all"'
        )
    return others[len(others) - count :]


def _blocks(module: nn.Module, prefix: str) -> list[str]:
    names: list[str] = []
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        names += _blocks(child, f"{prefix}{name}.") if _holds_stack(child) else [prefix + name]
    return names


def _holds_stack(module: nn.Module) -> bool:
    return any(
        isinstance(part, nn.Sequential | nn.ModuleList) and any(any(True for _ in child.children()) for child in part)
        for part in module.modules()
    )
