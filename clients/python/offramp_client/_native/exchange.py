"""Who waits for what on the connections of a blocking channel.

There is no thread that reads. Of those that wait for answers one leads: it reads the sockets, for all of them, until it
has what it waits for itself, and then wakes another one to lead. A lone caller therefore never waits for a thread.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from offramp_common.http2.client import ClientEngine

from offramp_client._native.blocking_connection import Connection, opened
from offramp_client._native.calls import CANCELLED, Call
from offramp_client._native.dispatch import Dispatch
from offramp_client._native.fields import Fields
from offramp_client._native.session import Lost, Session
from offramp_client._native.settings import Settings


class Waiter:
    """A thread that sleeps. All but `sleep` is for who holds the exchange's lock."""

    __slots__ = ("_asleep", "is_woken")

    def __init__(self) -> None:
        self.is_woken = False
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def wake(self) -> None:
        if not self.is_woken:
            self.is_woken = True
            self._asleep.release()

    def sleep(self, seconds: float) -> None:
        """At most so long."""
        self._asleep.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX) if seconds < math.inf else -1)


class WaitedCall(Call):
    """A call that threads wait for."""

    __slots__ = ("waiters",)

    def __init__(
        self, channel: Dispatch, block: bytes, request: bytes | None, deadline: float, server_streaming: bool
    ) -> None:
        super().__init__(channel, block, request, deadline, server_streaming)
        self.waiters: list[Waiter] = []

    def begin(self, engine: ClientEngine[Fields], now: float) -> None:
        super().begin(engine, now)
        # Whoever has more to send.
        self._wake()

    def _wake(self) -> None:
        for waiter in self.waiters:
            waiter.wake()

    on_message = on_over = on_room = _wake


class Exchange:
    """The state of a channel. All of it is for who has entered it: it is a lock, as a context manager."""

    def __init__(self, settings: Settings) -> None:
        # A thread may come twice: the garbage collector ends streams that nobody reads wherever it happens to run.
        self._lock = threading.RLock()
        self._entered = 0
        self._left_behind: list[WaitedCall] = []
        self.dispatch = Dispatch(settings, self._connect)
        self._settings = settings
        self._connections: dict[Session, Connection] = {}
        self._followers: list[Waiter] = []
        # What the thread waits for that leads; None: nobody does.
        self._wanted: Callable[[], bool] | None = None
        self._closed = False
        self._process = os.getpid()
        # By which the leader is called back from waiting for the sockets.
        self._called, self._calling = socket.socketpair()
        self._called.setblocking(False)
        self._calling.setblocking(False)

    @property
    def is_inherited(self) -> bool:
        """By a process that was forked: nothing of it may be used there, and its lock may be held for ever."""
        return self._process != os.getpid()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._entered += 1

    def __exit__(self, *exception: object) -> None:
        while self._left_behind and self._entered == 1:
            self.cancel(self._left_behind.pop())
        self._entered -= 1
        self._lock.release()

    def _leave(self) -> None:
        """For a while, to wait."""
        self._entered -= 1
        self._lock.release()

    # Calls

    def start(self, call: WaitedCall) -> None:
        if self._wanted is None:
            # Nobody has listened meanwhile: perhaps the server has gone, or wants to.
            for connection in list(self._connections.values()):
                self._read(connection)
        self.dispatch.start(call)
        self.settle()

    def cancel(self, call: WaitedCall, why: str = CANCELLED) -> None:
        if self._entered > 1:
            # In the middle of something: this has to wait until it is done.
            self._left_behind.append(call)
        elif not call.over:
            call.cancel(why)
            self.settle()

    def wait(self, call: WaitedCall, ready: Callable[[], bool]) -> None:
        """Until then, or until the call's time is up. `ready` has to be so when the call is over."""
        try:
            while not ready():
                if call.deadline <= self._settings.clock():
                    call.expire()
                    self.settle()
                elif self._wanted is None and self._connections:
                    self._lead(call, ready)
                else:
                    self._follow(call)
        finally:
            self._hand_over()

    def _follow(self, call: WaitedCall) -> None:
        waiter = Waiter()
        call.waiters.append(waiter)
        self._followers.append(waiter)
        self._leave()
        try:
            waiter.sleep(call.deadline - self._settings.clock() if call.deadline < math.inf else math.inf)
        finally:
            self.__enter__()
            call.waiters.remove(waiter)
            self._followers.remove(waiter)

    def _hand_over(self) -> None:
        if self._wanted is None:
            for waiter in self._followers:
                if not waiter.is_woken:
                    waiter.wake()
                    break

    # Leading

    def _lead(self, call: WaitedCall, ready: Callable[[], bool]) -> None:
        self._wanted = ready
        try:
            while self._connections and not ready():
                now = self._settings.clock()
                if call.deadline <= now:
                    return
                again = self._look(now)
                # Which may have been the end of all.
                if self._connections and not ready():
                    self._listen(min(call.deadline, again) - now)
        finally:
            self._wanted = None
            if self._closed:
                self._hang_up()

    def _listen(self, seconds: float) -> None:
        """Wait for the sockets without holding the lock, and read what has come."""
        connections = {connection.socket.fileno(): connection for connection in self._connections.values()}
        wanted = {number: connection.has_unsent for number, connection in connections.items()}
        wanted[self._called.fileno()] = False
        self._leave()
        try:
            ready = _ready(wanted, seconds)
        finally:
            self.__enter__()
        if self._called.fileno() in ready:
            with suppress(BlockingIOError):
                self._called.recv(64)
        for number, connection in connections.items():
            if number in ready and connection.session in self._connections:
                self._read(connection)
        self._flush()

    def _look(self, now: float) -> float:
        again = math.inf
        for connection in list(self._connections.values()):
            if connection.is_late(now):
                # Nobody may have listened meanwhile.
                self._read(connection)
            if connection.session not in self._connections:
                continue
            try:
                again = min(again, connection.look(now))
            except Lost as lost:
                self._lose(connection, str(lost))
        self._flush()
        return again

    def _read(self, connection: Connection) -> None:
        try:
            connection.read()
        except Lost as lost:
            self._lose(connection, str(lost))
        except BaseException:
            # Half of what came may have been taken: nothing that follows would mean what it says.
            self._lose(connection, "the thread that read the connection was interrupted")
            raise
        else:
            if connection.session.is_done:
                self._lose(connection, "the server takes no more calls")

    # After whatever makes output

    def settle(self) -> None:
        """Send what there is to send, and call the leader back if that changes something for it."""
        self._flush()
        wanted = self._wanted
        if wanted is not None and (wanted() or any(each.has_unsent for each in self._connections.values())):
            self._call_leader()

    def _call_leader(self) -> None:
        with suppress(OSError):
            self._calling.send(b"\0")

    def _flush(self) -> None:
        self._flush_all()
        if self.dispatch.waiting:
            self.dispatch.begin_waiting()
            self._flush_all()

    def _flush_all(self) -> None:
        for connection in list(self._connections.values()):
            try:
                connection.flush()
            except Lost as lost:
                self._lose(connection, str(lost))
            except BaseException:
                # Some of what was to be sent may be out, and nobody knows how much: nothing can follow it.
                connection.socket.close()
                self._lose(connection, "the thread that wrote to the connection was interrupted")
                raise

    # Connections

    def _connect(self) -> None:
        # Names are resolved, and TLS is agreed on, while those who wait keep an eye on their deadlines.
        try:
            threading.Thread(target=self._try_to_connect, name="offramp-connect", daemon=True).start()
        except RuntimeError as error:
            # The next call tries again.
            self.dispatch.on_unreachable(f"no connection: {error}")

    def _try_to_connect(self) -> None:
        try:
            made = opened(self._settings)
        except Exception as error:
            # Whatever it is, those who wait are not to wait for their deadlines.
            with self:
                self.dispatch.on_unreachable(f"no connection to {error}")
                self.settle()
            if not isinstance(error, OSError):
                raise
            return
        with self:
            if self._closed:
                made.close()
                return
            connection = Connection(made, self, self._settings)
            self._connections[connection.session] = connection
            self.dispatch.on_connected(connection.session)
            self.settle()
            # Who leads, if anybody, listens only to the connections that there were.
            self._call_leader()
            self._hand_over()

    def on_settings(self, session: Session) -> None:
        self.dispatch.on_settings(session)

    def on_goaway(self, session: Session) -> None:
        self.dispatch.on_goaway(session)

    def _lose(self, connection: Connection, reason: str) -> None:
        if self._connections.pop(connection.session, None) is not None:
            connection.close()
            self.dispatch.on_lost(connection.session, reason)

    def close(self, why: str) -> None:
        """Cancel every call, and take no more."""
        self._closed = True
        self.dispatch.close(why)
        for connection in list(self._connections.values()):
            self._lose(connection, why)
        self.settle()
        if self._wanted is None:
            self._hang_up()

    def _hang_up(self) -> None:
        self._called.close()
        self._calling.close()

    def abandon(self) -> None:
        """In a process that has inherited it: close what it has open, and say nothing to anybody."""
        for connection in self._connections.values():
            connection.socket.close()
        self._hang_up()


def _ready(wanted: dict[int, bool], seconds: float) -> set[int]:
    """Of these descriptors, those that can be read, or written where that is asked for. At most so long."""
    timeout = None if seconds == math.inf else max(0.0, seconds)
    if not hasattr(select, "poll"):
        writable = [number for number, also in wanted.items() if also]
        readable, written, _ = select.select(list(wanted), writable, [], timeout)
        return {*readable, *written}
    poll = select.poll()
    for number, also in wanted.items():
        poll.register(number, select.POLLIN | select.POLLOUT if also else select.POLLIN)
    # Rounded up, or the last millisecond would be spent asking again and again.
    return {number for number, _ in poll.poll(None if timeout is None else math.ceil(timeout * 1000))}
