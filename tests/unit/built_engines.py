"""Engines that need something built first, as the tuner makes them: one process builds, others load."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from offramp_server.engine_choice import EngineChoice
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.catalogue import engine_kinds
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.load import load_engine, usable_kind


def build(spec: ModelSpec, backend: str, folder: Path, variant: str = "", threads: int = 1) -> EngineChoice:
    """What `load_engine` takes. Raises LoadError."""
    artifacts = Path(tempfile.mkdtemp(dir=folder))
    choice = EngineChoice(backend, variant, threads, artifacts)
    kind = usable_kind(spec, "cpu", backend, engine_kinds())
    if not kind.builds(spec):
        shutil.rmtree(artifacts)
        return EngineChoice(backend, variant, threads)
    kind.build(EngineRequest(spec, "cpu", threads, choice))
    return choice


def built_engine(spec: ModelSpec, backend: str, folder: Path, variant: str = "", threads: int = 1) -> Engine:
    return load_engine(spec, "cpu", threads, build(spec, backend, folder, variant, threads))
