"""Exit heads: a hidden state is pooled to one vector for each example, and a linear layer makes logits of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from offramp_common.text import did_you_mean, quoted
from torch import Tensor, nn

from offramp_compression.architectures.minilm import masked_mean
from offramp_compression.errors import ModelError

# Takes a hidden state and, where the network has one, the mask [N, L] of positions that count; returns [N, D].
Pool: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a hidden state of `rank` dimensions becomes [N, D], where D is the hidden state's dimension `features`."""

    rank: int
    features: int
    pool: Pool


POOLINGS: Mapping[str, Pooling] = MappingProxyType(
    {
        "pooled": Pooling(4, 1, lambda hidden, mask: hidden.mean((2, 3))),
        "mean": Pooling(3, 2, lambda hidden, mask: hidden.mean(1) if mask is None else masked_mean(hidden, mask)),
        "first-token": Pooling(3, 2, lambda hidden, mask: hidden[:, 0]),
        "flat": Pooling(2, 1, lambda hidden, mask: hidden),
    }
)
_DEFAULT = MappingProxyType({4: "pooled", 3: "mean", 2: "flat"})
AUTO = "auto"


def choose_head(kind: str, hidden: Tensor, where: str) -> tuple[str, int]:
    """The kind of head for the module `where` that returned `hidden`, and its number of features.

    "auto" is the mean over positions for [N, C, H, W] and for [N, L, D], and nothing for [N, D]. Raises ModelError for
    a kind that does not exist or does not take this shape.
    """
    chosen = _DEFAULT.get(hidden.dim()) if kind == AUTO else kind
    if chosen is None or chosen not in POOLINGS:
        hint = "; expected [N, C, H, W], [N, L, D] or [N, D]" if kind == AUTO else did_you_mean(kind, (AUTO, *POOLINGS))
        what = f"the shape {list(hidden.shape)}" if kind == AUTO else quoted(kind)
        raise ModelError(f"there is no exit head for {what} of module {quoted(where)}{hint}")
    pooling = POOLINGS[chosen]
    if hidden.dim() != pooling.rank:
        raise ModelError(
            f'a "{chosen}" head takes {pooling.rank} dimensions, but module {quoted(where)} returns '
            f'{list(hidden.shape)}; use "{_DEFAULT.get(hidden.dim(), AUTO)}"'
        )
    return chosen, hidden.shape[pooling.features]


class ExitHead(nn.Module):
    """A linear layer on a pooled hidden state."""

    def __init__(self, kind: str, features: int, num_classes: int) -> None:
        super().__init__()
        if kind not in POOLINGS:
            raise ModelError(f"there is no exit head {quoted(kind)}{did_you_mean(kind, POOLINGS)}")
        self.kind = kind
        self.linear = nn.Linear(features, num_classes)

    def pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """What the linear layer sees of a hidden state: [N, features]."""
        return POOLINGS[self.kind].pool(hidden, mask)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        logits: Tensor = self.linear(self.pool(hidden, mask))
        return logits
