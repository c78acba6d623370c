"""The learning rate as a pure function of the step, so that a resumed run need not remember it."""

from __future__ import annotations

import math

from offramp_compression.training.settings import Schedule

# Smith & Topin, Super-Convergence (2017), with the constants of torch's OneCycleLR.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = _ONE_CYCLE_START * 1e-4
# He et al., Deep Residual Learning (2015), section 4.2: a tenth of the rate at half and at three quarters of the run.
_STEPS_AT = (0.5, 0.75)
_STEP = 0.1


def factor(schedule: Schedule, step: int, total: int, warmup: float) -> float:
    """The share of the highest learning rate at `step` of `total` steps (0 is the first).

    The rate rises during the share `warmup` of the steps: to "one_cycle" along a cosine from a 25th, to the others on
    a straight line from nothing. Then "one_cycle" falls along a cosine to nearly nothing, "cosine" likewise to nothing
    (Loshchilov & Hutter, SGDR, 2016, without restarts), "step" to a tenth at 50 % and at 75 % of the run, and
    "constant" stays.
    """
    rise = round(warmup * total)
    if step < rise:
        return _between(_ONE_CYCLE_START, 1.0, step / rise) if schedule == "one_cycle" else (step + 1) / rise
    # The last step gets the last value; of a run of one step there is only a first.
    fallen = (step - rise) / max(total - 1 - rise, 1)
    match schedule:
        case "one_cycle":
            return _between(1.0, _ONE_CYCLE_END, fallen)
        case "cosine":
            return _between(1.0, 0.0, fallen)
        case "step":
            return math.prod(_STEP for at in _STEPS_AT if step >= at * total)
        case "constant":
            return 1.0


def _between(start: float, end: float, share: float) -> float:
    """Along half a period of a cosine from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
