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
from tqdm import tqdm

from offramp_server.cli.answers_of import answers_to, batches_of
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
    asker: Asker, asked: Mapping[Target, Asked], stages: Sequence[BoundStage], inputs: Mapping[str, Array]
) -> StageAnswers:
    """`inputs` are the first stage's, by name, N first in each. Where somebody watches, a bar shows how far it is."""
    count = len(next(iter(inputs.values())))
    passage = _Passage(asker, asked, stages)
    # So that no stage's first batch counts.
    await passage.answers(_rows(inputs, 0, passage.largest))
    passage.seconds[:] = 0
    parts = []
    with tqdm(total=count, unit="example", dynamic_ncols=True, disable=None) as bar:
        for start in range(0, count, CHUNK):
            parts.append(await passage.answers(_rows(inputs, start, CHUNK)))
            bar.update(len(parts[-1][0]))
    return StageAnswers([np.concatenate(outputs) for outputs in zip(*parts, strict=True)], passage.seconds / count)


def joined(parts: Sequence[StageAnswers]) -> StageAnswers:
    """What the same stages say of several sets of examples, one after the other."""
    outputs = [np.concatenate(each) for each in zip(*(part.outputs for part in parts), strict=True)]
    counts = [len(part.outputs[0]) for part in parts]
    return StageAnswers(outputs, np.average([part.costs for part in parts], axis=0, weights=counts))


def _rows(inputs: Mapping[str, Array], start: int, count: int) -> Mapping[str, Array]:
    return {name: array[start : start + count] for name, array in inputs.items()}


class _Passage:
    """Takes examples through all stages, and notes how long each stage takes."""

    def __init__(self, asker: Asker, asked: Mapping[Target, Asked], stages: Sequence[BoundStage]) -> None:
        self._asker = asker
        self._asked = asked
        self._stages = stages
        self.seconds = np.zeros(len(stages))
        sizes = [asked[stage.target].endpoint.max_batch_size for stage in stages]
        starts = [stage.start for stage in stages]
        # A batch of a network stays one from its first segment to its last: others may be padded to other lengths.
        self._sizes = [min(size for size, at in zip(sizes, starts, strict=True) if at == start) for start in starts]
        self.largest = max(sizes)

    async def answers(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The deciding outputs of the stages."""
        outputs = []
        batches: list[Mapping[str, Array]] = []
        for number, stage in enumerate(self._stages):
            if stage.start == number:
                batches = batches_of(inputs, self._sizes[number])
            started = time.perf_counter()
            wanted = (stage.decides, *stage.hands_on)
            answers = await answers_to(self._asker, self._asked[stage.target], batches, wanted)
            self.seconds[number] += time.perf_counter() - started
            outputs.append(np.concatenate([answer[stage.decides] for answer in answers]))
            batches = [{name: answer[name] for name in stage.hands_on} for answer in answers]
        return outputs
