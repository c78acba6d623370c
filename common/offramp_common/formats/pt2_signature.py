"""Inputs and outputs of an exported program, and whether it can be served: tensors in, tensors out, nothing kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from offramp_common.errors import LoadError
from offramp_common.formats.pt2_expressions import Range, parse_expression
from offramp_common.formats.pt2_program import Json
from offramp_common.formats.source_model import UNBOUNDED, Dimension, SourceTensor

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
_LASTING = ("parameter", "buffer", "tensor_constant")
# Results that share memory with the first argument.
_VIEW = re.compile(
    r"torch\.ops\.aten\.(view|_unsafe_view|reshape|slice|select|transpose|permute|unsqueeze|squeeze|expand|expand_as"
    r"|narrow|t|mT|detach|alias|flatten|unflatten|unbind|split|chunk|movedim|swapaxes|diagonal|contiguous)\.\w+"
)
# detach_ is how every export marks its constants, and changes no element.
_IN_PLACE = re.compile(r"torch\.ops\.aten\.(?!detach_|__)\w*[a-z0-9]_\.\w+")


def read_signature(program: Json) -> tuple[tuple[SourceTensor, ...], tuple[SourceTensor, ...]]:
    """The tensors that forward takes and returns, in order, of a program that `clean_program` returned.

    Raises LoadError where they are not all tensors of datatypes that travel, or where a call changes the model.
    """
    graph = program["graph_module"]["graph"]
    signature = program["graph_module"]["signature"]
    _check_unchanging(graph, signature)
    ranges = {key: _range(limits) for key, limits in program["range_constraints"].items()}
    tensors = graph["tensor_values"]
    inputs = tuple(_tensor(name, tensors, ranges) for name in _input_names(signature))
    outputs = tuple(_tensor(name, tensors, ranges) for name in _output_names(signature))
    if not outputs:
        raise LoadError("its forward returns no tensor; expected at least one")
    return inputs, outputs


def _input_names(signature: Json) -> Iterator[str]:
    """Arguments that were constants when the model was exported stay what they were."""
    for spec in signature["input_specs"]:
        ((kind, body),) = spec.items()
        if kind == "user_input":
            ((form, value),) = body["arg"].items()
            if form == "as_tensor":
                yield value["name"]
            elif form.startswith("as_sym"):
                raise LoadError("one of its arguments is a number that may vary; make it a tensor, or a constant")
        elif kind not in (*_LASTING, "constant_input"):
            raise LoadError(f"it needs a {kind}, which cannot be served")


def _output_names(signature: Json) -> Iterator[str]:
    """Results that are no tensors (None, numbers) are not served."""
    for spec in signature["output_specs"]:
        ((form, value),) = spec.get("user_output", {"arg": {"": None}})["arg"].items()
        if form == "as_tensor":
            yield value["name"]


def _check_unchanging(graph: Json, signature: Json) -> None:
    """A call may write to its own inputs, which engines copy, but to nothing that the next call sees."""
    for spec in signature["output_specs"]:
        (body,) = spec.values()
        changed = body.get("buffer_name") or body.get("parameter_name")
        if changed:
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
        f'each call changes its "{what}", so that one request would alter the answers to others; call model.eval() '
        f"before exporting it, and keep no state between calls"
    )


def _owners(signature: Json) -> dict[str, str]:
    """Graph name -> what a user calls it, for every tensor that outlives a call."""
    bodies = [body for spec in signature["input_specs"] for kind, body in spec.items() if kind in _LASTING]
    return {
        body["arg"]["name"]: body.get("buffer_name") or body.get("parameter_name") or body["tensor_constant_name"]
        for body in bodies
    }


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
