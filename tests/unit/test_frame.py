"""What passes between the front end and a worker through shared memory arrives as it was sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_adapters.routes.held import Held
from offramp_server.scheduling.held import Keep, KeptBatch, KeptRow
from offramp_server.workers import frame
from offramp_server.workers.kept import HeldInput
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
    frame.write_request(slab, 7, [(tensor, [tensor]) for tensor in sent])
    request = frame.read_request(slab)
    assert (request.handle, request.keep, request.released) == (7, None, ())
    assert [(t.datatype, t.shape, bytes(t.data)) for t in request.inputs] == [
        (t.datatype, t.shape, t.data) for t in sent
    ]
    slab.close()


def test_the_front_end_can_tell_whether_the_worker_had_begun(slab: Slab) -> None:
    worker = other_side(slab)
    tensor = Tensor.from_numpy("x", np.zeros(3, dtype=np.float32))
    for _ in range(2):
        frame.write_request(slab, 1, [(tensor, [tensor])])
        assert not frame.was_taken(slab)
        frame.read_request(worker)
        assert frame.was_taken(slab)
    worker.close()


def test_parts_are_laid_side_by_side(slab: Slab) -> None:
    whole = Tensor("x", "INT32", (3,), b"")
    parts = [Tensor.from_numpy("x", np.array(values, dtype=np.int32)) for values in ([1], [2, 3])]
    frame.write_request(slab, 1, [(whole, parts)])
    assert frame.read_request(slab).inputs[0].numpy().tolist() == [1, 2, 3]


def test_a_batch_larger_than_the_slab_grows_it_and_the_other_side_follows(slab: Slab) -> None:
    worker = other_side(slab)
    big = Tensor.from_numpy("x", np.arange(INITIAL_BYTES, dtype=np.float32))
    frame.write_request(slab, 1, [(big, [big])])
    received = frame.read_request(worker).inputs[0]
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


def held(*rows: tuple[int, int, int]) -> Held:
    """Rows by number of the batch, output and row."""
    places = tuple(KeptRow(cast(KeptBatch, SimpleNamespace(number=batch)), output, row) for batch, output, row in rows)
    return Held("h", "FP32", (len(rows), 3), b"", "worker", places)


def test_places_of_rows_go_to_the_worker_in_place_of_rows_that_it_has(slab: Slab) -> None:
    worker = other_side(slab)
    plain = Tensor.from_numpy("x", np.ones((2, 2), dtype=np.float32))
    frame.write_request(slab, 1, [(held((7, 1, 0), (2**40, 0, 3)), []), (plain, [plain])])
    there, here = frame.read_request(worker).inputs
    assert isinstance(there, HeldInput)
    assert (there.datatype, there.shape, there.places) == ("FP32", (2, 3), [(7, 1, 0), (2**40, 0, 3)])
    assert here.numpy().tolist() == [[1, 1], [1, 1]]
    worker.close()


def test_the_worker_is_told_what_to_keep_and_what_not_to_keep_any_longer(slab: Slab) -> None:
    worker = other_side(slab)
    numbers = list(range(frame.MAX_RELEASES))
    frame.write_request(slab, 1, [], Keep(5, 0b110, 0b100), numbers)
    request = frame.read_request(worker)
    assert request.keep == Keep(5, 0b110, 0b100)
    assert list(request.released) == numbers
    worker.close()


def test_an_output_that_stays_is_described_and_not_sent(slab: Slab) -> None:
    outputs = [Tensor.from_numpy("y", np.full((2, 2), value, dtype=np.float32)) for value in (1, 2)]
    frame.write_outputs(slab, outputs, 0, 0, lambda: 0, only_kept=0b10)
    sent, stayed = frame.read_outcome(slab).outputs
    assert sent.numpy().tolist() == [[1, 1], [1, 1]]
    assert (stayed.datatype, stayed.shape, len(stayed.data)) == ("FP32", (2, 2), 0)


def test_too_many_dimensions_for_the_header_are_refused_before_anything_is_written(slab: Slab) -> None:
    tensors = [Tensor("x", "INT8", (1,) * 200, b"\0")] * 64
    with pytest.raises(ValueError, match="too many tensors or dimensions"):
        frame.write_request(slab, 1, [(tensor, [tensor]) for tensor in tensors])
