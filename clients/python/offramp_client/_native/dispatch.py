"""The calls of a channel: on which connection they go, which of them wait, and for how long. Without I/O."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from offramp_client._native.calls import Call
from offramp_client._native.session import Session
from offramp_client._native.settings import Settings

_MULTIPLIER = 2.0
# Of a pause, the part that chance takes away: many clients of one server shall not come back all at once.
_JITTER = 0.2


class Backoff:
    """How long to leave a server alone that could not be reached."""

    def __init__(self, settings: Settings) -> None:
        self.reason = ""
        self._settings = settings
        self._pause = settings.initial_backoff
        self._until = -math.inf

    @property
    def is_over(self) -> bool:
        return self._settings.clock() >= self._until

    def failed(self, reason: str) -> None:
        self.reason = reason
        self._until = self._settings.clock() + self._pause * (1 - _JITTER * self._settings.chance())
        self._pause = min(self._pause * _MULTIPLIER, self._settings.max_backoff)

    def succeeded(self) -> None:
        self._pause = self._settings.initial_backoff


class Dispatch:
    """Its methods are called by one at a time. The owner calls `begin_waiting` when the server or the socket may have
    made room."""

    def __init__(self, settings: Settings, connect: Callable[[], None]) -> None:
        """`connect` begins an attempt, of which `on_connected` or `on_unreachable` is to be told."""
        self.max_message_bytes = settings.max_message_bytes
        self.waiting: deque[Call] = deque()
        # The one for new calls, and those that only end what they have.
        self.session: Session | None = None
        self.retired: set[Session] = set()
        self._settings = settings
        self._connect = connect
        self._connecting = False
        self._backoff = Backoff(settings)
        # Why there are no more calls.
        self._closed: str | None = None

    def start(self, call: Call) -> None:
        """Now, or when it can be."""
        session = self.session
        if session is not None and session.engine.can_begin and not self.waiting:
            call.begin(session.engine, self._settings.clock())
        elif self._closed is not None:
            call.cancel(self._closed)
        elif session is None and not self._connecting and not self._backoff.is_over:
            call.lose(self._backoff.reason)
        else:
            self.waiting.append(call)
            self.begin_waiting()

    def again(self, call: Call) -> None:
        """The server has refused it unseen. It begins with the next `begin_waiting`."""
        self.waiting.appendleft(call)

    def on_freed(self) -> None:
        self.begin_waiting()

    def begin_waiting(self) -> None:
        while self.waiting:
            if self.waiting[0].over:
                self.waiting.popleft()
                continue
            session = self.session
            if session is None:
                if not self._connecting:
                    self._connecting = True
                    self._connect()
                return
            if session.engine.going_away:
                self._retire(session)
                continue
            if not session.engine.can_begin:
                return
            self.waiting.popleft().begin(session.engine, self._settings.clock())

    # Connections

    def on_connected(self, session: Session) -> None:
        """There is one; its server has not said anything yet."""
        self.session = session
        session.engine.greet()

    def on_unreachable(self, reason: str) -> None:
        self._connecting = False
        self._fail_waiting(reason)

    def on_settings(self, session: Session) -> None:
        # Those of a connection before it say nothing of an attempt.
        if session is self.session:
            self._connecting = False

    def on_goaway(self, session: Session) -> None:
        if session.is_ready:
            self._retire(session)

    def on_lost(self, session: Session, reason: str) -> None:
        """The connection is gone."""
        said = f"{reason} ({session.farewell})" if session.farewell else reason
        was_ready = session.is_ready
        self.retired.discard(session)
        if session is self.session:
            self.session = None
            # Also with settings that broke the rules, of which nobody was told.
            self._connecting = False
            if not was_ready:
                self._fail_waiting(said)
            else:
                self._judge(session, said)
        session.lose(said)
        self.begin_waiting()

    def _retire(self, session: Session) -> None:
        if session is self.session:
            self.session = None
            self.retired.add(session)
            self._judge(session, f"the server takes no calls {session.farewell}".strip())

    def _judge(self, session: Session, said: str) -> None:
        """It was the one for new calls. A server that has not taken any of those that wait is one that could not be
        reached, or it would be asked again and again."""
        if session.engine.last_stream:
            self._backoff.succeeded()
        elif self.waiting:
            self._fail_waiting(said)

    def _fail_waiting(self, reason: str) -> None:
        self._backoff.failed(reason)
        waiting, self.waiting = self.waiting, deque()
        for call in waiting:
            call.lose(reason)

    @property
    def sessions(self) -> list[Session]:
        return [*self.retired, *((self.session,) if self.session is not None else ())]

    def expire(self, now: float) -> float:
        """Give up the calls whose time is up. When the next one's is."""
        for call in self._calls():
            if call.deadline <= now:
                call.expire()
        self.waiting = deque(call for call in self.waiting if not call.over)
        return min((call.deadline for call in self._calls()), default=math.inf)

    def _calls(self) -> list[Call]:
        begun = [call for session in self.sessions for call in session.calls()]
        return [*self.waiting, *begun]

    def close(self, why: str) -> None:
        """Cancel every call, and take no more."""
        self._closed = why
        waiting, self.waiting = self.waiting, deque()
        for call in waiting:
            call.cancel(why)
        if self.session is not None:
            self._retire(self.session)
        for session in self.retired:
            session.cancel(why)
            session.say_goodbye()
