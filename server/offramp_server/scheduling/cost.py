"""What a batch of one model costs by its size: measured by the warm-up, learnt from every batch since."""

from __future__ import annotations

from collections.abc import Mapping

# Weight of the newest batch in a running mean.
WEIGHT = 0.1

# A batch cheaper than this costs less than the round trip to its worker, so waiting for it gains nothing
# (measured: sending small batches ahead helps below about 0.2 ms and costs a third of the batch size above).
TRIVIAL_SECONDS = 0.0002

# Batching that saves a smaller share of an item's cost is no more than the error of its measurement.
WORTHWHILE_SHARE = 0.1

# A batch for which nobody waits may take as long as this many items by themselves.
BACKGROUND_COST = 2


class CostCurve:
    """Seconds by items."""

    def __init__(self, seconds_by_items: Mapping[int, float], max_items: int) -> None:
        """`seconds_by_items` is what the warm-up measured, maybe nothing: one batch of each size."""
        self._max_items = max(1, max_items)
        self._seconds = dict(seconds_by_items)
        self._smallest = min(self._seconds, default=0)
        self._largest = max(self._seconds, default=0)
        # Running means over the batches as they come. A model that had no warm-up may cost anything, and must not be
        # taken for a trivial one: that may be computed on the event loop.
        self.per_item = min((seconds / items for items, seconds in self._seconds.items()), default=0.0)
        self.per_batch = max(self._seconds.values(), default=TRIVIAL_SECONDS)

    @property
    def trivial(self) -> bool:
        return self.per_batch < TRIVIAL_SECONDS

    def learn(self, items: int, seconds: float) -> None:
        self.per_batch += WEIGHT * (seconds - self.per_batch)
        self.per_item += WEIGHT * (seconds / items - self.per_item)
        known = self._seconds.get(items)
        if known is not None:
            self._seconds[items] = known + WEIGHT * (seconds - known)
            return
        self._seconds[items] = seconds
        self._smallest = min(self._smallest or items, items)
        self._largest = max(self._largest, items)

    @property
    def gather_seconds(self) -> float:
        """How long it pays to let a batch gather items while there is other work: zero where the cost per item is flat,
        about one large batch where a batch costs hardly more than an item.

        In between, that batch's time by the square of the share that batching saves: by the share itself, much latency
        would be given away for little throughput (docs/adr/0009).
        """
        share = self._saved_share
        return share * share * self._seconds[self._largest] if share >= WORTHWHILE_SHARE else 0.0

    @property
    def _saved_share(self) -> float:
        """Of what an item costs by itself."""
        if self._smallest == self._largest:
            return 0.0
        alone = self._seconds[self._smallest] / self._smallest
        return 1.0 - self._seconds[self._largest] / self._largest / alone if alone > 0.0 else 0.0

    @property
    def background_items(self) -> int:
        """The most items of a batch for which nobody waits. Whoever comes meanwhile does wait for it: a batch cannot be
        interrupted."""
        if self._smallest == self._largest:
            return 1
        low, high = self._seconds[self._smallest], self._seconds[self._largest]
        per_further_item = (high - low) / (self._largest - self._smallest)
        if per_further_item <= 0.0:
            return self._max_items
        alone = low - (self._smallest - 1) * per_further_item
        further = (BACKGROUND_COST - 1) * alone / per_further_item
        return min(self._max_items, max(1, 1 + int(further)))
