"""Words for messages: names that came from outside, and the name that was probably meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable

_SHOWN = 64


def quoted(name: object) -> str:
    """A name in quotes, on one line and cut to a length that a message can bear."""
    text = str(name)
    return json.dumps(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…", ensure_ascii=False)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append to a message: the nearest known name, or all of them; empty if there are none."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:_SHOWN], names, n=1)
    if near:
        return f"; did you mean {quoted(near[0])}?"
    return f"; there is {', '.join(quoted(known) for known in names[:10])}" if names else ""
