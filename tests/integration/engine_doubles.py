"""Engines that misbehave, beside one that does what it should; run as a script it is a trial of them.

Each of them runs files of the format pt2, whatever is in them: y is the sum of x, taken twice.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.tuning.trial_main import main
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineKind, EngineRequest, NotWorthTrying
from open_inference.tensor import Tensor

PACKAGE = "package.txt"
# As a command line.
TRIAL = (sys.executable, __file__)
CRASH, HANG, EAT, EXIT, FILL, WRONG = "crash", "hang", "eat", "exit", "fill", "wrong"


@dataclass
class Summing:
    """Takes as long as it is told for a row."""

    report: EngineReport
    outputs: int
    seconds: float = 0.0
    factor: float = 1.0

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        array = inputs[0].numpy()
        until = time.perf_counter() + self.seconds * len(array)
        while time.perf_counter() < until:
            pass
        sums = array.sum(axis=1, keepdims=True, dtype=np.float32).repeat(self.outputs, axis=1)
        return [Tensor.from_numpy("y", sums * np.float32(self.factor))]

    def close(self) -> None:
        pass


@dataclass
class Double:
    """An engine that is as fast, and as well behaved, as it is told."""

    name: str
    # Milliseconds for a row.
    ms: float = 1.0
    # What it does in which step: "build", "load" or "answer".
    does: str = ""
    when: str = "load"
    tried: tuple[str, ...] = ("",)
    building: bool = False
    lacking: str = ""
    refused: str = ""

    def missing(self, device: str) -> str:
        return self.lacking

    def refusal(self, spec: ModelSpec, device: str) -> str:
        return self.refused

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return self.tried

    def builds(self, spec: ModelSpec) -> bool:
        return self.building

    def build(self, request: EngineRequest) -> None:
        self._misbehave("build")
        (request.artifacts / PACKAGE).write_text(f"{self.name} {os.nice(0)}")

    def load(self, request: EngineRequest) -> Engine:
        self._misbehave("load")
        if request.choice.variant == "useless":
            raise NotWorthTrying(f'model "{request.spec.name}": useless would change nothing')
        if self.building and not (request.artifacts / PACKAGE).is_file():
            raise LoadError(f'model "{request.spec.name}": there is no package')
        factor = 1.01 if self.does == WRONG else 1.0
        seconds = self.ms / 1e3 * (0.5 if request.choice.variant == "quick" else 1)
        # Threads help this engine up to two of them.
        seconds /= min(2, request.threads)
        return Summing(request.report(), request.spec.outputs[0].dims[0], seconds, factor)

    def _misbehave(self, step: str) -> None:
        if step == self.when:
            MISDEEDS.get(self.does, lambda: None)()


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    # As a compiler would be, which has to go as well.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(os.environ["DOUBLES_CHILD"]).write_text(str(child.pid))
    time.sleep(600)


def eat() -> None:
    eaten = []
    for _ in range(64):
        eaten.append(np.ones(8 << 20, dtype=np.uint8))
        time.sleep(0.02)
    time.sleep(600)


def leave() -> None:
    print("the licence has expired", file=sys.stderr, flush=True)
    os._exit(3)


def fill() -> None:
    """As a library says it that was told so by the system."""
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise RuntimeError("the package could not be written") from error


MISDEEDS = {CRASH: crash, HANG: hang, EAT: eat, EXIT: leave, FILL: fill}


def doubles() -> tuple[EngineKind, ...]:
    """What DOUBLES names, such as "torch-eager ms=4; openvino ms=1 does=crash when=build building=1"."""
    return tuple(_double(text) for text in os.environ["DOUBLES"].split(";"))


def _double(text: str) -> Double:
    name, *fields = text.split()
    made = Double(name)
    for field in fields:
        key, _, value = field.partition("=")
        now = getattr(made, key)
        made.__setattr__(key, tuple(value.split(",")) if isinstance(now, tuple) else type(now)(value))
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], doubles()))
