"""Trials without processes: how long each candidate takes, and what it does, is what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from offramp_server.engine_choice import EngineChoice
from offramp_server.tuning.trial import Job, Trial, TrialFailed, TrialOptions


@dataclass
class Script:
    """Of one candidate."""

    # Milliseconds for one item, and for a full batch, with one thread.
    first: float = 2.0
    full: float = 20.0
    difference: float = 0.0
    # By step, what it raises.
    fails: Mapping[str, TrialFailed] = field(default_factory=dict)
    # How often a step goes well before it fails.
    after: int = 0
    # Whether its process dies of that.
    dies: bool = False
    # The share of the time that further threads save.
    scales: float = 0.0


class Stage:
    """Every trial there was. `happened` has (step, label) in order."""

    def __init__(self, scripts: Mapping[str, Script]) -> None:
        self.scripts = scripts
        self.trials: list[FakeTrial] = []
        self.happened: list[tuple[str, str]] = []
        # Seconds that the steps were given.
        self.timeouts: list[float] = []

    async def start(self, options: TrialOptions) -> Trial:
        self.trials.append(FakeTrial(self, options))
        return self.trials[-1]

    def steps(self, label: str) -> list[str]:
        return [step for step, who in self.happened if who == label]


class FakeTrial:
    def __init__(self, stage: Stage, options: TrialOptions) -> None:
        self.options = options
        self.alive = True
        # Candidates at once.
        self.most_loaded = 0
        self._stage = stage
        self._loaded: dict[int, tuple[str, int]] = {}

    async def build(self, job: Job, choice: EngineChoice, timeout: float) -> None:
        assert choice.artifacts is not None
        self._step("build", choice.label, timeout)
        (choice.artifacts / "package").write_text(choice.label)

    async def load(self, number: int, job: Job, choice: EngineChoice, timeout: float) -> None:
        self._step("load", choice.label, timeout)
        self._loaded[number] = choice.label, job.threads
        self.most_loaded = max(self.most_loaded, len(self._loaded))

    async def write_answers(self, number: int, folder: Path, timeout: float) -> None:
        self._step("write_answers", self._loaded[number][0], timeout)

    async def compare_answers(self, number: int, folder: Path, timeout: float) -> float:
        label, _ = self._loaded[number]
        self._step("compare_answers", label, timeout)
        return self._stage.scripts[label].difference

    async def time(self, number: int, items: int, timeout: float) -> float:
        label, threads = self._loaded[number]
        self._step("time", label, timeout)
        script = self._stage.scripts[label]
        ms = script.first if items == 1 else script.full
        await asyncio.sleep(0)
        return ms / 1e3 * (1 - script.scales + script.scales / threads)

    async def unload(self, number: int, timeout: float) -> None:
        label, _ = self._loaded.pop(number)
        self._step("unload", label, timeout)

    async def close(self) -> None:
        self.alive = False

    def _step(self, step: str, label: str, timeout: float) -> None:
        assert self.alive
        self._stage.happened.append((step, label))
        self._stage.timeouts.append(timeout)
        script = self._stage.scripts[label]
        if step in script.fails and self._stage.steps(label).count(step) > script.after:
            self.alive = self.alive and not script.dies
            raise script.fails[step]
