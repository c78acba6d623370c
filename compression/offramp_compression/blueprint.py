"""How to build a network's module again: a named architecture, its arguments, and what was changed since.

A blueprint is plain data, so that a model file needs no pickle.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from offramp_common.text import did_you_mean, quoted
from torch import nn

from offramp_compression.architectures import ARCHITECTURES
from offramp_compression.edits import EDITS
from offramp_compression.errors import ModelError


@dataclass(frozen=True, slots=True)
class Edit:
    """A structural change: its `kind` is a name in `edits.EDITS`, its `arguments` can be written as JSON."""

    kind: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """`architecture` is a name in `architectures.ARCHITECTURES`, or "package.module:callable" for code of one's own.

    `arguments` go to it by keyword and can be written as JSON. `edits` are applied in order.
    """

    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()

    def build(self) -> nn.Module:
        """The module with fresh weights, drawn from torch's global random state.

        Raises ModelError for an architecture or an edit that does not exist or does not take these arguments.
        """
        module = _construct(self.architecture, self.arguments)
        for edit in self.edits:
            module = _apply(edit, module)
        return module

    def with_edit(self, edit: Edit) -> Blueprint:
        return replace(self, edits=(*self.edits, edit))


def is_foreign(architecture: str) -> bool:
    """Whether building it means importing and calling code from outside this package."""
    return ":" in architecture


def _construct(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    callable_ = _imported(architecture) if is_foreign(architecture) else _named(architecture)
    _require_known(arguments, callable_, architecture)
    try:
        module = callable_(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"architecture {quoted(architecture)} cannot be built: {error}{_taken(callable_)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{quoted(architecture)} made a {type(module).__name__}; expected a torch.nn.Module")
    return module


def _taken(callable_: Callable[..., Any]) -> str:
    """What an architecture takes, with its defaults, as a hint at the kinds of values."""
    try:
        parameters = inspect.signature(callable_).parameters.values()
    except (TypeError, ValueError):
        return ""
    known = ", ".join(
        each.name if each.default is each.empty else f"{each.name}={json.dumps(each.default, default=str)}"
        for each in parameters
    )
    return f"; it takes {known}"


def _require_known(arguments: Mapping[str, Any], callable_: Callable[..., Any], architecture: str) -> None:
    try:
        parameters = inspect.signature(callable_).parameters
    except (TypeError, ValueError):
        # Code in C may not say what it takes.
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in arguments:
        if name not in parameters:
            raise ModelError(
                f"architecture {quoted(architecture)} has no argument {quoted(name)}{did_you_mean(name, parameters)}"
            )


def _named(architecture: str) -> Callable[..., nn.Module]:
    if architecture not in ARCHITECTURES:
        hint = did_you_mean(architecture, ARCHITECTURES)
        raise ModelError(f'there is no architecture {quoted(architecture)}{hint} (or give "package.module:callable")')
    return ARCHITECTURES[architecture]


def _imported(architecture: str) -> Callable[..., Any]:
    module, _, name = architecture.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f'architecture {quoted(architecture)} cannot be imported: {error}; expected "package.module:callable" '
            f"of a package that is installed"
        ) from error
    if not callable(found):
        raise ModelError(f"architecture {quoted(architecture)} cannot be called; expected a class or a function")
    return found  # type: ignore[no-any-return]


def _apply(edit: Edit, module: nn.Module) -> nn.Module:
    if edit.kind not in EDITS:
        raise ModelError(f"there is no edit {quoted(edit.kind)}{did_you_mean(edit.kind, EDITS)}")
    try:
        return EDITS[edit.kind](module, edit.arguments)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"edit {quoted(edit.kind)} does not take these arguments: {error!r}") from error
