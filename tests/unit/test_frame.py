"""What passes between the front end and a worker through shared memory arrives as it was sent."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_server.workers import frame
from offramp_server.workers.slab import INITIAL_BYTES, Slab
from open_inference.tensor import Tensor


@pytest.fixture
def slab() -> Iterator[Slab]:
    slab = Slab.create("test")
    yield slab
    slab.close()


def other_side(slab: Slab) -> Slab:
    """The same memory as another process would map it."""
    return Slab(os.dup(slab.descriptor))


shapes = st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple)


@given(shapes=st.lists(shapes, min_size=1, max_size=6))
def test_a_batch_arrives_as_it_was_sent(shapes: list[tuple[int, ...]]) -> None:
    slab = Slab.create("test")
    sent = [Tensor.from_numpy("x", np.random.default_rng(0).random(shape).astype(np.float32)) for shape in shapes]
    frame.write_request(slab, 7, [(tensor, [tensor.data]) for tensor in sent])
    handle, received = frame.read_request(slab)
    assert handle == 7
    assert [(t.datatype, t.shape, bytes(t.data)) for t in received] == [(t.datatype, t.shape, t.data) for t in sent]
    slab.close()


def test_the_front_end_can_tell_whether_the_worker_had_begun(slab: Slab) -> None:
    worker = other_side(slab)
    tensor = Tensor.from_numpy("x", np.zeros(3, dtype=np.float32))
    for _ in range(2):
        frame.write_request(slab, 1, [(tensor, [tensor.data])])
        assert not frame.was_taken(slab)
        frame.read_request(worker)
        assert frame.was_taken(slab)
    worker.close()


def test_parts_are_laid_side_by_side(slab: Slab) -> None:
    whole = Tensor("x", "INT32", (3,), b"")
    parts = [np.array(values, dtype=np.int32).tobytes() for values in ([1], [2, 3])]
    frame.write_request(slab, 1, [(whole, parts)])
    assert frame.read_request(slab)[1][0].numpy().tolist() == [1, 2, 3]


def test_a_batch_larger_than_the_slab_grows_it_and_the_other_side_follows(slab: Slab) -> None:
    worker = other_side(slab)
    big = Tensor.from_numpy("x", np.arange(INITIAL_BYTES, dtype=np.float32))
    frame.write_request(slab, 1, [(big, [big.data])])
    received = frame.read_request(worker)[1][0]
    assert bytes(received.data) == big.data
    worker.close()


def test_outputs_larger_than_the_slab_grow_it_from_the_worker_s_side(slab: Slab) -> None:
    worker = other_side(slab)
    big = Tensor.from_numpy("y", np.arange(INITIAL_BYTES, dtype=np.float32))
    ticks = iter((10, 15))
    frame.write_outputs(worker, [big], 3, 4, lambda: next(ticks))
    outcome = frame.read_outcome(slab)
    assert outcome.error is None
    assert bytes(outcome.outputs[0].data) == big.data
    assert (outcome.timing.input_ns, outcome.timing.infer_ns, outcome.timing.output_ns) == (3, 4, 5)
    worker.close()


def test_an_error_arrives_as_its_message_cut_to_a_bearable_length(slab: Slab) -> None:
    frame.write_error(slab, "RuntimeError: ünknown " + "x" * 100_000)
    error = frame.read_outcome(slab).error
    assert error is not None
    assert error.startswith("RuntimeError: ünknown xxx")
    assert len(error) < 10_000


def test_a_worker_that_writes_nonsense_is_not_believed(slab: Slab) -> None:
    good = Tensor.from_numpy("y", np.zeros((2, 2), dtype=np.float32))
    frame.write_outputs(slab, [good], 0, 0, lambda: 0)
    size_of_tensor = frame._RESPONSE.size + 2 + 8
    slab.view[size_of_tensor : size_of_tensor + 8] = (2**40).to_bytes(8, "little")
    with pytest.raises(ValueError, match="slab that is smaller"):
        frame.read_outcome(slab)
    slab.view[size_of_tensor : size_of_tensor + 8] = (4).to_bytes(8, "little")
    with pytest.raises(ValueError, match="4 bytes for FP32"):
        frame.read_outcome(slab)


def test_too_many_dimensions_for_the_header_are_refused_before_anything_is_written(slab: Slab) -> None:
    tensors = [Tensor("x", "INT8", (1,) * 200, b"\0")] * 64
    with pytest.raises(ValueError, match="too many tensors or dimensions"):
        frame.write_request(slab, 1, [(tensor, [tensor.data]) for tensor in tensors])
