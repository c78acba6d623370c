"""Unix sockets to listen on: a killed server's does not stand in the way, and a living one's is left alone."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from offramp_server.errors import ConfigurationError

_UNIX = "unix:"
# How long other servers may take to open theirs in the same folder, and how often that is looked at. Seconds.
_LOCK_SECONDS, _LOCK_PAUSE_SECONDS = 5.0, 0.05


def host_of(path: Path) -> str:
    """As `ListenOptions.host` has it, and clients' targets."""
    return f"{_UNIX}{path}"


def path_of(host: str) -> Path | None:
    """None for what is no Unix socket."""
    return Path(host.removeprefix(_UNIX)) if host.startswith(_UNIX) else None


def refusal_of(path: Path) -> str:
    """Why nobody could listen there now; empty if one could. Nothing is changed."""
    try:
        _is_dead(path)
        if not os.access(path.parent, os.R_OK | os.W_OK | os.X_OK):
            missing = not path.parent.is_dir()
            return os.strerror(errno.ENOENT if missing else errno.EACCES)
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """The path is free, and no other server takes it until the block has ended: it has to bind and listen within.

    A socket that nobody listens on any more is removed. Raises ConfigurationError, also for an OSError of the block.
    """
    try:
        with _locked(path.parent):
            _remove_dead(path)
            yield
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host_of(path)}: {error.strerror or error}") from error


def bound_to_path(path: Path, backlog: int) -> socket.socket:
    """Listening, for one that does not would be taken for a dead one. Raises ConfigurationError."""
    with claimed(path):
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(str(path))
            listening.listen(backlog)
        except OSError:
            listening.close()
            raise
    return listening


class OwnPath:
    """The path of a socket of this server, if `host` is one; to be made once it is bound."""

    def __init__(self, host: str) -> None:
        self._path = path_of(host)
        self._number = self._path.lstat().st_ino if self._path is not None else 0

    def remove(self) -> None:
        """Before what there is has been answered: the next server may want the path by then, and keeps it."""
        path, self._path = self._path, None
        if path is not None:
            with suppress(OSError), _locked(path.parent):
                if path.lstat().st_ino == self._number:
                    path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl  # Windows has none, and no Unix sockets in Python either.

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(_LOCK_PAUSE_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _remove_dead(path: Path) -> None:
    """Raises OSError for a path that is somebody's."""
    if _is_dead(path):
        path.unlink()


def _is_dead(path: Path) -> bool:
    """Whether there is a socket that nobody listens on; there may be nothing. Raises OSError for what is somebody's."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "there is a file, which is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            # One whose backlog is full is not dead.
            probe.setblocking(False)
            probe.connect(str(path))
    except FileNotFoundError:
        return False
    except ConnectionRefusedError:
        return True
    except BlockingIOError:
        pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
