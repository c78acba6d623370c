"""The page that benchmarks/gpu.py writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.gpu_roofline import Ceilings, Cost, least_seconds

Row = Sequence[object]


def markdown(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    parts = [
        "# Engines of torch on one device",
        ", ".join(f"{key} {value}" for key, value in machine.items()) + ".",
        "Each engine is the server's own class. Errors are the largest difference from plain torch in fp32, relative "
        "to the largest output. Times are medians in milliseconds.",
    ]
    ceilings = results["ceilings"]
    if ceilings:
        parts += _ceilings(ceilings)
    parts += ["## Answers and time", _table(*_measured(results))]
    if results["staged"]:
        parts += ["## Two stages, and what stays on the device", _table(*_staged(results["staged"]))]
    if results["served"]:
        parts += ["## The server", _table(*_served(results["served"]))]
    if results["failed"]:
        parts += ["## Failed", "\n".join(f"- {line}" for line in results["failed"])]
    if results["left_out"]:
        parts += ["## Left out", "\n".join(f"- {line}" for line in results["left_out"])]
    return "\n\n".join(parts) + "\n"


def _ceilings(ceilings: Mapping[str, Any]) -> list[str]:
    flops = ", ".join(f"{value / 1e12:.0f} ({name})" for name, value in ceilings["flops_per_s"].items())
    return [
        f"Ceilings, measured: {ceilings['bytes_per_s'] / 1e9:.0f} GB/s by copying, and {flops} TFLOP/s by multiplying "
        "matrices. `of the roofline` is the least time that these allow, by the time that the device took; it counts "
        "weights, inputs and outputs once and nothing in between, so that 100 % cannot be reached by real layers.",
    ]


def _measured(results: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    header: Row = ["model", "engine", "precision", "batch", "error", "device", "of the roofline", "call", "overlapped"]
    rows: list[Row] = []
    for each in results["measured"]:
        share = _share(results, each)
        flag = "" if each["error"] <= each["tolerance"] else " **too far**"
        times = [_ms(each[key]) for key in ("device_s", "call_s", "overlapped_s")]
        names = [each[key] for key in ("model", "backend", "precision", "batch")]
        rows.append([*names, f"{each['error']:.1e}{flag}", times[0], share, *times[1:]])
    return header, rows


def _share(results: Mapping[str, Any], each: Mapping[str, Any]) -> str:
    if results["ceilings"] is None or each["device_s"] is None:
        return "-"
    cost = Cost(**results["costs"][each["model"]])
    least = least_seconds(cost, Ceilings(**results["ceilings"]), each["precision"], each["batch"])
    return f"{100 * least / each['device_s']:.0f} %"


def _staged(staged: Iterable[Mapping[str, Any]]) -> tuple[Row, list[Row]]:
    header: Row = [
        "model",
        "engine",
        "batch",
        "deferred",
        "stayed on the device",
        "right",
        "stages",
        "travelling",
        "whole",
    ]
    keys = ("model", "backend", "batch", "deferred")
    rows: list[Row] = [
        [
            *(each[key] for key in keys),
            _yes(each["stayed"]),
            _yes(each["agrees"]),
            *(_ms(each[key]) for key in ("stages_s", "travelling_s", "whole_s")),
        ]
        for each in staged
    ]
    return header, rows


def _served(served: Iterable[Mapping[str, Any]]) -> tuple[Row, list[Row]]:
    header: Row = ["model", "engine", "callers", "requests/s", "p50", "p99", "answers agree"]
    rows: list[Row] = [
        [
            each["model"],
            each["backend"],
            each["concurrency"],
            f"{each['requests_per_s']:.0f}",
            _ms(each["p50_s"]),
            _ms(each["p99_s"]),
            _yes(each["agrees"]),
        ]
        for each in served
    ]
    return header, rows


def _table(header: Row, rows: Sequence[Row]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
