"""Exported programs (`.pt2`) as functions from a list of tensors to a list of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymBoolArgument,
    SymFloatArgument,
    SymIntArgument,
    TensorArgument,
)
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from offramp_server.errors import LoadError
from offramp_server.formats.pt2_archive import open_verified
from offramp_server.model_spec import ModelSpec

ExportedProgram = torch.export.ExportedProgram


def load_exported(spec: ModelSpec) -> ExportedProgram:
    """Read the archive without unpickling anything. Raises LoadError."""
    archive = open_verified(spec.path, spec.digest)
    try:
        return torch.export.load(archive)
    except Exception as error:
        raise LoadError(f'model "{spec.name}": torch cannot load {spec.path.name}: {_first_line(error)}') from error


class Program:
    """One callable form of an exported program, with how to call it.

    The positions of the tensors are those of the exported signature, keyword-only arguments and nested containers
    included; arguments that were fixed when the program was exported (numbers, flags, None) are filled in.
    Results are flattened in the order of torch's pytrees, leaving out what is not a tensor.
    """

    def __init__(self, module: GraphModule, calling: CallingConvention) -> None:
        self.module = module
        self.calling = calling

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        # Past the hook that checks shapes, which takes 75 us: the front end has checked them against the same ranges.
        return self.calling.call(self.module.forward, tensors)

    @property
    def writes_in_place(self) -> bool:
        """Whether an input might be written to.

        The signature of a program that was exported for training does not say so, and operators that sometimes return
        their argument (dropout, reshape) hide which tensor is written, hence any in-place operator counts.
        """
        return any(_mutates(node.target) for node in self.module.graph.nodes if node.op == "call_function")

    def storages(self) -> set[int]:
        """The memory of weights, buffers and constants."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def program_of(exported: ExportedProgram, spec: ModelSpec) -> Program:
    """A fresh module over the weights of `exported`. Raises LoadError where the spec does not fit the program."""
    return Program(exported.module(), CallingConvention(exported, spec))


class CallingConvention:
    """How positional tensors become the arguments of an exported program, and its result a list of tensors."""

    def __init__(self, exported: ExportedProgram, spec: ModelSpec) -> None:
        self._fixed = list(_leaves(exported, spec))
        self._in_spec = exported.call_spec.in_spec
        self._plain = _is_plain(self._in_spec, self._fixed)
        _expect(spec, "inputs", len(spec.inputs), self._fixed.count(_TENSOR))
        _expect(spec, "outputs", len(spec.outputs), _count_results(exported))

    def call(self, function: Any, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self._plain:
            return _tensors(function(*tensors))
        given = iter(tensors)
        leaves = [next(given) if fixed is _TENSOR else fixed for fixed in self._fixed]
        args, kwargs = pytree.tree_unflatten(leaves, self._in_spec)
        return _tensors(function(*args, **kwargs))


def _is_plain(in_spec: pytree.TreeSpec, fixed: Sequence[object]) -> bool:
    """Whether the arguments are the tensors one after the other, as for nearly every model."""
    positional = pytree.tree_structure((tuple(fixed), {}))
    return in_spec == positional and all(leaf is _TENSOR for leaf in fixed)


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def move(exported: ExportedProgram, device: torch.device) -> ExportedProgram:
    """The program with its weights and the devices written into its graph on `device`."""
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(exported, device)


_TENSOR = object()


def _leaves(exported: ExportedProgram, spec: ModelSpec) -> Iterator[object]:
    for item in exported.graph_signature.input_specs:
        if item.kind != InputKind.USER_INPUT:
            continue
        if isinstance(item.arg, SymIntArgument | SymFloatArgument | SymBoolArgument):
            raise LoadError(
                f'model "{spec.name}": argument "{item.arg.name}" is a number, only tensors travel; '
                "export it as a tensor, or as a constant"
            )
        yield item.arg.value if isinstance(item.arg, ConstantArgument) else _TENSOR


def _count_results(exported: ExportedProgram) -> int:
    return sum(
        item.kind == OutputKind.USER_OUTPUT and isinstance(item.arg, TensorArgument)
        for item in exported.graph_signature.output_specs
    )


def _expect(spec: ModelSpec, what: str, declared: int, found: int) -> None:
    if declared != found:
        raise LoadError(
            f'model "{spec.name}": {declared} {what} are declared, {spec.path.name} has {found}; '
            f"[[{what}]] of model.toml has to list all of them in the order of the exported program"
        )


def _mutates(target: object) -> bool:
    # detach_ is how every export marks its constants, and changes no element.
    if target is torch.ops.aten.detach_.default:
        return False
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
