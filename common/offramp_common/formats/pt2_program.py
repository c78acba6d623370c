"""The program in a `.pt2` (`models/model.json`): rebuilt from the parts that compute, and from nothing else.

`torch.export.load` trusts this file. It evaluates sizes as Python, writes names of nodes and arguments into source that
it executes, imports modules that tree specifications name, and looks operators up with `getattr`, among them some that
write files. So every name here must be an identifier, every operator one of PyTorch's own that compute on
tensors, every size pass `pt2_expressions`, and everything that serving does not need (stack traces, source locations,
guards as Python source, submodules' calling conventions) is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from offramp_common.errors import LoadError
from offramp_common.formats.pt2_expressions import parse_expression

Json: TypeAlias = dict[str, Any]

# The part of torch's schema version that must agree; torch 2.8 to 2.13 write 8.x.
SCHEMA_MAJOR = 8
_MAX_BYTES = 512 * 2**20

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,1023}|")
_TEXT = re.compile(r"[A-Za-z0-9_.:/+\- ]{0,4096}")
# "id,path,type" for each module, the outermost first; torch cuts it at the commas and keeps the text.
_MODULE = r"[\w.@]{0,1024},[\w.]{0,1024},[\w.]{1,1024}"
_MODULE_STACK = re.compile(rf"{_MODULE}(;{_MODULE}){{0,99}}", re.ASCII)
_RANGE_KEY = re.compile(r"[A-Za-z0-9_*+\-/%(), .]{1,4096}")

_QUANTISING_OPERATORS = ("torch.ops.quantized_decomposed.", "torch.ops.quantized.")
_NAMESPACES = "aten|prims|quantized|quantized_decomposed|rngprims|torchvision"
_OPERATOR = re.compile(rf"torch\.ops\.({_NAMESPACES})\.([A-Za-z_]\w*)\.([A-Za-z]\w*)")
_SCALAR_OPERATOR = re.compile(r"math\.[a-z0-9]+|torch\._?sym_[a-z_0-9]+")
_PYTHON_OPERATORS = frozenset(
    f"_operator.{name}"
    for name in (
        *("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "abs", "not_", "getitem"),
        *("mul", "add", "sub", "floordiv", "truediv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"),
    )
)
_CONTROL_FLOW = frozenset(
    f"torch.ops.higher_order.{name}"
    for name in (
        *("cond", "while_loop", "while_loop_stack_output", "map_impl", "scan", "associative_scan", "strict_mode"),
        *("wrap_with_set_grad_enabled", "wrap_with_autocast", "invoke_subgraph", "out_dtype", "flex_attention"),
        *("auto_functionalized", "auto_functionalized_v2", "wrap", "hints_wrapper", "tag_activation_checkpoint"),
    )
)
# Operators of allowed namespaces that reach beyond tensors: these read, map and write files.
_FORBIDDEN_OPERATORS = frozenset({"from_file", "save", "_dir", "name"})
_DUNDER_OPERATORS = re.compile(r"__i?(and|or|xor|lshift|rshift)__")

# Containers that torch restores without importing anything.
_CONTAINERS = frozenset(
    {
        "builtins.tuple",
        "builtins.list",
        "builtins.dict",
        "collections.OrderedDict",
        "torch.fx.immutable_collections.immutable_list",
        "torch.fx.immutable_collections.immutable_dict",
    }
)


def clean_program(raw: bytes) -> Json:
    """Parse a serialized program and return it without what is not needed.

    Raises LoadError for anything that could make `torch.export.load`, or a call of the loaded program, do more than
    compute on tensors.
    """
    document = parse_json(raw)
    version = _table(document, "schema_version").get("major")
    if version != SCHEMA_MAJOR:
        raise LoadError(f"program schema {version}, expected {SCHEMA_MAJOR}; export it again with torch 2.11 to 2.13")
    module = _table(document, "graph_module")
    return {
        "graph_module": {
            "graph": _graph(_table(module, "graph")),
            "signature": _plain(_table(module, "signature")),
            "module_call_graph": [_root_call(module)],
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": _plain(_table(document, "opset_version")),
        "range_constraints": _ranges(_table(document, "range_constraints")),
        "schema_version": _plain(_table(document, "schema_version")),
        "verifiers": _plain(document.get("verifiers", [])),
        "torch_version": _plain(document.get("torch_version", "")),
        "guards_code": [],
    }


def is_quantized(program: Json) -> bool:
    """Whether a cleaned program quantises, in its outermost graph, where quantisation writes its operators."""
    return any(node["target"].startswith(_QUANTISING_OPERATORS) for node in program["graph_module"]["graph"]["nodes"])


def parse_json(raw: bytes) -> Json:
    """Parse an entry that must be a JSON object. Raises LoadError."""
    if len(raw) > _MAX_BYTES:
        raise LoadError(f"has {len(raw)} bytes; at most {_MAX_BYTES} are read")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"is not JSON as torch writes it: {error}") from None
    if not isinstance(document, dict):
        raise LoadError("is not a JSON object")
    return document


def check_plain(value: Any) -> None:
    """Raise LoadError unless `value` is made of numbers, harmless names and symbolic sizes."""
    _plain(value)


def _table(parent: Any, key: str) -> Json:
    value = parent.get(key) if isinstance(parent, Mapping) else None
    if not isinstance(value, dict):
        raise LoadError(f'"{key}" is missing or not an object')
    return value


def _items(parent: Json, key: str) -> list[Any]:
    value = parent.get(key)
    if not isinstance(value, list):
        raise LoadError(f'"{key}" is missing or not a list')
    return value


def _graph(graph: Json) -> Json:
    if graph.get("custom_obj_values"):
        raise LoadError(f"it uses objects of custom classes ({', '.join(graph['custom_obj_values'])[:80]})")
    return {
        "inputs": _plain(_items(graph, "inputs")),
        "outputs": _plain(_items(graph, "outputs")),
        "nodes": [_node(node) for node in _items(graph, "nodes")],
        **{
            f"{kind}_values": {_identifier(name): _plain(value) for name, value in graph[f"{kind}_values"].items()}
            for kind in ("tensor", "sym_int", "sym_bool", "sym_float")
            if f"{kind}_values" in graph
        },
        "is_single_tensor_return": graph.get("is_single_tensor_return") is True,
        "custom_obj_values": {},
    }


def _node(node: Json) -> Json:
    return {
        "target": _operator(node.get("target")),
        "inputs": [_named_argument(argument) for argument in _items(node, "inputs")],
        "outputs": _plain(_items(node, "outputs")),
        "metadata": _origin(node),
        "is_hop_single_tensor_return": _plain(node.get("is_hop_single_tensor_return")),
        "name": None if node.get("name") is None else _identifier(node["name"]),
    }


def _origin(node: Json) -> Json:
    """The modules that a node was traced in, which torch keeps as text and a profile is made of. Nothing else."""
    stack = node.get("metadata", {}).get("nn_module_stack")
    return {"nn_module_stack": stack} if isinstance(stack, str) and _MODULE_STACK.fullmatch(stack) else {}


def _named_argument(argument: Json) -> Json:
    return {
        "name": _identifier(argument.get("name")),
        "arg": _argument(_table(argument, "arg")),
        "kind": _plain(argument.get("kind")),
    }


def _argument(argument: Json) -> Json:
    """What a node is called with. Only here may text be free: it is quoted wherever torch writes it into source."""
    if len(argument) != 1:
        raise LoadError(f"an argument has {len(argument)} kinds instead of one")
    ((kind, value),) = argument.items()
    if kind == "as_string" and isinstance(value, str):
        return argument
    if kind == "as_strings" and isinstance(value, list) and all(isinstance(text, str) for text in value):
        return argument
    if kind == "as_operator":
        return {kind: _operator(value)}
    if kind == "as_graph":
        return {kind: {"name": _identifier(value.get("name")), "graph": _graph(_table(value, "graph"))}}
    if kind == "as_string_to_argument":
        return {kind: {_safe_text(name): _argument(inner) for name, inner in _table(argument, kind).items()}}
    return _json_object(_plain(argument))


def _operator(target: Any) -> str:
    """Raises LoadError unless `target` names an operator that does nothing but compute."""
    if isinstance(target, str) and target.isascii():
        if target in _PYTHON_OPERATORS or target in _CONTROL_FLOW or _SCALAR_OPERATOR.fullmatch(target):
            return target
        found = _OPERATOR.fullmatch(target)
        if found and _computes(found.group(2)):
            return target
    raise LoadError(
        f'it calls "{str(target)[:120]}"; only operators of torch.ops.{{{_NAMESPACES.replace("|", ", ")}}}, '
        f"control flow and arithmetic may be served"
    )


def _computes(name: str) -> bool:
    if name in _FORBIDDEN_OPERATORS:
        return False
    return not name.startswith("__") or _DUNDER_OPERATORS.fullmatch(name) is not None


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {_safe_text(name): _plain(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, key) for inner in value]
    if isinstance(value, str):
        return _string(value, key)
    return value


def _string(value: str, key: str) -> str:
    if key == "expr_str":
        parse_expression(value)
        return value
    if key == "class_fqn":
        raise LoadError(f"it uses an object of the custom class {value[:80]}")
    return _identifier(value) if key in ("name", "as_name") else _safe_text(value)


def _json_object(value: Any) -> Json:
    assert isinstance(value, dict)
    return value


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        raise LoadError(f"{str(name)[:80]!r} is not an identifier, as names in exported programs are")
    return name


def _safe_text(text: Any) -> str:
    if not isinstance(text, str) or not _TEXT.fullmatch(text):
        raise LoadError(f"{str(text)[:80]!r} holds characters that names in exported programs do not have")
    return text


def _ranges(constraints: Json) -> Json:
    for key, limits in constraints.items():
        bounds = [limits.get("min_val"), limits.get("max_val")] if isinstance(limits, dict) else [""]
        if not _RANGE_KEY.fullmatch(key) or not all(bound is None or type(bound) is int for bound in bounds):
            raise LoadError(f"{key[:80]!r} is not a range constraint as torch.export writes them")
    return constraints


def _root_call(module: Json) -> Json:
    """How the program as a whole is called: the structure of its arguments and results."""
    calls = _items(module, "module_call_graph")
    if not calls or not isinstance(calls[0], dict) or calls[0].get("fqn") != "":
        raise LoadError("the signature of its forward method is missing")
    signature = _table(calls[0], "signature")
    names = signature.get("forward_arg_names")
    return {
        "fqn": "",
        "signature": {
            "inputs": [],
            "outputs": [],
            "in_spec": _tree_spec(signature.get("in_spec"), "takes", keywords=True),
            "out_spec": _tree_spec(signature.get("out_spec"), "returns"),
            "forward_arg_names": None if names is None else [_identifier(name) for name in names],
        },
    }


def _tree_spec(text: Any, verb: str, keywords: bool = False) -> str:
    """The nesting of arguments or results; `keywords`: the second of two children holds keyword arguments."""
    try:
        protocol, tree = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise LoadError("the structure of its arguments or results cannot be read") from None
    _check_tree(tree, verb)
    if keywords:
        for child in tree["children_spec"][1:]:
            for name in json.loads(child["context"] or "null") or []:
                _identifier(name)
    return json.dumps([_plain(protocol), tree])


def _check_tree(tree: Any, verb: str) -> None:
    children = tree.get("children_spec") if isinstance(tree, dict) else None
    if not isinstance(children, list):
        raise LoadError("the structure of its arguments or results cannot be read")
    kind, context = tree.get("type"), tree.get("context")
    if kind is not None and kind not in _CONTAINERS:
        raise LoadError(
            f'its forward {verb} a "{str(kind)[:120]}", which only its own code can restore; use tuples, lists and '
            f"dictionaries of tensors"
        )
    _check_context(context)
    for child in children:
        _check_tree(child, verb)


def _check_context(context: Any) -> None:
    """The keys of a dictionary, as JSON inside the JSON; an object there would make torch import a module."""
    try:
        keys = [] if context is None else json.loads(context)
    except (TypeError, ValueError, RecursionError):
        keys = {}
    if not isinstance(keys, list | None) or not all(isinstance(key, str | int) for key in keys or []):
        raise LoadError(f"{str(context)[:80]!r} are not the keys of a dictionary")
    for key in keys or []:
        if isinstance(key, str):
            _safe_text(key)
