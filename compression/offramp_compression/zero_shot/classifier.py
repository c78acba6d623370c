"""A zero-shot classifier: scored, calibrated, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from offramp_common.text import did_you_mean, quoted

from offramp_compression.data.text import TextData
from offramp_compression.errors import DataError
from offramp_compression.evaluation.calibration import fit_temperature
from offramp_compression.zero_shot.encoder import TextEncoder
from offramp_compression.zero_shot.scores import Vectors, class_vectors, logits
from offramp_compression.zero_shot.settings import ZeroShotSettings

# Of the logarithm of a temperature, over data sets: most lie within a factor of e of the encoder's usual one.
_SPREAD = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class ZeroShotClassifier:
    """Nearest class by the cosine of sentence vectors (Yin et al., Benchmarking Zero-shot Classification, 2019)."""

    encoder: TextEncoder
    settings: ZeroShotSettings

    def classes(self) -> Vectors:
        """One vector of unit length for each label, [labels, D]."""
        return class_vectors(self.encoder(self.settings.prompts()), len(self.settings.templates))

    def logits(self, texts: Sequence[str]) -> Vectors:
        """Cosines over the temperature, [N, labels]; their softmax are the probabilities."""
        return logits(self.encoder(texts), self.classes(), self.settings.temperature)


def calibrated(classifier: ZeroShotClassifier, examples: TextData) -> ZeroShotClassifier:
    """The same classifier with the temperature that makes a few labelled examples most likely.

    Which class is first does not change, only how sure it is. The fewer examples, the nearer it stays to the settings'
    temperature; see `fit_temperature`. Raises DataError for examples of other classes.
    """
    labelled = aligned(examples, classifier.settings.labels)
    factor = fit_temperature(classifier.logits(labelled.texts), labelled.labels, _SPREAD)
    temperature = float(f"{classifier.settings.temperature * factor:.4g}")
    return replace(classifier, settings=replace(classifier.settings, temperature=temperature))


def aligned(examples: TextData, labels: Sequence[str]) -> TextData:
    """The same examples with labels counted in the order of `labels`. Raises DataError for a class without one."""
    places = {label: place for place, label in enumerate(labels)}
    for name in examples.class_names:
        if name not in places:
            raise DataError(f"the examples have a class {quoted(name)} that is no label{did_you_mean(name, labels)}")
    order = np.array([places[name] for name in examples.class_names], dtype=np.int64)
    return TextData(examples.texts, order[examples.labels], tuple(labels))
