"""Python's collector of cycles, in a process that answers requests for as long as it lives."""

from __future__ import annotations

import gc

# Python's own 700 are fewer objects than a few dozen requests in flight have: it would look at all of those again and
# again (measured: 12 % of a call's CPU at 32 callers). What a failed request may leave in a cycle is found soon enough.
_YOUNG_OBJECTS = 5000


def spare_what_stays() -> None:
    """To be called once everything is imported, and before models are loaded: these shall be found when they go."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
