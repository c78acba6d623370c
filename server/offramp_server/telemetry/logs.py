"""Log lines as text or JSON, one record on one line, and their settings while the server runs.

Modules log to `logging.getLogger("offramp....")` and give what belongs to a request as fields:
`log.info("refused", extra={"request_id": request.id})`. Payloads are never logged. What a client has written may
appear in messages and fields, so both are cut to a length and control characters are escaped: a client cannot forge
a line or send commands to the terminal of whoever reads it.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from offramp_server.errors import InvalidRequest

ROOT = "offramp"

MAX_MESSAGE_CHARACTERS = 2000
MAX_FIELD_CHARACTERS = 256
MAX_TRACEBACK_CHARACTERS = 16_000

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# Controls (C0, DEL, C1), line and paragraph separators, marks that turn the writing direction, lone surrogates.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PLAIN = re.compile(r"[\w.:/@+,\[\]-]+")

_RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

Field = str | int | float | bool | None


def install(level: int = logging.INFO, format: str = "text", stream: TextIO | None = None) -> LogControl:
    """Send the log of this process to `stream` (standard error). The composition root calls this, nobody else.

    Other libraries' warnings and errors come out in the same form. Raises InvalidRequest for an unknown setting.
    """
    control = LogControl(logging.StreamHandler(stream or sys.stderr))
    control.configure(level=level, format=format)
    logging.getLogger().addHandler(control.handler)
    return control


class LogControl:
    """Logging as it can be changed while the server runs."""

    def __init__(self, handler: logging.Handler) -> None:
        # Called with level and format when either was set, for other processes of the server.
        self.on_change: Callable[[int, str], None] = lambda level, format: None
        self.handler = handler
        self._level = logging.INFO
        self._format = "text"
        self._level_before = logging.getLogger(ROOT).level

    @property
    def level(self) -> int:
        """The threshold, as a number of the `logging` module."""
        return self._level

    @property
    def format(self) -> str:
        """text or json."""
        return self._format

    def configure(self, *, level: int | None = None, format: str | None = None) -> None:
        """Takes effect at once; None leaves a setting as it is. Raises InvalidRequest for a value that is none."""
        level = self._level if level is None else level
        format = self._format if format is None else format
        if format not in FORMATTERS:
            raise InvalidRequest(f"unknown log format {shown(format)!r}: expected one of {', '.join(FORMATTERS)}")
        if isinstance(level, bool) or not isinstance(level, int) or level < 0:
            expected = ", ".join(f"{number} ({name})" for name, number in LEVELS.items())
            raise InvalidRequest(f"unknown log level {shown(str(level))!r}: expected a number such as {expected}")
        self._level, self._format = level, format
        self.handler.setFormatter(FORMATTERS[format]())
        self.handler.setLevel(level)
        # The root logger keeps its own threshold, so that "debug" means ours and not that of every library.
        logging.getLogger(ROOT).setLevel(level)
        self.on_change(level, format)

    def uninstall(self) -> None:
        """Undo `install`."""
        logging.getLogger().removeHandler(self.handler)
        logging.getLogger(ROOT).setLevel(self._level_before)
        self.handler.close()


class TextFormatter(logging.Formatter):
    """`2026-11-22T06:15:00.123Z INFO offramp.serving: message key=value`; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name}: {_message(record)}"
        for key, value in _fields(record).items():
            line += f" {key}={_quoted(value)}"
        traceback = _traceback(self, record)
        if traceback:
            # The indent tells these lines from those that begin a record.
            line += "".join(f"\n    | {shown(part, MAX_MESSAGE_CHARACTERS)}" for part in traceback.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object with time, level, logger, message, the record's fields, and `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Field] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        # What is ours comes last: a field cannot pass itself off as the level.
        line = line | _fields(record) | line
        traceback = _traceback(self, record)
        if traceback:
            line["exception"] = traceback
        return json.dumps(line)


FORMATTERS: dict[str, Callable[[], logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def shown(text: str, limit: int = MAX_FIELD_CHARACTERS) -> str:
    """The text as it may stand in a log line: at most `limit` characters of it, control characters escaped."""
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text)} characters)"
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    return shown(record.getMessage(), MAX_MESSAGE_CHARACTERS)


def _fields(record: logging.LogRecord) -> dict[str, Field]:
    return {shown(key): _field(value) for key, value in vars(record).items() if key not in _RECORD_ATTRIBUTES}


def _field(value: Any) -> Field:
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return shown(str(value))


def _quoted(value: Field) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info == (None, None, None):
        return ""
    # Its end says what happened.
    return formatter.formatException(record.exc_info)[-MAX_TRACEBACK_CHARACTERS:]
