"""Carries a plan out, whoever performs its steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from offramp_adapters.routes.plan import Outcomes, Plan, RouteRefused, Run, Shed, StateLost, Together

from offramp_server.errors import InvalidRequest, OfframpError, Overloaded, Unavailable

T = TypeVar("T")

# How long a caller should wait whose request was shed: no level of load is left sooner.
SHED_RETRY_SECONDS = 1.0


async def follow(plan: Plan[T], perform: Callable[[Together], Awaitable[Outcomes]]) -> T:
    """Carry out the plan's steps until it has its result. Raises InvalidRequest for what it refuses, Overloaded for
    what it sheds, and Unavailable where it gives up because workers died again and again."""
    try:
        step = next(plan)
        while True:
            try:
                outcomes = await perform(step)
            except OfframpError as error:
                step = plan.throw(error)
            else:
                step = plan.send(outcomes)
    except StopIteration as end:
        result: T = end.value
        return result
    except RouteRefused as error:
        raise InvalidRequest(str(error)) from error
    except Shed as error:
        raise Overloaded(str(error), SHED_RETRY_SECONDS) from error
    except StateLost as error:
        # A plan above this one has hidden state of its own, and this is not it.
        raise Unavailable(str(error)) from error
    finally:
        plan.close()


@contextmanager
def counted(ended: Callable[[str, int], None]) -> Iterator[None]:
    """Tell `ended` how it went, "ok" or an error's reason, and how many nanoseconds it took."""
    started = time.monotonic_ns()
    status = "internal"
    try:
        yield
        status = "ok"
    except OfframpError as error:
        status = error.reason
        raise
    except asyncio.CancelledError:
        status = "cancelled"
        raise
    finally:
        ended(status, time.monotonic_ns() - started)


@contextmanager
def blamed_on(run: Run) -> Iterator[None]:
    """An error in inputs that the caller did not send has to say whose they are."""
    try:
        yield
    except InvalidRequest as error:
        if run.inputs is None or not run.inputs_are:
            raise
        raise InvalidRequest(f"{run.inputs_are}: {error}") from error
