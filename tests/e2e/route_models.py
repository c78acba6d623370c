"""A repository with a route of every kind over two small models, and what each has to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from classifiers import write_classifier, write_route

Array = npt.NDArray[Any]
# The student is sure of the first, and not of the second.
ROWS = np.array([[3.0, 0.0, 0.0], [0.0, 0.1, 0.0]], np.float32)
LABELS = ("cat", "dog", "owl")
ROUTES = {
    "one": 'kind = "single"\nmodel = "student"\n',
    "blend": 'kind = "ensemble"\n[[members]]\nmodel = "student"\n[[members]]\nmodel = "teacher"\n',
    "sure": 'kind = "early_exit"\n[[stages]]\nmodel = "student"\nthreshold = 0.8\n[[stages]]\nmodel = "teacher"\n',
    "ab": (
        'kind = "split"\nsalt = "s"\n[[arms]]\nname = "new"\nmodel = "sure"\nweight = 1\n'
        '[[arms]]\nname = "old"\nmodel = "teacher"\nweight = 1\n'
    ),
}
KINDS = {"one": "single", "blend": "ensemble", "sure": "early_exit", "ab": "split"}


def write_routes(repository: Path) -> None:
    for name, factor in (("student", 1.0), ("teacher", 2.0)):
        write_classifier(repository, name, np.eye(3) * factor, labels=LABELS)
    for name, text in ROUTES.items():
        write_route(repository, name, text)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Array = powers / powers.sum(axis=-1, keepdims=True)
    return result


def check(name: str, logits: Array, said: dict[str, str]) -> None:
    """`said`: the answer's parameters that are strings."""
    student, teacher = ROWS, ROWS * 2
    sure = np.stack([student[0], teacher[1]])
    if name == "blend":
        np.testing.assert_allclose(softmax(logits), (softmax(student) + softmax(teacher)) / 2, rtol=1e-5)
    else:
        expected = {"one": student, "sure": sure, "ab": sure if said.get("offramp_arm") == "new" else teacher}[name]
        np.testing.assert_array_equal(logits, expected)
    assert said["offramp_route"] == KINDS[name]
    if name == "sure":
        assert said["offramp_exit"] == "student,teacher"
        assert said["offramp_models"] == "student:1,teacher:1"
        sure_of = [float(value) for value in said["offramp_confidence"].split(",")]
        assert sure_of[0] > 0.8 > sure_of[1]
