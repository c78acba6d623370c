"""What a trial compares: answers to inputs that tell engines apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from offramp_server.engine_choice import EngineChoice
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.tuning.steps import Steps
from offramp_server.workers.control import Message, load_request_to_wire
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds.torch_compile import lacking_compiler
from offramp_server.workers.host import Placement
from open_inference.tensor import Tensor

Answer = Callable[[np.ndarray], np.ndarray]
TEXT = ModelSpec(
    "text", 1, Path("m.pt2"), "pt2", 4, (TensorSpec("ids", "INT64", (6,)),), (TensorSpec("y", "FP32", (1,)),)
)


@dataclass
class Computes:
    report: EngineReport
    answer: Answer

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        return [Tensor.from_numpy("y", self.answer(inputs[0].numpy()).reshape(-1, 1).astype(np.float32))]

    def close(self) -> None:
        pass


@dataclass
class Kind:
    name: str
    answer: Answer

    def missing(self, device: str) -> str:
        return ""

    def refusal(self, spec: ModelSpec, device: str) -> str:
        return ""

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ("",)

    def builds(self, spec: ModelSpec) -> bool:
        return False

    def build(self, request: EngineRequest) -> None: ...

    def load(self, request: EngineRequest) -> Engine:
        return Computes(request.report(), self.answer)


def difference(folder: Path, plain: Answer, other: Answer) -> float:
    steps = Steps([Kind("torch-eager", plain), Kind("onnxruntime", other)])
    for number, backend in enumerate(("torch-eager", "onnxruntime")):
        load = load_request_to_wire(number, TEXT, Placement("cpu", 1, EngineChoice(backend)))
        assert steps.carry_out(load) == {}
    where: Message = {"folder": str(folder)}
    assert steps.carry_out({"do": "write_answers", "handle": 0, **where}) == {}
    return float(steps.carry_out({"do": "compare_answers", "handle": 1, **where})["difference"])


def in_order(ids: np.ndarray) -> np.ndarray:
    return np.asarray((ids * np.arange(1, 7)).sum(axis=1) + 1)


def only_the_first(ids: np.ndarray) -> np.ndarray:
    if ids.any():
        raise IndexError("index 1 is out of range")
    return np.ones(len(ids))


def test_engines_that_agree_do_not_differ(tmp_path: Path) -> None:
    assert difference(tmp_path, in_order, in_order) == 0


@pytest.mark.parametrize("wrong", [lambda ids: np.ones(len(ids)), lambda ids: in_order(ids[:, ::-1])])
def test_an_engine_that_reads_token_ids_wrongly_is_found_out(tmp_path: Path, wrong: Answer) -> None:
    assert difference(tmp_path, in_order, wrong) > 0.1


def test_a_model_that_knows_one_index_is_compared_by_that_one(tmp_path: Path) -> None:
    assert difference(tmp_path, only_the_first, only_the_first) == 0
    assert difference(tmp_path, only_the_first, lambda ids: np.zeros(len(ids))) == 1


@dataclass
class NeedsCompiler(Kind):
    problem: str = ""

    def build(self, request: EngineRequest) -> None:
        raise LoadError(self.problem or f"no: {lacking_compiler(self.name)}")


@pytest.mark.parametrize(("problem", "passing"), [("", True), ("an operator has no kernel", False)])
def test_a_build_that_fails_for_want_of_a_compiler_may_go_well_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str, passing: bool
) -> None:
    monkeypatch.setenv("CXX", "no-compiler-of-this-name")
    steps = Steps([NeedsCompiler("aot-inductor", in_order, problem)])
    choice = EngineChoice("aot-inductor", artifacts=tmp_path)
    request = load_request_to_wire(1, TEXT, Placement("cpu", 1, choice)) | {"do": "build"}
    assert steps.carry_out(request)["passing"] is passing
