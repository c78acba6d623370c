"""What every stage of an early-exit route says of labelled examples, whatever its thresholds are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from offramp_adapters.routes.exit_stages import BoundStage
from offramp_adapters.routes.plan import Target
from open_inference.tensor import Array

from offramp_server.cli.answers_of import answers_of
from offramp_server.cli.asking import Asked, Asker

# Examples that go through all stages before the next ones: what segments hand on is much larger than what they take.
CHUNK = 256


@dataclass(frozen=True, slots=True, eq=False)
class StageAnswers:
    """Of N examples."""

    # The deciding output of each stage, [N, classes].
    outputs: list[Array]
    # Seconds for one item of each stage alone, in batches as large as they may be.
    costs: NDArray[np.float64]


async def stage_answers(
    asker: Asker, asked: Mapping[Target, Asked], stages: Sequence[BoundStage], inputs: Sequence[Array]
) -> StageAnswers:
    """`inputs` are in the order of the first stage's, N first in each."""
    count = len(inputs[0])
    parts: list[list[Array]] = [[] for _ in stages]
    seconds = np.zeros(len(stages))
    # So that no stage's first batch counts.
    await _pass(asker, asked, stages, [array[:CHUNK] for array in inputs], np.zeros(len(stages)))
    for start in range(0, count, CHUNK):
        chunk = [array[start : start + CHUNK] for array in inputs]
        for part, output in zip(parts, await _pass(asker, asked, stages, chunk, seconds), strict=True):
            part.append(output)
    return StageAnswers([np.concatenate(part) for part in parts], seconds / count)


async def _pass(
    asker: Asker,
    asked: Mapping[Target, Asked],
    stages: Sequence[BoundStage],
    inputs: Sequence[Array],
    seconds: NDArray[np.float64],
) -> list[Array]:
    """The deciding outputs; `seconds` grow by what each stage takes."""
    outputs, handed = [], dict[str, Array]()
    for number, stage in enumerate(stages):
        endpoint = asked[stage.target].endpoint
        taken = inputs if stage.start == number else [handed[info.name] for info in endpoint.inputs]
        started = time.perf_counter()
        handed = dict(await answers_of(asker, asked[stage.target], taken, (stage.decides, *stage.hands_on)))
        seconds[number] += time.perf_counter() - started
        outputs.append(handed[stage.decides])
    return outputs
