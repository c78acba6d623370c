"""What blocks of fields meant that have come before: most clients send the same few again and again."""

from __future__ import annotations

from typing import Generic, TypeVar

_KEPT, _KEPT_BYTES = 16, 1024

H = TypeVar("H")


class HeadCache(Generic[H]):
    """Of one connection. A block means the same as long as its decoder's table has not changed."""

    def __init__(self) -> None:
        self._heads: dict[bytes, H] = {}
        # `HeaderDecoder.changes` when they were read.
        self._changes = 0

    def find(self, block: bytes, changes: int) -> H | None:
        return self._heads.get(block) if self._changes == changes else None

    def keep(self, block: bytes, head: H, changes: int) -> None:
        """`changes` is after the block was decoded."""
        if self._changes != changes:
            # What was kept may have meant entries that have moved, and so may this one if it added some.
            self._heads.clear()
            self._changes = changes
        elif len(block) <= _KEPT_BYTES:
            if len(self._heads) >= _KEPT:
                self._heads.clear()
            self._heads[block] = head

    def clear(self) -> None:
        self._heads.clear()
