"""Inputs and outputs of an exported program, and whether it can be served: tensors in, tensors out, nothing kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from offramp_server.errors import LoadError
from offramp_server.repository.pt2_expressions import Range, parse_expression
from offramp_server.repository.pt2_program import Json
from offramp_server.repository.source_model import UNBOUNDED, Dimension, SourceTensor

# torch._export.serde.schema.ScalarType
_DATATYPES = {
    1: "UINT8",
    2: "INT8",
    3: "INT16",
    4: "INT32",
    5: "INT64",
    6: "FP16",
    7: "FP32",
    8: "FP64",
    12: "BOOL",
    13: "BF16",
    28: "UINT16",
    34: "UINT32",
    35: "UINT64",
}
_OTHER_TYPES = {
    9: "complex32",
    10: "complex64",
    11: "complex128",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
}
_STRIDED = 7
# Results that share memory with the first argument.
_VIEW = re.compile(
    r"torch\.ops\.aten\.(view|_unsafe_view|reshape|slice|select|transpose|permute|unsqueeze|squeeze|expand|expand_as"
    r"|narrow|t|mT|detach|alias|flatten|unflatten|unbind|split|chunk|movedim|swapaxes|diagonal|contiguous)\.\w+"
)
_IN_PLACE = re.compile(r"torch\.ops\.aten\.(?!_?_)\w*[a-z0-9]_\.\w+")


def read_signature(program: Json) -> tuple[tuple[SourceTensor, ...], tuple[SourceTensor, ...]]:
    """The tensors that forward takes and returns, in order, of a program that `clean_program` returned.

    Raises LoadError where they are not all tensors of datatypes that travel, or where a call changes the model.
    """
    graph = program["graph_module"]["graph"]
    signature = program["graph_module"]["signature"]
    _check_unchanging(graph, signature)
    ranges = {key: _range(limits) for key, limits in program["range_constraints"].items()}
    tensors = graph["tensor_values"]
    return (
        tuple(_tensor(name, tensors, ranges) for name in _input_names(signature)),
        tuple(_tensor(name, tensors, ranges) for name in _output_names(signature)),
    )


def _input_names(signature: Json) -> Iterator[str]:
    for spec in signature["input_specs"]:
        ((kind, body),) = spec.items()
        if kind == "constant_input":
            raise LoadError(
                f'its argument "{body["name"]}" is the constant {_constant(body["value"])}; export the model without '
                f"it, or make it a tensor"
            )
        if kind == "user_input":
            ((form, value),) = body["arg"].items()
            if form != "as_tensor":
                raise LoadError(f"one of its arguments is not a tensor ({form}); make it a tensor")
            yield value["name"]
        elif kind not in ("parameter", "buffer", "tensor_constant"):
            raise LoadError(f"it needs a {kind}, which cannot be served")


def _output_names(signature: Json) -> Iterator[str]:
    for position, spec in enumerate(signature["output_specs"]):
        body = spec["user_output"]
        ((form, value),) = body["arg"].items()
        if form != "as_tensor":
            raise LoadError(
                f"result {position} of its forward is {_constant(body['arg'])}, expected a tensor; return tensors only"
            )
        yield value["name"]


def _constant(value: Json) -> str:
    ((kind, constant),) = value.items()
    if kind == "as_none":
        return "None"
    return "a number that depends on the inputs" if isinstance(constant, dict) else repr(constant)


def _check_unchanging(graph: Json, signature: Json) -> None:
    for spec in signature["output_specs"]:
        ((kind, body),) = spec.items()
        if kind != "user_output":
            changed = body.get("buffer_name") or body.get("parameter_name") or body.get("user_input_name") or kind
            raise _changes(changed)
    owners = _owners(signature)
    for node in graph["nodes"]:
        first = _first_tensor(node)
        owner = owners.get(first) if first is not None else None
        if owner is not None and _IN_PLACE.fullmatch(node["target"]):
            raise _changes(owner)
        if owner is not None and _VIEW.fullmatch(node["target"]):
            owners.update((name, owner) for name in _tensor_names(node["outputs"]))


def _changes(what: str) -> LoadError:
    return LoadError(
        f'a call changes its "{what}" in place, so that one request would alter the answers to others; call '
        f"model.eval() before exporting, and copy inputs (x = x.clone()) before changing them"
    )


def _owners(signature: Json) -> dict[str, str]:
    """Graph name -> what a user calls it, for everything that outlives a call or belongs to the caller."""
    owners = {}
    for spec in signature["input_specs"]:
        (body,) = spec.values()
        arg = body.get("arg", {})
        name = arg.get("name") or arg.get("as_tensor", {}).get("name")
        if name:
            owners[name] = body.get("buffer_name") or body.get("parameter_name") or name
    return owners


def _first_tensor(node: Json) -> str | None:
    for argument in node["inputs"][:1]:
        name: str | None = argument["arg"].get("as_tensor", {}).get("name")
        return name
    return None


def _tensor_names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("name"), str):
            yield value["name"]
        for inner in value.values():
            yield from _tensor_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _tensor_names(inner)


def _tensor(name: str, tensors: Json, ranges: dict[str, Range]) -> SourceTensor:
    meta = tensors[name]
    kind = meta["dtype"]
    if kind not in _DATATYPES:
        raise LoadError(
            f'tensor "{name}" is {_OTHER_TYPES.get(kind, f"of torch type {kind}")}, which the protocol cannot carry; '
            f"expected one of {', '.join(_DATATYPES.values())}"
        )
    if meta["layout"] != _STRIDED:
        raise LoadError(f'tensor "{name}" is sparse; only dense tensors can be served')
    return SourceTensor(name, _DATATYPES[kind], tuple(_dimension(size, ranges) for size in meta["sizes"]))


def _dimension(size: Json, ranges: dict[str, Range]) -> Dimension:
    if "as_int" in size:
        return Dimension(size["as_int"])
    expression = parse_expression(size["as_expr"]["expr_str"])
    bounds = expression.bounds(ranges)
    if bounds is not None:
        low, high = bounds
        return Dimension(None, str(expression), (low, UNBOUNDED if high is None else high))
    return Dimension(None, str(expression))


def _range(limits: Json) -> Range:
    low = limits.get("min_val")
    # torch exports a dimension as "at least 2" wherever nothing else is said, and itself accepts 1 at run time.
    return (1 if low == 2 else max(low or 0, 0)), limits.get("max_val")
