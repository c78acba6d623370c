"""Labelled examples as requests: images of an .npz file, or texts of a .tsv file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from offramp_compression.data.dataset import tensors
from offramp_compression.data.sources import open_dataset, open_texts
from open_inference import grpc_predict_v2_pb2 as pb
from open_inference.tensor import BYTES, Tensor, encode_bytes


@dataclass(frozen=True)
class Examples:
    """One tensor for each example, a batch of one, and its class, int64 [N]."""

    tensors: list[Tensor]
    labels: NDArray[np.int64]

    def requests(self, name: str) -> list[bytes]:
        """Serialised ModelInferRequests to the model or route of that name."""
        return [_request(name, tensor) for tensor in self.tensors]


def load_examples(path: Path, input_name: str, part: str = "test") -> Examples:
    """Raises DataError for what cannot be read."""
    if path.suffix == ".npz":
        data = open_dataset(path, part)
        arrays = tensors(data)[0].numpy()[:, None]
        return Examples([Tensor.from_numpy(input_name, array) for array in arrays], data.labels)
    texts = open_texts(path, part)
    return Examples([Tensor(input_name, BYTES, (1, 1), encode_bytes([text])) for text in texts.texts], texts.labels)


def _request(name: str, tensor: Tensor) -> bytes:
    message = pb.ModelInferRequest(model_name=name)
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    message.raw_input_contents.append(bytes(tensor.data))
    return message.SerializeToString()
