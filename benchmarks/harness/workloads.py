"""What is asked of the servers: models, their inputs, the answers that are right, and requests ready to send."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from open_inference import grpc_predict_v2_pb2 as pb

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.environments import REPOSITORY_ROOT

MODELS = ("identity", "student", "teacher")
# Return their input.
IDENTITIES = ("identity", "any-width")
# From a repository of the Fashion-MNIST example. What is quantized there is an ONNX file and nothing else.
FASHION_TEACHER, FASHION_STUDENT_INT8 = "fashion-teacher", "fashion-student-int8"
TORCH_EAGER, ONNX_RUNTIME = "torch-eager", "onnxruntime"
# What a file of each engine ends in; the file decides what runs it, in every server.
SUFFIXES: Mapping[str, str] = {TORCH_EAGER: ".pt2", ONNX_RUNTIME: ".onnx"}
MAX_BATCH = 16
EXPORTER = REPOSITORY_ROOT / "benchmarks" / "runtimes" / "export_models.py"


@dataclass(frozen=True)
class Workload:
    """One model with inputs float32 [16, ...] and the outputs float32 [16, ...] that eager inference gives.

    Servers know the model by the stem of `program`, which has the suffix of the engine.
    """

    name: str
    program: Path
    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]
    # Items in one request, and the most that a server may compute at once.
    items: int = 1
    max_batch: int = MAX_BATCH
    # The shape of an item as the server is told it, -1 for any; that of the inputs if there is none.
    dims: tuple[int, ...] | None = None

    @property
    def model(self) -> str:
        return self.program.stem

    @property
    def computes(self) -> bool:
        """Whether a batch of them costs less than one after the other."""
        return self.model not in IDENTITIES

    @property
    def engine(self) -> str:
        return next(engine for engine, suffix in SUFFIXES.items() if suffix == self.program.suffix)

    @property
    def exported(self) -> Path:
        """The same model as an exported program, whatever the engine."""
        return self.program.with_suffix(SUFFIXES[TORCH_EAGER])

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.inputs.shape[1:]

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.outputs.shape[1:]

    @property
    def input_dims(self) -> list[int]:
        return list(self.item_shape if self.dims is None else self.dims)

    @property
    def output_dims(self) -> list[int]:
        return list(self.output_shape if self.dims is None else self.dims)

    @property
    def answer_bytes(self) -> int:
        """Size of the tensor in the answer to a request."""
        return self.items * int(self.outputs[0].nbytes)

    def request(self, index: int) -> bytes:
        """Return the serialised ModelInferRequest for input `index`; more items are those that follow it."""
        items = np.take(self.inputs, range(index, index + self.items), axis=0, mode="wrap")
        message = pb.ModelInferRequest(model_name=self.model)
        message.inputs.add(name="input", datatype="FP32", shape=items.shape)
        message.outputs.add(name="output")
        message.raw_input_contents.append(items.tobytes())
        return message.SerializeToString()


def load_workloads(engine: str, fashion_repository: Path | None = None) -> dict[str, Workload]:
    """Return the workloads by name, as files for `engine`, exporting what the cache does not have.

    Raises FileNotFoundError if `fashion_repository` lacks the models of the example.
    """
    workloads = {name: load_workload(name, engine) for name in MODELS}
    if fashion_repository is not None:
        program = fashion_repository / FASHION_TEACHER / "1" / "model.pt2"
        workloads[FASHION_TEACHER] = load_workload(FASHION_TEACHER, engine, program)
        if engine == ONNX_RUNTIME:
            file = fashion_repository / FASHION_STUDENT_INT8 / "1" / "model.onnx"
            workloads[FASHION_STUDENT_INT8] = load_workload(FASHION_STUDENT_INT8, engine, file)
    return workloads


def load_workload(name: str, engine: str, source: Path | None = None) -> Workload:
    """One model of the exporter, or `source` under that name. Raises FileNotFoundError."""
    directory = exported_models(b"" if source is None else source.read_bytes())
    if not (directory / f"{name}.npz").exists():
        export(directory, name if source is None else f"{name}={source.resolve()}")
    program = directory / f"{name}{SUFFIXES[engine]}"
    if not program.exists():
        export(directory, program.name)
    with np.load(directory / f"{name}.npz") as arrays:
        return Workload(name, program, arrays["inputs"], arrays["outputs"])


def exported_models(source: bytes) -> Path:
    digest = hashlib.sha256(EXPORTER.read_bytes() + version("torch").encode() + source).hexdigest()[:12]
    return cache_directory("models", digest)


def export(directory: Path, wanted: str) -> None:
    """Exported into a folder of its own first: what is interrupted must not be taken for a model."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        for file in directory.glob(f"{Path(wanted).stem}.pt2"):
            os.link(file, Path(scratch, file.name))
        command = [sys.executable, "-m", "benchmarks.runtimes.export_models", scratch, wanted]
        subprocess.run(command, cwd=REPOSITORY_ROOT, check=True)
        # The .npz last: where it is, the program is whole.
        for file in sorted(Path(scratch).iterdir(), reverse=True):
            file.replace(directory / file.name)
