"""A stand-in for torch_tensorrt that takes what the real one takes, by its recorded signatures, and computes in torch.

The signatures are those of its wheels, which were read (`torch_tensorrt_signatures.json`; `*` before a name: by keyword
only, `!` behind it: required). The real functions end in **kwargs and swallow what they do not know; this one does not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

RECORDED: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("torch_tensorrt_signatures.json").read_text(encoding="utf-8")
)


class TorchTensorRTModule(nn.Module):
    """What TensorRT has compiled of a program."""


class Double:
    """One version of the library. Notes what it was asked for."""

    def __init__(self, version: str, takes_part: bool = True) -> None:
        self.takes_part = takes_part
        self.compiled: list[dict[str, Any]] = []
        self.saved: list[dict[str, Any]] = []
        self._signatures = RECORDED[version]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library, dynamo, runtime = (
            ModuleType(name) for name in ("torch_tensorrt", "torch_tensorrt.dynamo", "torch_tensorrt.dynamo.runtime")
        )
        for name, value in (("Input", self.input), ("save", self.save), ("load", self.load), ("dynamo", dynamo)):
            setattr(library, name, value)
        dynamo.compile = self.compile  # type: ignore[attr-defined]
        runtime.TorchTensorRTModule = TorchTensorRTModule  # type: ignore[attr-defined]
        for module in (library, dynamo, runtime):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def input(self, **given: Any) -> dict[str, Any]:
        assert given.keys() <= set(self._signatures["Input"].split())
        assert "shape" in given or {"min_shape", "opt_shape", "max_shape"} <= given.keys()
        return given

    def compile(self, *args: Any, **kwargs: Any) -> nn.Module:
        given = self._bound("dynamo.compile", args, kwargs)
        self.compiled.append(given)
        program = given["exported_program"]
        if given.get("enable_autocast"):
            assert given["autocast_low_precision_type"] in (torch.float16, torch.bfloat16)
        module = program.module()
        module.program = program
        if self.takes_part:
            module._run_on_acc_0 = TorchTensorRTModule()
        return module  # type: ignore[no-any-return]

    def save(self, *args: Any, **kwargs: Any) -> None:
        given = self._bound("save", args, kwargs)
        self.saved.append(given)
        torch.export.save(given["module"].program, given["file_path"])

    def load(self, *args: Any, **kwargs: Any) -> torch.export.ExportedProgram:
        try:
            return torch.export.load(self._bound("load", args, kwargs)["file_path"])
        except Exception as error:
            # Which of its two attempts has failed and why, it only logs.
            raise ValueError("The file doesn't correspond to a valid Torchscript module or ExportedProgram.") from error

    def _bound(self, function: str, args: Any, kwargs: Any) -> dict[str, Any]:
        return dict(signature(self._signatures[function]).bind(*args, **kwargs).arguments)


def signature(recorded: str) -> Signature:
    """Without its **kwargs."""
    return Signature([_parameter(text) for text in recorded.split() if not text.startswith("**")])


def named(function: Callable[..., Any]) -> str:
    """A function's signature as it is recorded."""
    marks: dict[Any, str] = {Parameter.KEYWORD_ONLY: "*", Parameter.VAR_KEYWORD: "**"}
    parameters = Signature.from_callable(function).parameters.values()
    return " ".join(
        marks.get(each.kind, "")
        + each.name
        + ("!" if each.default is Parameter.empty and each.kind is Parameter.POSITIONAL_OR_KEYWORD else "")
        for each in parameters
    )


def _parameter(text: str) -> Parameter:
    kind = Parameter.KEYWORD_ONLY if text.startswith("*") else Parameter.POSITIONAL_OR_KEYWORD
    default = Parameter.empty if text.endswith("!") else None
    return Parameter(text.strip("*!"), kind, default=default)
