"""The naive way that stages are measured against computes what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from segments import FEATURES, logits, write_segments

from benchmarks.runtimes.naive_stages import naive
from benchmarks.stages import largest_probability, threshold_between

ROWS = np.random.default_rng(3).standard_normal((20, FEATURES)).astype(np.float32)


def stages(repository: Path) -> list[onnx.ModelProto]:
    write_segments(repository, 0.5)
    return [onnx.load(repository / name / "1" / "model.onnx") for name in ("net-1", "net-2")]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_naive_way_goes_on_with_those_below_the_threshold_and_with_no_others(tmp_path: Path, share: float) -> None:
    first, second = logits(1, ROWS), logits(2, ROWS)
    scores = largest_probability(first)
    threshold = {0.0: 0.0, 1.0: 1.1}.get(share) or (threshold_between(scores, share) if share else 0.0)
    session = onnxruntime.InferenceSession(naive(stages(tmp_path), [threshold]).SerializeToString())
    deferred = scores < threshold
    assert deferred.mean() == share
    [answers] = session.run(["logits"], {"x": ROWS})
    np.testing.assert_allclose(answers, np.where(deferred[:, None], second, first), rtol=1e-5, atol=1e-5)


def test_a_cascade_and_more_than_two_stages_go_on_in_the_same_way(tmp_path: Path) -> None:
    first, second = stages(tmp_path)
    # A whole model behind the segments takes what the first stage takes.
    three = [first, second, first]
    thresholds = [threshold_between(largest_probability(logits(number, ROWS)), 0.5) for number in (1, 2)]
    session = onnxruntime.InferenceSession(naive(three, thresholds).SerializeToString())
    said = [logits(1, ROWS), logits(2, ROWS)]
    goes_on = [largest_probability(each) < at for each, at in zip(said, thresholds, strict=True)]
    expected = np.where((goes_on[0] & ~goes_on[1])[:, None], said[1], said[0])
    [answers] = session.run(["logits"], {"x": ROWS})
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-5)
