"""Several models side by side: what they are worth and what they cost, on the same examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import ModelError
from offramp_compression.evaluation.bootstrap import Bootstrap
from offramp_compression.evaluation.latency import Timing, time_side_by_side
from offramp_compression.evaluation.load import ProcessorShare
from offramp_compression.evaluation.metrics import Quality, quality
from offramp_compression.evaluation.subject import Arrays, Subject, full_batch


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model's row."""

    name: str
    engine: str
    parameters: int | None
    size_bytes: int
    # For one item; None where they could not be counted.
    flops: int | None
    quality: Quality
    # One for each batch size, in the order asked for.
    timings: tuple[Timing, ...]


def evaluate(
    subjects: Sequence[Subject],
    data: Dataset,
    *,
    reference: Subject | None = None,
    batch_sizes: Sequence[int] = (1, 16),
    bootstrap: Bootstrap | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Evaluation]:
    """Ask every subject about all of ``data``, then time them in turns.

    Agreement is with ``reference``, where there is one. ``say`` hears what is being done. Raises ModelError if a
    subject's answers do not have one column for each class, or count in another order.
    """
    answers = {}
    for subject in subjects:
        say(f"asking {subject.name} about {len(data)} examples")
        answers[subject.name] = _logits(subject, data)
    # Not by its name: another file may well be called like one of the models.
    compared = next((answers[subject.name] for subject in subjects if subject is reference), None)
    if reference is not None and compared is None:
        say(f"asking {reference.name}, the reference")
        compared = _logits(reference, data)
    say("timing")
    timings = _time(subjects, data, batch_sizes)
    say("bootstrapping")
    return [
        Evaluation(
            subject.name, subject.engine, subject.parameters, subject.size_bytes, subject.flops(full_batch(data, 1)),
            quality(answers[subject.name], data.labels, data.class_names, compared, bootstrap),
            timings[subject.name],
        )
        for subject in subjects
    ]  # fmt: skip


def _logits(subject: Subject, data: Dataset) -> NDArray[np.floating]:
    if subject.class_names not in (None, data.class_names):
        raise ModelError(
            f"{subject.name} and the data do not have the same classes in the same order; the model has "
            f"{_shown(subject.class_names or ())} and the data {_shown(data.class_names)}"
        )
    logits = subject.logits(data)
    if logits.shape != (len(data), len(data.class_names)):
        raise ModelError(
            f"{subject.name} answers with shape {list(logits.shape)}; {len(data)} examples of {len(data.class_names)} "
            f"classes need [{len(data)}, {len(data.class_names)}]"
        )
    if not np.isfinite(logits).all():
        raise ModelError(f"{subject.name} answers with NaN or infinity; its weights or its inputs are broken")
    return logits


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")


def _time(subjects: Sequence[Subject], data: Dataset, batch_sizes: Sequence[int]) -> dict[str, tuple[Timing, ...]]:
    found: dict[str, list[Timing]] = {subject.name: [] for subject in subjects}
    for size in batch_sizes:
        arrays = full_batch(data, size)
        calls = {subject.name: _call(subject, arrays) for subject in subjects}
        with ProcessorShare() as share:
            estimates = time_side_by_side(calls)
        for name, seconds in estimates.items():
            found[name].append(Timing(size, seconds, share.value))
    return {name: tuple(timings) for name, timings in found.items()}


def _call(subject: Subject, arrays: Arrays) -> Callable[[], object]:
    return lambda: subject.answer(arrays)
