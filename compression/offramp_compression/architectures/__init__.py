"""Networks that the field starts from, by the names that blueprints use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from offramp_compression.architectures.cnn import VGG, PlainCNN, TinyCNN
from offramp_compression.architectures.minilm import minilm, minilm_encoder
from offramp_compression.architectures.resnet import ResNet18
from offramp_compression.architectures.text import EmbeddingBag, TextCNN

ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "resnet18": ResNet18,
        "vgg": VGG,
        "plain_cnn": PlainCNN,
        "tiny_cnn": TinyCNN,
        "embedding_bag": EmbeddingBag,
        "text_cnn": TextCNN,
        "minilm": minilm,
        "minilm_encoder": minilm_encoder,
    }
)
