"""A model counts as ready only after it has run; what it is run on must suit any model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from engine_models import model_spec
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec, TensorSpec, WarmupSettings
from offramp_server.workers.engines.warmup import sample_inputs, warm_up
from open_inference.tensor import BYTES, DATATYPES, Tensor, byte_size


class Recorder:
    """Answers with its inputs, and remembers their shapes."""

    report = EngineReport("recorder", "cpu", "fp32", 1, "test")

    def __init__(self, largest: int = 1_000) -> None:
        self.largest = largest
        self.batches: list[tuple[int, ...]] = []

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        self.batches.append(inputs[0].shape)
        if inputs[0].shape[0] > self.largest:
            raise RuntimeError("out of memory")
        return list(inputs)

    def close(self) -> None:
        pass


def spec(dims: str = "4", max_batch_size: int = 16, **warmup: object) -> ModelSpec:
    settings = WarmupSettings(**warmup)  # type: ignore[arg-type]
    return model_spec(Path("m.onnx"), [f"x FP32 {dims}"], [f"y FP32 {dims}"], max_batch_size, warmup=settings)


@pytest.mark.parametrize(
    ("asked", "batches"),
    [
        (spec(), [(1, 4)] * 2 + [(16, 4)] * 2),
        (spec(max_batch_size=1), [(1, 4)] * 2),
        (spec(max_batch_size=0), [(4,)] * 2),
        (spec(batch_sizes=(8, 2), iterations=2), [(2, 4)] * 3 + [(8, 4)] * 3),
        (spec("-1 3", batch_sizes=(1,), variable_dim=5), [(1, 5, 3)] * 2),
    ],
)
def test_each_batch_size_runs_once_cold_and_then_as_often_as_asked(
    asked: ModelSpec, batches: list[tuple[int, ...]]
) -> None:
    engine = Recorder()
    seconds = warm_up(engine, asked)
    assert engine.batches == batches
    assert list(seconds) == sorted({shape[0] if asked.batches else 1 for shape in batches})
    assert all(value >= 0 for value in seconds.values())


@pytest.mark.parametrize(("bounds", "size"), [((1, 6), 6), ((12, 20), 12), ((1, 20), 8), (None, 8)])
def test_a_variable_dimension_stays_in_its_range(bounds: tuple[int, int] | None, size: int) -> None:
    tensor = TensorSpec("x", "FP32", (-1,), ranges=(bounds,))
    (sample,) = sample_inputs(dataclasses.replace(spec(), inputs=(tensor,)), 2)
    assert sample.shape == (2, size)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_samples_are_whole_tensors_of_each_datatype_and_always_the_same(datatype: str) -> None:
    asked = dataclasses.replace(spec(), inputs=(TensorSpec("x", datatype, (3,)),))
    first, second = sample_inputs(asked, 2)[0], sample_inputs(asked, 2)[0]
    assert (first.name, first.datatype, first.shape, bytes(first.data)) == ("x", datatype, (2, 3), bytes(second.data))
    assert len(first.data) == (byte_size(datatype, (2, 3)) or len(first.data))
    values = first.numpy()
    if datatype == BYTES:
        assert all(values.reshape(-1))
    elif values.dtype.kind == "f":
        assert 0 < abs(values).max() < 1
    else:
        assert not values.any()


def test_a_failing_warm_up_names_the_batch_size_and_what_the_library_said() -> None:
    with pytest.raises(LoadError) as caught:
        warm_up(Recorder(largest=8), spec())
    assert str(caught.value).startswith(
        'model "m": warm-up with batch size 16 ("x" FP32[16, 4]) failed: out of memory; '
    )
