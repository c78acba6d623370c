"""MiniLM: a small BERT encoder, as a sentence encoder and as a classifier.

BERT: Devlin et al., 2019 (layer norm after each residual sum, GELU, learned positions, token types). MiniLM: Wang et
al., 2020, and its sentence-transformers version: the mean over the tokens as the sentence's embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from offramp_compression.errors import ModelError


@dataclass(frozen=True, slots=True)
class BertSizes:
    """The defaults are those of all-MiniLM-L6-v2: 22.6 million parameters without BERT's unused pooler."""

    vocabulary: int = 30522
    width: int = 384
    layers: int = 6
    heads: int = 12
    inner: int = 1536
    # The longest text in tokens.
    positions: int = 512
    token_types: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ModelError(
                f"a width of {self.width} cannot be divided over {self.heads} attention heads; "
                f"take a number of heads that divides it"
            )


def minilm(
    num_classes: int,
    *,
    vocabulary: int = 30522,
    width: int = 384,
    layers: int = 6,
    heads: int = 12,
    inner: int = 1536,
    positions: int = 512,
    dropout: float = 0.1,
) -> TextClassifier:
    """A classifier of texts with fresh weights; see `TextClassifier`. Its encoder's weights come from `load_bert`."""
    sizes = BertSizes(vocabulary, width, layers, heads, inner, positions, dropout=dropout)
    return TextClassifier(BertEncoder(sizes), num_classes, dropout)


def minilm_encoder(
    *,
    vocabulary: int = 30522,
    width: int = 384,
    layers: int = 6,
    heads: int = 12,
    inner: int = 1536,
    positions: int = 512,
    dropout: float = 0.1,
    normalize: bool = True,
) -> SentenceEncoder:
    """An encoder of sentences with fresh weights; see `SentenceEncoder`."""
    sizes = BertSizes(vocabulary, width, layers, heads, inner, positions, dropout=dropout)
    return SentenceEncoder(BertEncoder(sizes), normalize)


class TextClassifier(nn.Module):
    """Token ids int64 [N, L] and their mask int64 [N, L] (1: a token, 0: padding) to logits [N, classes]."""

    def __init__(self, encoder: BertEncoder, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.sizes.width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        pooled = masked_mean(self.encoder(input_ids, attention_mask), attention_mask)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


class SentenceEncoder(nn.Module):
    """Token ids int64 [N, L] and their mask int64 [N, L] to embeddings [N, width], of unit length if `normalize`."""

    def __init__(self, encoder: BertEncoder, normalize: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.normalize = normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        pooled = masked_mean(self.encoder(input_ids, attention_mask), attention_mask)
        return functional.normalize(pooled, dim=-1) if self.normalize else pooled


class BertEncoder(nn.Module):
    """Token ids int64 [N, L], their mask int64 [N, L] and, if given, token types int64 [N, L] to states [N, L, width].

    `layers.K` returns the state after K + 1 layers, [N, L, width]: where exits are attached.
    """

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embeddings = BertEmbeddings(sizes)
        self.layers = nn.ModuleList(BertLayer(sizes) for _ in range(sizes.layers))
        self.apply(_initialize)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        state = self.embeddings(input_ids, token_type_ids)
        visible = attention_mask.to(torch.bool)[:, None, None, :]
        for layer in self.layers:
            state = layer(state, visible)
        result: Tensor = state
        return result


class BertEmbeddings(nn.Module):
    """The sum of a token's, its position's and its type's vectors, normalised. Type 0 where no types are given."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.positions, sizes.width)
        self.token_types = nn.Embedding(sizes.token_types, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, eps=_NORM_EPS)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        types = self.token_types.weight[0] if token_type_ids is None else self.token_types(token_type_ids)
        positions = self.positions.weight[: input_ids.shape[1]]
        state: Tensor = self.dropout(self.norm(self.tokens(input_ids) + types + positions))
        return state


class BertLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each with a residual sum that is normalised after it (post-LN)."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.attention = SelfAttention(sizes)
        self.attention_norm = nn.LayerNorm(sizes.width, eps=_NORM_EPS)
        self.expand = nn.Linear(sizes.width, sizes.inner)
        self.contract = nn.Linear(sizes.inner, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, eps=_NORM_EPS)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, state: Tensor, visible: Tensor) -> Tensor:
        state = self.attention_norm(state + self.dropout(self.attention(state, visible)))
        inner = self.contract(functional.gelu(self.expand(state)))
        normalised: Tensor = self.norm(state + self.dropout(inner))
        return normalised


class SelfAttention(nn.Module):
    """State [N, L, width] and which positions may be looked at, bool [N, 1, 1, L], to [N, L, width]."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.attention_dropout = sizes.dropout
        self.query = nn.Linear(sizes.width, sizes.width)
        self.key = nn.Linear(sizes.width, sizes.width)
        self.value = nn.Linear(sizes.width, sizes.width)
        self.output = nn.Linear(sizes.width, sizes.width)

    def forward(self, state: Tensor, visible: Tensor) -> Tensor:
        query, key, value = (self._by_head(linear(state)) for linear in (self.query, self.key, self.value))
        dropout = self.attention_dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        joined: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return joined

    def _by_head(self, states: Tensor) -> Tensor:
        return states.reshape(*states.shape[:-1], self.heads, -1).transpose(1, 2)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of states [N, L, D] over the positions where `mask` [N, L] is 1, as [N, D]."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    # A row without tokens is what a server's padding looks like; it must not become NaN.
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def load_bert(encoder: BertEncoder, weights: Mapping[str, Tensor]) -> None:
    """Fill `encoder` from the tensors of a Hugging Face BERT checkpoint (`embeddings.word_embeddings.weight`, ...).

    BERT's own pooler and task heads are left out. Raises ModelError where a tensor is missing or has another shape.
    """
    own = encoder.state_dict()
    found: dict[str, Tensor] = {}
    for name, parameter in own.items():
        source = bert_name(name)
        tensor = weights.get(source, weights.get(f"bert.{source}"))
        if tensor is None:
            raise ModelError(f'the weights have no "{source}"; expected a BERT checkpoint with {_layers(own)} layers')
        if tensor.shape != parameter.shape:
            raise ModelError(f'"{source}" is {list(tensor.shape)}; the encoder was built for {list(parameter.shape)}')
        found[name] = tensor
    encoder.load_state_dict(found)


def bert_name(name: str) -> str:
    """What a Hugging Face BERT checkpoint calls the encoder's parameter `name`."""
    for ours, theirs in _BERT_NAMES:
        name = name.replace(ours, theirs)
    return name


def _initialize(module: nn.Module) -> None:
    """BERT's initialisation: normal with a standard deviation of 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _layers(names: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in names if name.startswith("layers.")})


_NORM_EPS = 1e-12

# Applied in order: "attention_norm" and "attention." have to be told apart from the layer's own ".norm.".
_BERT_NAMES = (
    ("layers.", "encoder.layer."),
    (".attention_norm.", ".attention.output.LayerNorm."),
    (".attention.query.", ".attention.self.query."),
    (".attention.key.", ".attention.self.key."),
    (".attention.value.", ".attention.self.value."),
    (".attention.output.weight", ".attention.output.dense.weight"),
    (".attention.output.bias", ".attention.output.dense.bias"),
    (".expand.", ".intermediate.dense."),
    (".contract.", ".output.dense."),
    ("embeddings.tokens.", "embeddings.word_embeddings."),
    ("embeddings.positions.", "embeddings.position_embeddings."),
    ("embeddings.token_types.", "embeddings.token_type_embeddings."),
    ("embeddings.norm.", "embeddings.LayerNorm."),
    (".norm.", ".output.LayerNorm."),
)
