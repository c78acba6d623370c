"""Exported programs (`.pt2`) as functions from a list of tensors to a list of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from offramp_common.formats.pt2_archive import open_verified
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
from torch.fx.graph import CodeGen

from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec

ExportedProgram = torch.export.ExportedProgram

# In the place of an argument that comes with each call.
TENSOR = object()


def load_exported(spec: ModelSpec) -> ExportedProgram:
    """Read the archive without unpickling anything. Raises LoadError."""
    archive = open_verified(spec.path, spec.digest)
    try:
        return torch.export.load(archive)
    except Exception as error:
        raise LoadError(f'model "{spec.name}": torch cannot load {spec.path.name}: {_first_line(error)}') from error


class Program:
    """One callable form of an exported program: tensors in, tensors out, both one after the other.

    The positions of the tensors are those of the exported signature, keyword-only arguments and nested containers
    included; arguments that were fixed when the program was exported (numbers, flags, None) are filled in.
    Results are flattened in the order of torch's pytrees, leaving out what is not a tensor.
    """

    # In a lower precision it has to be called within torch's autocast.
    autocast = True

    def __init__(self, module: GraphModule, fixed: Sequence[object]) -> None:
        """`module` takes its arguments one by one and answers with a tuple. `fixed` has, for each argument, its value,
        or TENSOR."""
        self.module = module
        self._fixed = fixed
        self._only_tensors = all(value is TENSOR for value in fixed)

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        # Past the hooks that check shapes, which take 50 us: the front end has checked them against the same ranges.
        return self.call(self.module.forward, tensors)

    def call(self, forward: Any, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Call `forward`, which is called as the module is."""
        results = forward(*(tensors if self._only_tensors else self._filled_in(tensors)))
        return [result for result in results if isinstance(result, torch.Tensor)]

    def _filled_in(self, tensors: Sequence[torch.Tensor]) -> list[object]:
        given = iter(tensors)
        return [next(given) if value is TENSOR else value for value in self._fixed]

    @property
    def writes_in_place(self) -> bool:
        """Whether an input might be written to.

        The signature of a program that was exported for training does not say so, and operators that sometimes return
        their argument (dropout, reshape) hide which tensor is written, hence any in-place operator counts.
        """
        return any(_mutates(node.target) for node in self.module.graph.nodes if node.op == "call_function")

    def kept(self) -> Iterator[torch.Tensor]:
        """Weights, buffers and constants: what lives from one call to the next."""
        yield from self.module.parameters()
        yield from self.module.buffers()

    def release(self) -> None:
        """The modules of an exported program are in cycles; their weights should not wait for the collector."""
        for module in self.module.modules():
            module._parameters.clear()
            module._buffers.clear()


def program_of(exported: ExportedProgram, spec: ModelSpec) -> Program:
    """A fresh module over the weights of `exported`. Raises LoadError where the spec does not fit the program."""
    fixed = list(_arguments(exported, spec))
    _expect(spec, "inputs", len(spec.inputs), fixed.count(TENSOR))
    _expect(spec, "outputs", len(spec.outputs), _count_results(exported))
    return Program(_flat(exported.module(check_guards=False)), fixed)


def _flat(module: GraphModule) -> GraphModule:
    """The same module without torch's code that packs arguments and results into the containers of the exported
    signature: for a small model it costs more than the operators."""
    module.graph.set_codegen(CodeGen())
    module.recompile()
    return module


def move(exported: ExportedProgram, device: torch.device) -> ExportedProgram:
    """The program with its weights and the devices written into its graph on `device`."""
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(exported, device)


def _arguments(exported: ExportedProgram, spec: ModelSpec) -> Iterator[object]:
    for item in exported.graph_signature.input_specs:
        if item.kind != InputKind.USER_INPUT:
            continue
        if isinstance(item.arg, SymIntArgument | SymFloatArgument | SymBoolArgument):
            raise LoadError(
                f'model "{spec.name}": argument "{item.arg.name}" is a number, only tensors travel; '
                "export it as a tensor, or as a constant"
            )
        yield item.arg.value if isinstance(item.arg, ConstantArgument) else TENSOR


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
