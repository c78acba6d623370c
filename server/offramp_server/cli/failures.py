"""How a command ends badly, apart from what the server says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """An option, a file or this installation cannot be used as asked. The message says what would be right."""


class Refused(Exception):
    """The command did its work and the answer is no; what there is to say is printed already, or is the message."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Arguments that a library refuses came from the command line: its sentence becomes a UsageError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UsageError(f"{where}{error.strerror or error}") from error
