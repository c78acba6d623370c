"""The counters that the path of a request writes."""

from __future__ import annotations

from offramp_server.telemetry.stats import MAX_VERSIONS_PER_MODEL, Histogram, Stats


def test_a_value_on_a_bound_belongs_to_that_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 104.0


def test_a_reload_goes_on_with_the_counters_of_its_version() -> None:
    stats = Stats()
    stats.model("m", "1").failed("cancelled", 5)
    assert stats.model("m", "1").failures == {"cancelled": 1}


def test_executions_are_counted_by_batch_size() -> None:
    model = Stats().model("m", "1")
    model.executed(4, 1, 2, 3)
    model.executed(4, 1, 2, 3)
    model.executed(1, 1, 2, 3)
    assert model.execution_count == 3
    assert (model.batches[4].count, model.batches[4].infer_ns) == (2, 4)


def test_a_model_with_ever_new_versions_does_not_grow_the_counters_for_ever() -> None:
    stats = Stats()
    stats.model("other", "1")
    for version in range(1, 10 * MAX_VERSIONS_PER_MODEL):
        stats.model("m", str(version))
    assert len(stats.models) == MAX_VERSIONS_PER_MODEL + 1
    assert ("m", str(10 * MAX_VERSIONS_PER_MODEL - 1)) in stats.models
    assert ("other", "1") in stats.models
