"""What is asked of the servers: models, their inputs, the answers that are right, and requests ready to send."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from open_inference import grpc_predict_v2_pb2 as pb

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.environments import REPOSITORY_ROOT

MODELS = ("identity", "student", "teacher")
MAX_BATCH = 16
EXPORTER = REPOSITORY_ROOT / "benchmarks" / "runtimes" / "export_models.py"


@dataclass(frozen=True)
class Workload:
    """One model with inputs float32 [16, ...] and the outputs float32 [16, ...] that eager inference gives."""

    name: str
    program: Path
    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.inputs.shape[1:]

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.outputs.shape[1:]

    @property
    def answer_bytes(self) -> int:
        """Size of the tensor in the answer to a request of one item."""
        return int(self.outputs[0].nbytes)

    def request(self, index: int) -> bytes:
        """Return the serialised ModelInferRequest for input `index`, a batch of one."""
        item = self.inputs[index]
        message = pb.ModelInferRequest(model_name=self.name)
        message.inputs.add(name="input", datatype="FP32", shape=[1, *item.shape])
        message.outputs.add(name="output")
        message.raw_input_contents.append(item.tobytes())
        return message.SerializeToString()


def load_workloads() -> dict[str, Workload]:
    """Return the workloads by name, exporting the models first if the cache has none of this code and torch."""
    directory = exported_models()
    return {name: load_workload(directory, name) for name in MODELS}


def load_workload(directory: Path, name: str) -> Workload:
    with np.load(directory / f"{name}.npz") as arrays:
        return Workload(name, directory / f"{name}.pt2", arrays["inputs"], arrays["outputs"])


def exported_models() -> Path:
    digest = hashlib.sha256(EXPORTER.read_bytes() + version("torch").encode()).hexdigest()[:12]
    directory = cache_directory("models", digest)
    if not (directory / "complete").exists():
        command = [sys.executable, "-m", "benchmarks.runtimes.export_models", str(directory)]
        subprocess.run(command, cwd=REPOSITORY_ROOT, check=True)
        (directory / "complete").touch()
    return directory
