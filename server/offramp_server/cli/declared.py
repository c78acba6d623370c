"""What a model takes and answers, as its server declares it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from offramp_client import Client, InferResult, ModelConfig, ModelMetadata, TensorInfo, Unimplemented

# The labels of a zero-shot model's answer, as a JSON list.
LABELS_PARAMETER = "offramp_labels"


@dataclass(frozen=True, slots=True)
class Declared:
    """One model or route. The shapes of `inputs` begin with the batch dimension if the model is `batched`."""

    name: str
    inputs: Mapping[str, TensorInfo]
    batched: bool
    # By output.
    labels: Mapping[str, tuple[str, ...]]
    # What its BYTES are, if the server says: text | image.
    preprocess: str = ""

    def item_dims(self, tensor: TensorInfo) -> tuple[int, ...]:
        """The dimensions of one item."""
        return tensor.shape[1:] if self.batched else tensor.shape


def ask(client: Client, model: str, version: str) -> Declared:
    """Raises an error of the client."""
    metadata = client.model_metadata(model, version)
    try:
        config = client.model_config(model, version)
    except Unimplemented:
        # The call is Triton's extension, which not every server has.
        config = None
    return combine(metadata, config)


def labels_of(model: Declared, result: InferResult) -> Mapping[str, tuple[str, ...]]:
    """What the positions of the outputs mean: the model's labels, or those that the request brought."""
    given = result.parameters.get(LABELS_PARAMETER)
    if not isinstance(given, str):
        return model.labels
    return dict.fromkeys(model.labels, tuple(json.loads(given)))


def combine(metadata: ModelMetadata, config: ModelConfig | None) -> Declared:
    inputs = {tensor.name: tensor for tensor in metadata.inputs}
    if config is None:
        batched = all(tensor.shape[:1] == (-1,) for tensor in metadata.inputs)
        return Declared(metadata.name, inputs, batched, {})
    return Declared(
        metadata.name, inputs, config.max_batch_size > 0, config.labels, config.parameters.get("preprocess", "")
    )
