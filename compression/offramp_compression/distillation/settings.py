"""What a student learns from its teachers, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from offramp_common.toml_schema import Rule, between, every


@dataclass(frozen=True, slots=True)
class DistillationSettings:
    # "kl": softened probabilities (Hinton et al., 2015); "mse": logits (Ba & Caruana, 2014).
    loss: Literal["kl", "mse"] = "kl"
    # Of "kl".
    temperature: Annotated[float, Rule("a number above 0", lambda value: value > 0)] = 4.0
    # The share of the labels' cross-entropy in the loss; the teachers have the rest.
    hard_weight: Annotated[float, between(0, 1)] = 0.1
    label_smoothing: Annotated[float, between(0, 1)] = 0.0
    # Relative to one another, in the order of the teachers; none: all alike.
    teacher_weights: Annotated[tuple[float, ...], every(Rule("a number above 0", lambda value: value > 0))] = ()
    # Feature matching: the student's modules, each with the module of the first teacher that it is to resemble.
    features: Mapping[str, str] = field(default_factory=dict)
    # What the features' error counts beside the rest of the loss.
    feature_weight: Annotated[float, between(0)] = 1.0
    # Augmented data: repeat the views of so many epochs, and ask the teachers once for each. 0: always new views.
    # What is not augmented is asked for once anyway, unless features have to be seen.
    views: Annotated[int, between(0)] = 0
