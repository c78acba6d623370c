"""The load that `offramp bench` makes, and how it counts."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
import pytest
from offramp_client import InvalidArgument, ResourceExhausted, TensorInfo
from offramp_server.cli import bench
from offramp_server.cli.declared import Declared
from offramp_server.cli.failures import UsageError
from offramp_server.cli.load import Measurement, closed_loop, open_loop
from offramp_server.cli.samples import VARIABLE_LENGTH, random_inputs
from PIL import Image

T = TypeVar("T")

MODEL = Declared(
    "m",
    {
        "x": TensorInfo("x", "FP32", (-1, 3, -1)),
        "ids": TensorInfo("ids", "INT64", (-1, 2)),
        "flag": TensorInfo("flag", "BOOL", (-1,)),
        "half": TensorInfo("half", "BF16", (-1, 2)),
        "text": TensorInfo("text", "BYTES", (-1, 1)),
    },
    True,
    {},
)


class Selector(selectors.DefaultSelector):
    """Waits for no time to pass: it has passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += max(0.0, timeout or 0.0)
        return super().select(None if timeout is None else 0)


class Clock(asyncio.SelectorEventLoop):
    """An event loop on which time passes while everybody waits and at no other time, however busy the machine is."""

    def __init__(self) -> None:
        self._waits = Selector()
        super().__init__(self._waits)

    def time(self) -> float:
        return self._waits.now

    def stall(self, seconds: float) -> None:
        self._waits.now += seconds


def timed(load: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(load)


def clock() -> Clock:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Clock)
    return loop


class Server:
    """Counts calls; answers after a millisecond."""

    def __init__(self) -> None:
        self.calls = self.in_flight = self.most_in_flight = 0

    async def call(self) -> None:
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.001)
        self.in_flight -= 1


class TestClosedLoop:
    def test_each_caller_has_one_request_in_flight(self) -> None:
        server = Server()
        measurement = timed(closed_loop(server.call, 4, 0.05))
        assert server.most_in_flight == 4
        assert len(measurement.latencies) == server.calls == pytest.approx(4 * 50, abs=4)
        assert not measurement.errors

    def test_it_stops_sending_and_counts_what_was_on_its_way(self) -> None:
        answer = asyncio.Event()

        async def slow() -> None:
            clock().call_later(0.05, answer.set)
            await answer.wait()

        measurement = timed(closed_loop(slow, 3, 0.001))
        assert len(measurement.latencies) == 3
        assert measurement.seconds == pytest.approx(0.05)
        assert measurement.rate == pytest.approx(60)

    def test_a_refused_caller_stays_away_as_long_as_it_is_asked_to(self) -> None:
        async def refuse() -> None:
            raise ResourceExhausted("full", retry_after=3600.0)

        measurement = timed(closed_loop(refuse, 5, 0.3))
        assert measurement.errors == {"RESOURCE_EXHAUSTED": 5}
        assert measurement.latencies == []
        assert measurement.seconds == pytest.approx(0.3)

    def test_errors_are_counted_by_code_and_have_no_latency(self) -> None:
        turn = itertools.count()

        async def sometimes() -> None:
            await asyncio.sleep(0.001)
            if next(turn) % 2:
                raise InvalidArgument("no", retry_after=0.0)

        measurement = timed(closed_loop(sometimes, 1, 0.01))
        assert set(measurement.errors) == {"INVALID_ARGUMENT"}
        assert abs(len(measurement.latencies) - measurement.errors["INVALID_ARGUMENT"]) <= 1

    def test_a_defect_of_the_client_is_not_counted_as_an_error_of_the_server(self) -> None:
        async def broken() -> None:
            raise RuntimeError("ours")

        with pytest.raises(ExceptionGroup) as caught:
            timed(closed_loop(broken, 2, 0.01))
        assert caught.group_contains(RuntimeError, match="ours")


class TestOpenLoop:
    def test_requests_arrive_whether_earlier_ones_are_answered_or_not(self) -> None:
        answer = asyncio.Event()
        sent = 0

        async def stalled() -> None:
            nonlocal sent
            sent += 1
            if sent == 20:
                answer.set()
            await answer.wait()

        measurement = timed(open_loop(stalled, 1000.0, 0.5, 1000))
        assert len(measurement.latencies) == sent >= 20

    def test_a_stall_is_in_the_latency_of_all_who_came_meanwhile(self) -> None:
        stall = 0.1

        async def blocking() -> None:
            # The first one holds up everything, as a garbage collection would.
            nonlocal stall
            clock().stall(stall)
            stall = 0.0

        measurement = timed(open_loop(blocking, 500.0, 0.2, 1000))
        late = [latency for latency in measurement.latencies if latency > 0.02]
        assert len(late) > 10

    def test_beyond_the_bound_requests_are_counted_and_not_sent(self) -> None:
        measurement = timed(open_loop(lambda: asyncio.sleep(0.25), 500.0, 0.2, 7))
        assert len(measurement.latencies) == 7
        assert measurement.unsent > 0


class TestMeasurements:
    def test_percentiles_are_of_the_answers(self) -> None:
        measurement = Measurement(latencies=[0.001 * n for n in range(1, 101)], seconds=2.0, cpu_seconds=1.0)
        assert (measurement.rate, measurement.client_load) == (50.0, 0.5)
        assert measurement.percentile(50) == pytest.approx(0.0505)
        assert measurement.percentile(99) == pytest.approx(0.1, abs=0.002)

    def test_without_answers_there_are_none(self) -> None:
        assert math.isnan(Measurement(seconds=1.0).percentile(50))

    def test_a_row_shows_them_with_errors_and_what_was_not_sent(self) -> None:
        measurement = Measurement([0.001, 0.003], unsent=4, seconds=2.0, cpu_seconds=0.5)
        measurement.errors["UNAVAILABLE"] = 3
        row = bench._row(8, measurement)
        assert row.split(maxsplit=6) == ["8", "1.0", "2.00", "2.80", "2.98", "0.25", "UNAVAILABLE: 3, not sent: 4"]

    def test_json_has_no_latency_where_there_were_no_answers(self) -> None:
        document = json.loads(bench._json(8, Measurement(seconds=1.0)))
        assert (document["load"], document["answers"], document["latency_seconds"]) == (8, 0, {})


class TestMadeUpInputs:
    def inputs(self, shapes: dict[str, list[int]]) -> dict[str, tuple[str, tuple[int, ...]]]:
        made = random_inputs(MODEL, 2, shapes, np.random.default_rng(0))
        return {name: (tensor.datatype, tensor.numpy().shape) for name, tensor in made.items()}

    def test_are_what_the_model_declares(self) -> None:
        assert self.inputs({}) == {
            "x": ("FP32", (2, 3, VARIABLE_LENGTH)),
            "ids": ("INT64", (2, 2)),
            "flag": ("BOOL", (2,)),
            "half": ("BF16", (2, 2)),
            "text": ("BYTES", (2, 1)),
        }

    def test_integers_are_indices_into_any_table(self) -> None:
        ids = random_inputs(MODEL, 50, {}, np.random.default_rng(0))["ids"].numpy()
        assert set(ids.reshape(-1).tolist()) == {0, 1}

    def test_variable_dimensions_can_be_chosen(self) -> None:
        assert self.inputs({"x": [3, 50]})["x"] == ("FP32", (2, 3, 50))

    @pytest.mark.parametrize(
        ("shapes", "sentence"),
        [
            ({"x": [4, 50]}, r'one item of "x" is \[3, -1\] \(-1: any length\), got \[4, 50\]'),
            ({"x": [50]}, r"got \[50\]"),
            ({"z": [1]}, 'there is no input "z"; inputs: x, ids, flag, half, text'),
        ],
    )
    def test_shapes_that_cannot_be_are_refused(self, shapes: dict[str, list[int]], sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            self.inputs(shapes)

    def test_a_model_that_takes_pictures_gets_pictures(self) -> None:
        pictures = Declared("m", {"image_bytes": TensorInfo("image_bytes", "BYTES", (-1, 1))}, True, {}, "image")
        made = random_inputs(pictures, 2, {}, np.random.default_rng(0))["image_bytes"]
        assert made.shape == (2, 1)
        assert Image.open(io.BytesIO(made.numpy()[1, 0])).size == (224, 224)

    def test_a_model_that_does_not_batch_takes_one_item(self) -> None:
        single = Declared("m", {"x": TensorInfo("x", "FP32", (3,))}, False, {})
        assert random_inputs(single, 1, {}, np.random.default_rng(0))["x"].shape == (3,)
        with pytest.raises(UsageError, match='model "m" has no batch dimension'):
            random_inputs(single, 2, {}, np.random.default_rng(0))
