"""Small classifiers of tokens. All take `input_ids` and `attention_mask`, int64 [N, L], and return FP32 logits
[N, num_classes]; what is under a mask of 0 does not change the answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EmbeddingBag(nn.Module):
    """The mean of the tokens' embeddings, and a linear head or, with `hidden`, one hidden layer before it.

    After Joulin et al., Bag of Tricks for Efficient Text Classification (2016), without the n-grams.
    """

    def __init__(
        self, vocabulary_size: int, dimension: int = 64, num_classes: int = 2, hidden: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, dimension)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Sequential(nn.Linear(dimension, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.head = nn.Linear(hidden or dimension, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weight = attention_mask.unsqueeze(-1).to(self.embedding.weight.dtype)
        total = (self.embedding(input_ids) * weight).sum(dim=1)
        # A row without a token is possible in a request; its mean is taken as 0.
        mean = total / weight.sum(dim=1).clamp(min=1)
        logits: Tensor = self.head(self.hidden(self.dropout(mean)))
        return logits


class TextCNN(nn.Module):
    """Convolutions of several lengths over the tokens' embeddings, the maximum of each over the text, a linear head.

    After Kim, Convolutional Neural Networks for Sentence Classification (2014). `kernel_sizes` are odd, so that
    every output belongs to one token, and those of padding can be left out.
    """

    def __init__(
        self, vocabulary_size: int, dimension: int = 64, num_classes: int = 2, channels: int = 64,
        kernel_sizes: Sequence[int] = (3, 5, 7), dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if not all(size % 2 for size in kernel_sizes):
            raise ValueError(f"kernel_sizes: expected odd numbers, got {list(kernel_sizes)}")
        self.embedding = nn.Embedding(vocabulary_size, dimension)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(dimension, channels, size, padding=size // 2) for size in kernel_sizes
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels * len(kernel_sizes), num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(1).to(self.embedding.weight.dtype)
        embedded = self.embedding(input_ids).transpose(1, 2) * mask
        # After a ReLU nothing is below 0, so that masked positions never win the maximum.
        strongest = [(nn.functional.relu(conv(embedded)) * mask).amax(dim=2) for conv in self.convolutions]
        logits: Tensor = self.head(self.dropout(torch.cat(strongest, dim=1)))
        return logits
