"""Stages that say what a test wants them to, and a player of plans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from offramp_adapters.routes.early_exit import EarlyExit, EarlyExitRoute
from offramp_adapters.routes.exit_settings import Stage
from offramp_adapters.routes.plan import Answer, Parameters, Plan, Run, Target
from offramp_adapters.routes.strategy import Endpoint, Level, Query, TensorFacts
from open_inference.tensor import BYTES, Tensor

CLASSES = 3
IMAGE = TensorFacts("image", "FP32", (1,))
LOGITS = TensorFacts("logits", "FP32", (CLASSES,))
SENTENCE = TensorFacts("sentence", BYTES, (1,))


def endpoint(
    inputs: Sequence[TensorFacts] = (IMAGE,),
    outputs: Sequence[TensorFacts] = (LOGITS, SENTENCE),
    max_batch_size: int = 64,
    **more: object,
) -> Endpoint:
    return Endpoint(tuple(inputs), tuple(outputs), max_batch_size, **more)  # type: ignore[arg-type]


def hidden(number: int) -> TensorFacts:
    return TensorFacts(f"hidden_{number}_1", "FP32", (1,))


def segment(number: int, of: int, weights: str = "w") -> Endpoint:
    """As the export of a network with exits writes them."""
    inputs = (IMAGE,) if number == 1 else (hidden(number - 1),)
    outputs = (LOGITS,) if number == of else (LOGITS, hidden(number))
    said = {"provenance.settings.weights": weights, "provenance.settings.stage": str(number)}
    return endpoint(inputs, outputs, metadata=said)


def names(count: int) -> list[str]:
    return [f"s{number}" for number in range(1, count + 1)]


def route(thresholds: Sequence[float], **more: object) -> EarlyExitRoute:
    """Stages s1, s2, ... with these thresholds, and one more: the reference."""
    *exits, last = (Target(name) for name in names(len(thresholds) + 1))
    stages = [Stage(target, threshold) for target, threshold in zip(exits, thresholds, strict=True)]
    return EarlyExitRoute((*stages, Stage(last)), **more)  # type: ignore[arg-type]


def cascade(definition: EarlyExitRoute, max_batch_size: int = 64) -> EarlyExit:
    return definition.bind({target: endpoint(max_batch_size=max_batch_size) for target in definition.targets})


def segments(definition: EarlyExitRoute) -> EarlyExit:
    count = len(definition.stages)
    return definition.bind({target: segment(number, count) for number, target in enumerate(definition.targets, 1)})


def request(count: int) -> list[Tensor]:
    """Each item is its own number, so that stages know whom they see."""
    return [Tensor.from_numpy("image", np.arange(count, dtype=np.float32)[:, None])]


def logits(best: int, score: float) -> list[float]:
    """Logits of which the maximum probability is `score`, above 1 / CLASSES, for the class `best`."""
    rest = (1 - score) / (CLASSES - 1)
    with np.errstate(divide="ignore"):
        return [float(np.log(score if number == best else rest)) for number in range(CLASSES)]


# For stage (from 1) and item: the class, and how sure the stage is of it.
Says = Callable[[int, int], tuple[int, float]]


@dataclass
class Stages:
    """Answers runs: of whole models by the items in the image, of segments by those in the hidden state, to which each
    stage adds 1000 so that one that was left out shows."""

    says: Says
    runs: list[tuple[str, list[int], int]] = field(default_factory=list)
    # What is raised instead of the answer, by how many runs there were before.
    fail: Mapping[int, Exception] = field(default_factory=dict)

    def __call__(self, run: Run, inputs: Sequence[Tensor]) -> Answer:
        number = int(run.target.name[1:])
        [tensor] = inputs if run.inputs is None else run.inputs
        values = tensor.numpy()[:, 0].astype(int).tolist()
        if tensor.name != "image":
            assert all(value // 1000 == number - 1 for value in values)
        items = [value % 1000 for value in values]
        self.runs.append((run.target.name, items, run.depth))
        failure = self.fail.get(len(self.runs) - 1)
        if failure is not None:
            raise failure
        return self.answer(number, items)

    def answer(self, number: int, items: Sequence[int]) -> Answer:
        rows = np.array([logits(*self.says(number, item)) for item in items], np.float32).reshape(-1, CLASSES)
        sentences = np.array([[f"{item} at s{number}".encode()] for item in items], object)
        state = np.array([[number * 1000 + item] for item in items], np.float32)
        tensors = [
            Tensor.from_numpy("logits", rows),
            Tensor.from_numpy(f"hidden_{number}_1", state),
            Tensor.from_numpy("sentence", sentences),
        ]
        return Answer(tensors, models=(f"s{number}:1",))


def play(plan: Plan[object], stages: Stages, inputs: Sequence[Tensor] = ()) -> object:
    """What the plan comes to."""
    step = next(plan)
    try:
        while True:
            [run] = step.runs
            try:
                answer = stages(run, inputs)
            except Exception as error:
                step = plan.throw(error)
            else:
                step = plan.send((answer,))
    except StopIteration as end:
        return end.value


def never() -> float:
    raise AssertionError("nobody was to toss a coin")


def coins(values: Iterable[float]) -> Callable[[], float]:
    return iter(values).__next__


def ask(
    strategy: EarlyExit,
    stages: Stages,
    count: int = 1,
    parameters: Parameters | None = None,
    coin: Callable[[], float] = never,
    level: Level = Level.NORMAL,
) -> Answer:
    inputs = request(count)
    query = Query(parameters or {}, inputs, coin, level, epoch=7, sequence=11)
    answer = play(strategy.plan(query), stages, inputs)
    assert isinstance(answer, Answer)
    return answer


def exits(answer: Answer) -> list[str]:
    return str(answer.parameters["offramp_exit"]).split(",")
