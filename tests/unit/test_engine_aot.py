"""AOTInductor: compiled once into packages, loaded without compiling. One model is compiled, once."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built_engines import build
from engine_models import Convolutional, export_pt2, model_spec, randomise
from offramp_server.engine_choice import EngineChoice
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines import aot_build
from offramp_server.workers.engines.aot_packages import Package, read_manifest
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.load import load_engine
from offramp_server.workers.engines.parity import compare
from offramp_server.workers.engines.program import load_exported, program_of
from open_inference.tensor import Tensor
from torch import nn

pytestmark = [
    # Inductor imports a module that still uses TorchScript.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
    # 20 s of CPU: minutes on a machine that others keep busy.
    pytest.mark.timeout(540),
]
LARGEST = 17


class Peculiar(nn.Module):
    """A network that also writes to an input, and returns an input and a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Convolutional()

    def forward(self, x: torch.Tensor, shift: torch.Tensor, *, scale: float = 2.0) -> tuple[torch.Tensor, ...]:
        shift.mul_(scale)
        return self.network(x) + shift, x, self.network.head.weight.expand(x.shape[0], 3, 4)


@dataclasses.dataclass(frozen=True)
class Built:
    spec: ModelSpec
    choice: EngineChoice


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("models")
    example = (torch.zeros(2, 1, 8, 8), torch.zeros(2, 3))
    path = export_pt2(folder / "peculiar.pt2", randomise(Peculiar()), example, batch=LARGEST)
    outputs = ["scores FP32 3", "same FP32 1 8 8", "weight FP32 3 4"]
    spec = model_spec(path, ["x FP32 1 8 8", "shift FP32 3"], outputs, LARGEST)
    return Built(spec, build(spec, "aot-inductor", folder))


def inputs(items: int) -> list[Tensor]:
    generator = np.random.default_rng(items)
    shapes = {"x": (items, 1, 8, 8), "shift": (items, 3)}
    return [
        Tensor.from_numpy(name, generator.standard_normal(shape, dtype=np.float32)) for name, shape in shapes.items()
    ]


def test_it_answers_as_torch_does_for_every_batch_size_and_leaves_its_inputs_alone(built: Built) -> None:
    engine, plain = (load_engine(built.spec, "cpu", 1, choice) for choice in (built.choice, None))
    assert engine.report.backend == "aot-inductor"
    for items in range(1, LARGEST + 1):
        given = inputs(items)
        before = [bytes(tensor.data) for tensor in given]
        assert compare(engine.execute(given), plain.execute(inputs(items))) < 1e-5
        assert [bytes(tensor.data) for tensor in given] == before


def test_every_batch_size_has_one_package_whose_code_was_compiled_for_it(built: Built) -> None:
    assert built.choice.artifacts is not None
    packages = read_manifest(built.choice.artifacts).packages
    assert sorted(size for package in packages for size in package.sizes) == list(range(1, LARGEST + 1))
    # torch asks whether a batch has 16 items when it chooses this convolution.
    assert [package.sizes for package in packages] == [(1,), (16, 17), tuple(range(2, 16))]
    left = {path.name for path in built.choice.artifacts.iterdir()}
    assert left == {"packages.json", *(package.file for package in packages)}


def test_answers_own_their_memory_although_the_model_returned_an_input_and_a_weight(built: Built) -> None:
    engine = load_engine(built.spec, "cpu", 1, built.choice)
    shared = [bytearray(tensor.data) for tensor in inputs(3)]
    given = [Tensor(tensor.name, "FP32", tensor.shape, data) for tensor, data in zip(inputs(3), shared, strict=True)]
    answers = engine.execute(given)
    kept = [bytes(answer.data) for answer in answers]
    for data in shared:
        data[:] = bytes(len(data))
    engine.execute(given)
    engine.close()
    assert [bytes(answer.data) for answer in answers] == kept


def test_what_torch_unpacks_does_not_stay_behind_when_a_worker_is_killed(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    engine = load_engine(built.spec, "cpu", 1, built.choice)
    assert list(tmp_path.rglob("*.so")) == []
    assert os.environ["TMPDIR"] == str(tmp_path)
    assert engine.execute(inputs(3))[0].shape == (3, 3)
    engine.close()


def test_a_size_that_no_package_was_built_for_is_never_computed(built: Built) -> None:
    engine = load_engine(dataclasses.replace(built.spec, max_batch_size=4), "cpu", 1, built.choice)
    with pytest.raises(KeyError, match="5"):
        engine.execute(inputs(5))


def test_it_obeys_the_number_of_threads_that_it_is_loaded_with(built: Built) -> None:
    plain = load_engine(built.spec, "cpu", 1)
    engine = load_engine(built.spec, "cpu", 2, dataclasses.replace(built.choice, threads=2))
    assert compare(engine.execute(inputs(16)), plain.execute(inputs(16))) < 1e-5
    assert engine.report.threads == 2


class Words(nn.Module):
    """The sum of what stands for each word in a table."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = self.table(ids).sum(1)
        return summed


@pytest.mark.parametrize(
    ("words", "outcome"), [(2, pytest.raises(LoadError, match="output 0 differs by")), (1, nullcontext())]
)
def test_a_package_is_tried_with_integers_that_tell_where_the_program_bears_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: int, outcome: AbstractContextManager[Any]
) -> None:
    path = export_pt2(tmp_path / "words.pt2", Words(words).eval(), (torch.zeros(2, 3, dtype=torch.int64),))
    spec = model_spec(path, ["ids INT64 3"], ["sum FP32 4"])
    program = program_of(load_exported(spec), spec)

    def takes_every_word_for_the_first(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return program([torch.zeros_like(tensor) for tensor in tensors])

    monkeypatch.setattr(aot_build, "open_package", lambda path, device: takes_every_word_for_the_first)
    request = EngineRequest(spec, "cpu", 1, EngineChoice("aot-inductor", artifacts=tmp_path))
    with outcome:
        aot_build._Builder(request, program, torch.device("cpu"))._try(Package("batch-1.pt2", (1,)))


LOAD = """
import sys
from pathlib import Path
from offramp_server.engine_choice import EngineChoice
from offramp_server.workers.engines.load import load_engine
sys.path.insert(0, sys.argv[1])
from engine_models import model_spec
inputs, outputs = ["x FP32 1 8 8", "shift FP32 3"], ["scores FP32 3", "same FP32 1 8 8", "weight FP32 3 4"]
spec = model_spec(Path("gone.pt2"), inputs, outputs, 17)
load_engine(spec, "cpu", 1, EngineChoice("aot-inductor", artifacts=Path(sys.argv[2])))
assert "torch._inductor.compile_fx" not in sys.modules
"""


def test_loading_compiles_nothing_and_reads_no_program(built: Built) -> None:
    command = [sys.executable, "-c", LOAD, str(Path(__file__).parent), str(built.choice.artifacts)]
    subprocess.run(command, check=True, timeout=120)


def test_a_package_that_is_damaged_is_refused(built: Built, tmp_path: Path) -> None:
    assert built.choice.artifacts is not None
    folder = Path(shutil.copytree(built.choice.artifacts, tmp_path / "copy"))
    choice = dataclasses.replace(built.choice, artifacts=folder)
    (folder / "batch-1.pt2").write_bytes(b"not a package")
    with pytest.raises(LoadError, match=r"torch cannot load the package .*batch-1\.pt2"):
        load_engine(built.spec, "cpu", 1, choice)
    (folder / "packages.json").write_text("{}")
    with pytest.raises(LoadError, match=r"packages\.json: not as aot-inductor builds it .*; build it again"):
        load_engine(built.spec, "cpu", 1, choice)


def test_lengths_below_two_are_refused_before_anything_is_compiled(tmp_path: Path) -> None:
    spec = model_spec(tmp_path / "tokens.pt2", ["ids INT64 -1"], ["y FP32 4"], backend="aot-inductor")
    with pytest.raises(LoadError, match=r'"ids" has a variable dimension that may be 1, .*Dim\(\.\.\., min=2\)'):
        build(spec, "aot-inductor", tmp_path)


def test_a_compiler_is_needed_to_build_and_not_to_load(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    load_engine(built.spec, "cpu", 1, built.choice).execute(inputs(1))
    with pytest.raises(LoadError, match=r"aot-inductor needs a C\+\+ compiler"):
        build(built.spec, "aot-inductor", built.spec.path.parent)
