"""Puts what requests were seen to do back into the order in which they came.

Answers come when they come, and audits later still: what is quick would be seen before what is slow, and a stream in
that order says for a while that all is well. So an observation waits until everything that came before it has settled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from offramp_adapters.audits.observation import Observation

# Why a request has no observations although it came before others that have: it took too long for all to wait.
OVERDUE = "overdue"


class Arrival:
    """One request at one route, from its arrival until nothing more can be seen of it. It begins with one hold."""

    __slots__ = ("_counted", "_holds", "_settled", "begun", "failure", "items", "observations", "sequence", "time")

    def __init__(
        self,
        sequence: int,
        time: float,
        settled: Callable[[], None] = lambda: None,
        counted: Callable[[int], None] = lambda more: None,
    ) -> None:
        """`time` in seconds since 1970; `settled` is called once it has, `counted` with how many more observations it
        has than before."""
        self.sequence = sequence
        self.time = time
        self.observations: list[Observation] = []
        # As it says itself; nobody has looked whether it is so before it was begun.
        self.items = 1
        # Something of it was computed: what becomes of it from now on may have to do with what it is.
        self.begun = False
        # Why it was not answered although it was begun.
        self.failure = ""
        self._holds = 1
        self._settled = settled
        self._counted = counted

    @property
    def settled(self) -> bool:
        return self._holds == 0

    def note(self, observations: Sequence[Observation]) -> None:
        """Nothing is taken any more once it has settled or was given up."""
        if not self.settled:
            self.observations.extend(observations)
            self._counted(len(observations))

    def hold(self) -> None:
        """More is to be seen of it later: one `release` more is needed."""
        self._holds += 1

    def release(self) -> None:
        if self._holds:
            self._holds -= 1
            if not self._holds:
                self._settled()

    def give_up(self, reason: str) -> None:
        """Nothing is waited for any more, and nothing is taken."""
        self.failure = reason
        self._counted(-len(self.observations))
        self.observations = []
        self._holds = 0


class Arrivals:
    """The requests of one epoch, in order. Hands each on once it and all before it have settled."""

    def __init__(self, limit: int, hand_on: Callable[[Arrival], None]) -> None:
        """More than `limit` are not held, nor more observations than that: the oldest is given up, so that one
        that hangs cannot stop all."""
        self._limit = limit
        self._hand_on = hand_on
        self._held: deque[Arrival] = deque()
        self._observations = 0

    @property
    def held(self) -> int:
        """Requests that have not been handed on."""
        return len(self._held)

    def add(self, sequence: int, time: float) -> Arrival:
        arrival = Arrival(sequence, time, self._advance, self._count)
        self._held.append(arrival)
        if len(self._held) > self._limit:
            self._give_up_oldest()
        return arrival

    def give_up(self, reason: str) -> None:
        """All that have not settled."""
        for arrival in self._held:
            if not arrival.settled:
                arrival.give_up(reason)
        self._advance()

    def _count(self, more: int) -> None:
        self._observations += more
        if more > 0 and self._observations > self._limit:
            self._give_up_oldest()

    def _give_up_oldest(self) -> None:
        self._held[0].give_up(OVERDUE)
        self._advance()

    def _advance(self) -> None:
        while self._held and self._held[0].settled:
            arrival = self._held.popleft()
            self._observations -= len(arrival.observations)
            self._hand_on(arrival)
