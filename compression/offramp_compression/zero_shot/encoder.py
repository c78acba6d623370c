"""Texts to sentence vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp_compression.architectures.minilm import SentenceEncoder
from offramp_compression.blueprint import Blueprint
from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.data.text import TextData, encode
from offramp_compression.network import Network
from offramp_compression.pretrained import MINILM_L6, load_minilm, minilm_tokenizer_file
from offramp_compression.provenance import Provenance, installed_versions
from offramp_compression.zero_shot.scores import Vectors, unit

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH = 64
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "embedding"


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """A `network` that makes a vector of each text, and what cuts texts into its tokens.

    The network takes token ids and a mask, int64 [N, L] each, and returns vectors, float32 [N, D].
    """

    network: Network
    tokenizer: Tokenizer
    max_length: int

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Vectors of unit length, float32 [N, D]. Raises DataError for a text without tokens."""
        # Texts of a similar length share a batch, so that little of it is padding.
        order = np.argsort([len(text) for text in texts], kind="stable")
        found = [self._embed([texts[place] for place in order[start : start + _BATCH]]) for start in _starts(texts)]
        return unit(np.concatenate(found)[np.argsort(order)])

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """The network's inputs for `texts`."""
        return tensors(self._dataset(texts))

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self.network.module(*self.tokens(texts)).numpy()
        return vectors

    def _dataset(self, texts: Sequence[str]) -> Dataset:
        return encode(TextData(tuple(texts), np.zeros(len(texts), np.int64), ("",)), self.tokenizer, self.max_length)


def minilm_text_encoder(max_length: int = 128) -> TextEncoder:
    """all-MiniLM-L6-v2 with its tokenizer; see `pretrained`. Raises DataError where it cannot be fetched."""
    from tokenizers import Tokenizer

    blueprint = Blueprint("minilm_encoder", {})
    module = blueprint.build().eval()
    assert isinstance(module, SentenceEncoder)
    load_minilm(module.encoder)
    source = {"package": MINILM_L6.name, "version": MINILM_L6.version, "sha256": MINILM_L6.sha256}
    provenance = Provenance("published", settings=source, versions=installed_versions())
    network = Network(module, blueprint, (), INPUTS, (OUTPUT,), provenance)
    return TextEncoder(network, Tokenizer.from_str(minilm_tokenizer_file().decode()), max_length)


def _starts(texts: Sequence[str]) -> range:
    return range(0, len(texts), _BATCH)
