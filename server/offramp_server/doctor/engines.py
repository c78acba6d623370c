"""Which engines can run here, and what the others lack. No library is imported, unless a child process is asked to."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from offramp_common.engine_names import ENGINES

from offramp_server.doctor.section import Section
from offramp_server.doctor.software import VersionOf, version_of
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.workers.devices import could_use_cuda
from offramp_server.workers.engines.catalogue import engine_kinds
from offramp_server.workers.engines.kind import EngineKind
from offramp_server.workers.engines.kinds.torch_compile import cpp_compiler
from offramp_server.workers.environment import model_environment

# What an engine's speed and answers depend on. Of several spellings of one, one is installed.
DISTRIBUTIONS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
        "openvino": ("openvino",),
        "torch-tensorrt": ("torch", "torch-tensorrt", "tensorrt"),
    }
)
TORCH = ("torch",)
IMPORTS: Mapping[str, str] = MappingProxyType(
    {
        "torch": "import torch; print(torch.__version__, 'CUDA', torch.version.cuda, torch.cuda.is_available())",
        "onnxruntime": "import onnxruntime as o; print(o.__version__, *o.get_available_providers())",
        "openvino": "import openvino as o; print(o.__version__, *o.Core().available_devices)",
        "torch_tensorrt": "import torch_tensorrt as t; print(t.__version__)",
        "tensorrt": "import tensorrt as t; print(t.__version__)",
    }
)
IMPORT_SECONDS = 120.0
_SAMPLE = TensorSpec("x", "FP32", (4,), (None,), (None,))


def _mount_flags(folder: Path) -> int:
    return os.statvfs(folder).f_flag


def engines(device: str, kinds: Sequence[EngineKind] | None = None, installed: VersionOf = version_of) -> Section:
    """`device`: where models run that do not say, "cpu" or "cuda:0"."""
    kinds = engine_kinds() if kinds is None else kinds
    missing = {kind.name: kind.missing(device) or _never(kind, device) for kind in kinds}
    versions = {kind.name: _versions(kind.name, installed) for kind in kinds}
    lines = [(name, f"no: {lack}" if lack else f"yes, {versions[name]}") for name, lack in missing.items()]
    auto = {format_: _auto(kinds, format_, device) for format_ in ENGINES}
    lines += [(f"auto, .{format_}", ", ".join(names) or "nothing") for format_, names in auto.items()]
    compiler = cpp_compiler()
    lines.append(("C++ compiler", _compiler_version(compiler) if compiler else "none: engines of Inductor need g++"))
    facts = {
        "device": device,
        "engines": {name: {"missing": lack, "versions": versions[name]} for name, lack in missing.items()},
        "auto": auto,
        "compiler": compiler,
    }
    problems = (
        () if any(auto.values()) else ("no engine can run here; install one with: pip install 'offramp[server]'",)
    )
    return Section("engines", tuple(lines), facts, problems, unmappable(Path(tempfile.gettempdir())))


def unmappable(folder: Path, flags: Callable[[Path], int] = _mount_flags) -> tuple[str, ...]:
    """A warning if code that is unpacked in the temporary folder could not be run."""
    if not flags(folder) & os.ST_NOEXEC:
        return ()
    return (
        f"{folder} is mounted noexec, and torch could not load packages of aot-inductor from there; mount it with exec "
        "(docker run --tmpfs /tmp:exec), or set TMPDIR to another folder",
    )


def _versions(engine: str, installed: VersionOf) -> str:
    found = [(name, installed(name)) for name in DISTRIBUTIONS.get(engine, TORCH)]
    return ", ".join(f"{name} {version}" for name, version in found if version)


def _auto(kinds: Sequence[EngineKind], format_: str, device: str) -> list[str]:
    """Those that it would try for a plain model of that format, where that would run."""
    spec = _plain(format_)
    device = device if could_use_cuda(spec) else "cpu"
    able = [kind for kind in kinds if not kind.missing(device) and not kind.refusal(spec, device)]
    return [kind.name for kind in able if kind.variants(spec, device)]


def _never(kind: EngineKind, device: str) -> str:
    """Why it runs no format on this device; empty if it runs one."""
    refusals = [kind.refusal(_plain(format_), device) for format_ in ENGINES]
    return refusals[0] if all(refusals) else ""


def _plain(format_: str) -> ModelSpec:
    return ModelSpec("sample", 1, Path(f"model.{format_}"), format_, 8, (_SAMPLE,), (replace(_SAMPLE, name="y"),))


def _compiler_version(compiler: str) -> str:
    try:
        asked = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{compiler}, which does not run: {error}"
    return f"{compiler}: {asked.stdout.partition(os.linesep)[0]}"


@dataclass(frozen=True, slots=True)
class _Import:
    ok: bool
    said: str
    seconds: float


def imports(programs: Mapping[str, str] = IMPORTS, patience: float = IMPORT_SECONDS) -> Section:
    """Import each library that is installed, in a process of its own: a broken one may crash, or never return."""
    found = {module: _import(program, patience) for module, program in programs.items()}
    there = {module: result for module, result in found.items() if f"No module named '{module}'" not in result.said}
    lines = tuple((module, f"{result.said} ({result.seconds:.1f} s)") for module, result in there.items())
    warnings = tuple(
        f"{module} is installed and cannot be imported: {result.said}; reinstall it, or remove it"
        for module, result in there.items()
        if not result.ok
    )
    facts = {module: {"ok": r.ok, "said": r.said, "seconds": r.seconds} for module, r in there.items()}
    return Section("imports", lines or (("none", "no library of an engine is installed"),), facts, warnings=warnings)


def _import(program: str, patience: float) -> _Import:
    started = time.monotonic()
    try:
        child = subprocess.run(
            [sys.executable, "-c", program],
            env=model_environment(),
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _Import(False, f"it did not return within {patience:g} s", patience)
    seconds = time.monotonic() - started
    if child.returncode < 0:
        return _Import(False, f"it crashed with signal {-child.returncode}", seconds)
    if child.returncode:
        return _Import(False, (child.stderr.strip().splitlines() or ["it exited with an error"])[-1], seconds)
    return _Import(True, child.stdout.strip(), seconds)
