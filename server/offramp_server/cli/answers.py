"""What `offramp infer` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from offramp_client import AnswerPath, InferResult
from offramp_common.tables import table
from open_inference.tensor import Array, datatype_of

# Values of one output that are printed; --json prints all.
SHOWN_VALUES = 64
# Parameters that are shown as the path.
_OF_PATH = frozenset(
    f"offramp_{name}" for name in ("route", "models", "exit", "confidence", "arm", "epoch", "request_id")
)


def as_json(result: InferResult, seconds: float, labels: Mapping[str, Sequence[str]], top: int) -> str:
    """The Open Inference Protocol's JSON form of the answer, with two keys more."""
    return json.dumps(
        {
            "model_name": result.model_name,
            "model_version": result.model_version,
            "id": result.id,
            "parameters": dict(result.parameters),
            "outputs": [_output_entry(name, array) for name, array in result.outputs.items()],
            "top": {
                name: [_best(row, labels[name], top) for row in _rows(array)]
                for name, array in result.outputs.items()
                if name in labels
            },
            "milliseconds": round(seconds * 1e3, 3),
        },
        indent=2,
        ensure_ascii=False,
    )


def as_text(result: InferResult, seconds: float, labels: Mapping[str, Sequence[str]], top: int) -> str:
    version = f" version {result.model_version}" if result.model_version else ""
    lines = [f"{result.model_name}{version} answered in {seconds * 1e3:.1f} ms, seen from here"]
    lines += [f"{name} = {value}" for name, value in result.parameters.items() if name not in _OF_PATH]
    lines += _path_lines(result.path)
    for name, array in result.outputs.items():
        lines += ["", f"{name}: {datatype_of(array.dtype)}{list(array.shape)}", _values(array)]
        if name in labels:
            lines += _ranking(array, labels[name], top)
    return "\n".join(lines)


def _path_lines(path: AnswerPath) -> Iterator[str]:
    if path == AnswerPath():
        return
    facts = {
        "route": path.route,
        "arm": path.arm,
        "exit": path.exit,
        "confidence": path.confidence,
        "models": ", ".join(path.models),
        "epoch": path.epoch,
        "request id": path.request_id,
    }
    yield "path: " + "; ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, ""))
    if len(path.exits) > 1 and (path.exit is None or path.confidence is None):
        rows = [
            (str(item), path.of_item(item).exit or "", _sure(path.of_item(item))) for item in range(len(path.exits))
        ]
        yield from ("", table(("item", "exit", "confidence"), rows, right=(0, 2)))


def _sure(path: AnswerPath) -> str:
    return "" if path.confidence is None else f"{path.confidence:g}"


def _output_entry(name: str, array: Array) -> dict[str, object]:
    values = [_plain(value) for value in array.reshape(-1).tolist()]
    return {"name": name, "datatype": datatype_of(array.dtype), "shape": list(array.shape), "data": values}


def _values(array: Array) -> str:
    if array.dtype == object:
        array = np.array([_plain(value) for value in array.reshape(-1)], dtype=object).reshape(array.shape)
    return np.array2string(array, threshold=SHOWN_VALUES, max_line_width=120, precision=4, suppress_small=True)


def _ranking(array: Array, labels: Sequence[str], top: int) -> Iterator[str]:
    for index, row in enumerate(_rows(array)):
        yield ""
        best = [
            (str(entry["index"]), str(entry["label"]), f"{entry['score']:.4f}") for entry in _best(row, labels, top)
        ]
        yield table((f"item {index}", "label", "score"), best, right=(0, 2))


def _rows(array: Array) -> Array:
    """All but the last dimension are items."""
    return array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)


def _best(row: Array, labels: Sequence[str], top: int) -> list[dict[str, object]]:
    order = np.argsort(-row.astype(np.float64), kind="stable")[:top]
    return [
        {"index": int(at), "label": labels[at] if at < len(labels) else "", "score": row[at].item()} for at in order
    ]


def _plain(value: object) -> object:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
