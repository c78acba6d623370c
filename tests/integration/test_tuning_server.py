"""A server chooses engines by trying them; whatever they do, the model is served and the report says what happened."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_doubles
import numpy as np
import pytest
import torch
from engine_models import convolutional, export_pt2
from eventually import PATIENCE
from metrics_page import metric
from model_repository import write_spin
from offramp_client import Client
from offramp_server import describe
from offramp_server.config import Settings, TuningSettings, WorkerSettings
from offramp_server.core import Core, build_core, build_engines
from offramp_server.engine_choice import EngineChoice
from offramp_server.inference import InferRequest
from offramp_server.rpc.model_config import config_message
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning.engines import Engines
from offramp_server.tuning.trial import Job
from offramp_server.tuning.trial_process import TrialProcess, start_trial
from open_inference.tensor import Tensor
from server_process import serving

ROW = np.array([[1, 2, 3, 4]], dtype=np.float32)


def make_engines(settings: TuningSettings, stats: Stats) -> Engines:
    trial = functools.partial(start_trial, command=engine_doubles.TRIAL)
    return build_engines(settings, stats, engine_doubles.doubles(), trial)


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    monkeypatch.setenv("DOUBLES_CHILD", str(tmp_path / "child"))
    return lambda text: monkeypatch.setenv("DOUBLES", text)


@pytest.fixture
def settings(tmp_path: Path) -> TuningSettings:
    return TuningSettings(cache=tmp_path / "cache", budget=PATIENCE, candidate_timeout=PATIENCE)


@asynccontextmanager
async def running(repository: Path, settings: TuningSettings) -> AsyncIterator[Core]:
    core = build_core(repository, Settings(engines=settings, workers=WorkerSettings(standby=0)), make_engines)
    try:
        await core.load()
        yield core
    finally:
        await core.close()


def parameters(core: Core, name: str = "spin") -> dict[str, str]:
    """As ModelConfig has them."""
    config = config_message(describe.model(core.models.get(name), ["1"]))
    return {key: value.string_value for key, value in config.parameters.items()}


async def answers(core: Core, name: str = "spin") -> None:
    response = await core.serving.infer(InferRequest(name, [Tensor.from_numpy("x", ROW)]))
    np.testing.assert_array_equal(response.outputs[0].numpy(), ROW)


async def load_impatiently(
    trial: TrialProcess, number: int, job: Job, choice: EngineChoice, timeout: float, load: Any = TrialProcess.load
) -> None:
    """Whatever else happens may take its time, on a machine that others keep busy."""
    await load(trial, number, job, choice, 2 if choice.backend == "openvino" else timeout)


@pytest.mark.parametrize(
    ("does", "changes", "report"),
    [
        ("crash", {}, "crashed with SIGSEGV while it was loaded"),
        ("wrong", {}, "answers differently: by 0.01 of the largest value, where 0.0001 is tolerated"),
        ("hang", {}, "was ended after 2 s while it was loaded"),
        ("eat", {"max_memory_bytes": 400 << 20}, " of memory while it was loaded, of 419 MB that it may take"),
        ("exit", {}, "ended with exit code 3 while it was loaded: the licence has expired"),
    ],
)
async def test_an_engine_that_misbehaves_leaves_a_served_model_and_a_clear_report(
    repository: Path,
    settings: TuningSettings,
    kinds: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    does: str,
    changes: dict[str, float],
    report: str,
) -> None:
    write_spin(repository)
    kinds(f"onnxruntime ms=2; openvino ms=0.1 does={does}")
    if does == "hang":
        monkeypatch.setattr(TrialProcess, "load", load_impatiently)
    caplog.set_level(logging.INFO)
    async with running(repository, replace(settings, **changes)) as core:  # type: ignore[arg-type]
        await answers(core)
        shown = parameters(core)
    assert (shown["engine"], shown["engine.variant"]) == ("onnxruntime", "")
    assert report in shown["engine.rejected.openvino"]
    assert shown["engine.reason"].startswith("auto: the plain engine; nothing else could be timed")
    assert "engine.measured.openvino" not in shown
    assert f"openvino was not taken: {shown['engine.rejected.openvino']}" in caplog.text


@pytest.fixture
def no_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have the real engines: this one breaks when it is imported, which trials of doubles never do."""
    package = tmp_path / "broken" / "openvino"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('libopenvino.so is of another version')")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


@pytest.mark.usefixtures("no_openvino")
async def test_an_engine_that_no_worker_can_load_leaves_the_plain_one_and_is_not_tried_again_at_the_next_start(
    repository: Path, settings: TuningSettings, kinds: Callable[[str], None]
) -> None:
    write_spin(repository)
    kinds("onnxruntime ms=4; openvino ms=1 building=1")
    async with running(repository, settings) as core:
        await answers(core)
        shown = parameters(core)
        assert shown["engine"] == "onnxruntime"
        assert "openvino was faster in a trial, and no worker could load it" in shown["engine.reason"]
        assert "libopenvino.so is of another version" in shown["engine.rejected.openvino"]
        assert core.serving.stats.engine_builds == {"spin": 1}
    async with running(repository, settings) as core:
        assert parameters(core) == shown
        assert core.serving.stats.engine_builds == {}


@pytest.mark.usefixtures("no_openvino")
async def test_a_remembered_engine_that_cannot_be_loaded_any_more_is_forgotten_and_looked_for_once_more(
    repository: Path, settings: TuningSettings, kinds: Callable[[str], None]
) -> None:
    write_spin(repository)
    kinds("onnxruntime ms=2; openvino ms=4")
    async with running(repository, settings) as core:
        assert core.serving.stats.engine_tunings == {"spin": 1}
        assert settings.cache is not None
        [file] = settings.cache.glob("*/decision.json")
        file.write_text(file.read_text().replace('"backend": "onnxruntime"', '"backend": "openvino"'))
        await core.serving.load("spin")
        await answers(core)
        assert core.serving.stats.engine_lookups["hit"] == 2
        assert core.serving.stats.engine_tunings == {"spin": 2}
        assert parameters(core)["engine"] == "onnxruntime"


async def test_a_tuner_that_fails_leaves_a_served_model(
    repository: Path, settings: TuningSettings, kinds: Callable[[str], None]
) -> None:
    write_spin(repository)
    kinds("onnxruntime does=crash; openvino ms=1")
    async with running(repository, settings) as core:
        await answers(core)
        assert parameters(core)["engine.reason"] == (
            "auto: the plain engine; nothing could be compared with it, since its own trial crashed with SIGSEGV while "
            "it was loaded"
        )


async def test_a_new_version_is_tuned_while_the_old_one_serves(
    repository: Path, settings: TuningSettings, kinds: Callable[[str], None]
) -> None:
    write_spin(repository)
    kinds("onnxruntime ms=2; openvino ms=4")
    async with running(repository, settings) as core:
        (repository / "spin" / "1").rename(repository / "spin" / "2")
        file = repository / "spin" / "2" / "model.onnx"
        file.write_bytes(file.read_bytes() + b"\x72\x00")
        before = core.serving.stats.engine_tunings["spin"]
        await core.serving.load("spin")
        assert core.serving.stats.engine_tunings["spin"] == before + 1
        assert core.models.get("spin").spec.version == 2
        assert "openvino" in "".join(parameters(core))
        await answers(core)


async def test_where_tuning_is_off_nothing_is_tried_and_what_is_remembered_is_used(
    repository: Path, settings: TuningSettings, kinds: Callable[[str], None]
) -> None:
    write_spin(repository)
    kinds("onnxruntime ms=2; openvino ms=4")
    off = replace(settings, tune="never")
    async with running(repository, off) as core:
        assert parameters(core)["engine.reason"] == "auto: the plain engine, nothing was measured"
    async with running(repository, settings) as core:
        tuned = parameters(core)
    assert "engine.measured.openvino" in tuned
    async with running(repository, off) as core:
        assert parameters(core) == tuned
        assert not core.serving.stats.engine_tunings


async def test_a_model_that_cannot_bear_made_up_inputs_is_not_tuned(
    repository: Path, settings: TuningSettings, kinds: Callable[[str], None]
) -> None:
    write_spin(repository, config="[warmup]\niterations = 0\n")
    kinds("onnxruntime ms=2; openvino ms=1")
    async with running(repository, settings) as core:
        assert "[warmup] iterations = 0" in parameters(core)["engine.reason"]
        assert not core.serving.stats.engine_tunings


def test_a_second_start_compares_and_builds_nothing(repository: Path, tmp_path: Path) -> None:
    write_convolutions(repository)
    environment = {"OFFRAMP_ENGINES__TUNE": "at-load", "OFFRAMP_ENGINES__CACHE": str(tmp_path / "cache"),
                   "OFFRAMP_ENGINES__BUDGET": "10"}  # fmt: skip
    chosen = []
    for tunings in (1, 0):
        with serving(repository, environment=environment) as server, Client(server.grpc) as client:
            assert metric(server, "offramp_engine_tunings_total", model="net") == tunings
            assert metric(server, "offramp_engine_cache_lookups_total", outcome="miss") == tunings
            assert metric(server, "offramp_engine_cache_lookups_total", outcome="hit") == 1 - tunings
            builds = metric(server, "offramp_engine_builds_total")
            chosen.append(dict(client.model_config("net").parameters))
    assert builds == 0
    assert chosen[0] == chosen[1]
    assert "engines are compared from" not in chosen[0]["engine.reason"]


def write_convolutions(repository: Path, name: str = "net") -> None:
    """A .pt2 that takes some milliseconds for a batch, and can be rewritten."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    export_pt2(folder / "model.pt2", convolutional(), (torch.zeros(2, 1, 128, 128),))
