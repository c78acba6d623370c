"""A zero-shot classifier as a model that the server serves, whose labels a request may replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from offramp_compression.export.model_toml import DEFAULT_MAX_BATCH_SIZE
from offramp_compression.export.preparing import preparing
from offramp_compression.export.program import text_lengths
from offramp_compression.export.publish import Exported, Target, export_network
from offramp_compression.zero_shot.classifier import ZeroShotClassifier


def export_zero_shot(classifier: ZeroShotClassifier, texts: Sequence[str], target: Target) -> Exported:
    """Write the encoder as a version of `target`, with its tokenizer, `[preprocess]` and `[zero_shot]`.

    The file is compared with eager execution on `texts`. The server computes the vectors of the classes with it, those
    of `[zero_shot]` or those that a request brings. Raises ExportError as `export_network` does.
    """
    encoder, settings = classifier.encoder, classifier.settings
    inputs = encoder.tokens(texts)
    texts_taken = preparing(inputs, encoder.tokenizer.to_str().encode(), encoder.max_length)
    head = {**settings.as_table(), "embedding": encoder.network.output_names[0]}
    additions = replace(texts_taken, tables={**texts_taken.tables, "zero_shot": head})
    variable = text_lengths(encoder.network.input_names, inputs)
    return export_network(
        encoder.network, inputs, _fitting(target, len(settings.templates)), variable=variable, additions=additions
    )


def _fitting(target: Target, templates: int) -> Target:
    """The server encodes all templates of a class in one batch. An encoder without classes is not fine-tuned."""
    target = replace(target, keep_network=False)
    if templates <= (target.max_batch_size or DEFAULT_MAX_BATCH_SIZE):
        return target
    return replace(target, max_batch_size=templates)
