"""Log lines and their settings."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_server.errors import InvalidRequest
from offramp_server.telemetry.logs import (
    MAX_FIELD_CHARACTERS,
    MAX_MESSAGE_CHARACTERS,
    MAX_TRACEBACK_CHARACTERS,
    JsonFormatter,
    LogControl,
    TextFormatter,
    install,
)

log = logging.getLogger("offramp.test")


class Sink(io.StringIO):
    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()

    def json(self) -> dict[str, Any]:
        (line,) = self.lines
        found = json.loads(line)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def start(sink: Sink) -> Iterator[Callable[..., LogControl]]:
    controls: list[LogControl] = []

    def install_once(**settings: Any) -> LogControl:
        controls.append(install(stream=sink, **settings))
        return controls[-1]

    yield install_once
    for control in controls:
        control.uninstall()


@pytest.fixture
def text(start: Callable[..., LogControl]) -> LogControl:
    return start()


@pytest.fixture
def as_json(start: Callable[..., LogControl]) -> LogControl:
    return start(format="json")


@pytest.mark.usefixtures("text")
def test_a_text_line_has_the_time_in_utc_the_level_the_logger_and_the_fields(sink: Sink) -> None:
    log.info("loaded %s", "m", extra={"request_id": "r-1", "items": 3, "reason": "two words"})
    (line,) = sink.lines
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert len(time) == len("2026-11-22T06:15:00.123Z")
    assert rest == 'INFO offramp.test: loaded m request_id=r-1 items=3 reason="two words"'


@pytest.mark.usefixtures("as_json")
def test_a_json_line_has_the_fields_as_keys_with_their_types(sink: Sink) -> None:
    log.warning("refused", extra={"request_id": "r-1", "items": 3, "seconds": 0.5, "last": True, "nothing": None})
    found = sink.json()
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning",
        "logger": "offramp.test",
        "message": "refused",
        "request_id": "r-1",
        "items": 3,
        "seconds": 0.5,
        "last": True,
        "nothing": None,
    }


@pytest.mark.usefixtures("as_json")
def test_numbers_that_json_does_not_know_become_strings(sink: Sink) -> None:
    log.info("x", extra={"loss": float("nan"), "shape": (1, 2)})
    assert (sink.json()["loss"], sink.json()["shape"]) == ("nan", "(1, 2)")


@pytest.mark.usefixtures("as_json")
def test_a_field_cannot_pass_itself_off_as_the_level(sink: Sink) -> None:
    log.info("x", extra={"level": "error", "time": "yesterday"})
    assert sink.json()["level"] == "info"
    assert sink.json()["time"] != "yesterday"


@pytest.mark.usefixtures("text")
def test_a_client_cannot_forge_a_line_or_reach_the_terminal(sink: Sink) -> None:
    log.info("model %s", 'a\n2026 ERROR offramp: forged\x1b[2J\u2028\u202e\x85"', extra={"request_id": "r\r\nx=\x00y"})
    (line,) = sink.lines
    assert r"a\n2026 ERROR offramp: forged\x1b[2J\u2028\u202e\x85" in line
    assert line.endswith(r'request_id="r\\r\\nx=\\x00y"')


@pytest.mark.usefixtures("as_json")
def test_long_values_are_cut_and_say_so(sink: Sink) -> None:
    log.info("name %s", "n" * 10**6, extra={"request_id": "r" * 10**6})
    found = sink.json()
    assert len(found["message"]) < MAX_MESSAGE_CHARACTERS + 50
    assert len(found["request_id"]) < MAX_FIELD_CHARACTERS + 50
    assert found["request_id"].endswith("r... (1000000 characters)")


@given(message=st.text(), value=st.text(), key=st.text(min_size=1))
def test_whatever_a_client_writes_a_record_is_one_printable_line(message: str, value: str, key: str) -> None:
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "offramp", "x" + key: value})
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record)
        assert len(line.splitlines()) == 1
        assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in line)
        line.encode()
    assert json.loads(JsonFormatter().format(record))["level"] == "info"


def fail(message: str) -> None:
    try:
        raise ValueError(message)
    except ValueError:
        log.exception("request failed", extra={"request_id": "r-1"})


@pytest.mark.usefixtures("text")
def test_every_line_of_a_traceback_is_indented_whatever_the_error_says(sink: Sink) -> None:
    fail("first\n2026-11-22T06:15:00.123Z ERROR offramp: forged\x1b")
    head, *rest = sink.lines
    assert head.endswith("request failed request_id=r-1")
    assert rest
    assert all(line.startswith("    | ") for line in rest)
    assert "    | ValueError: first" in rest
    assert "\x1b" not in sink.getvalue()


@pytest.mark.usefixtures("as_json")
def test_a_traceback_is_a_field_in_json_and_its_end_is_kept(sink: Sink) -> None:
    fail("x" * 10**6 + " the end")
    found = sink.json()
    assert found["request_id"] == "r-1"
    assert len(found["exception"]) == MAX_TRACEBACK_CHARACTERS
    assert found["exception"].endswith("the end")


def test_the_level_changes_while_the_server_runs(text: LogControl, sink: Sink) -> None:
    log.debug("hidden")
    text.configure(level=logging.DEBUG)
    log.debug("seen")
    text.configure(level=logging.ERROR)
    log.warning("hidden again")
    assert [line.rpartition(": ")[2] for line in sink.lines] == ["seen"]
    assert (text.level, text.format) == (logging.ERROR, "text")


def test_the_format_changes_while_the_server_runs(text: LogControl, sink: Sink) -> None:
    text.configure(format="json")
    log.info("seen")
    assert sink.json()["message"] == "seen"
    assert (text.level, text.format) == (logging.INFO, "json")


@pytest.mark.parametrize("settings", [{"format": "xml"}, {"level": -1}, {"level": "high"}, {"level": True}])
def test_a_bad_setting_is_refused_and_changes_nothing(text: LogControl, settings: dict[str, Any]) -> None:
    otherwise_good: dict[str, Any] = {"level": logging.DEBUG, "format": "json"}
    with pytest.raises(InvalidRequest, match="expected"):
        text.configure(**otherwise_good | settings)
    assert (text.level, text.format) == (logging.INFO, "text")


@pytest.mark.usefixtures("text")
def test_debug_of_ours_does_not_open_the_gates_for_other_libraries(text: LogControl, sink: Sink) -> None:
    text.configure(level=logging.DEBUG)
    logging.getLogger("somebody.else").info("chatter")
    logging.getLogger("somebody.else").error("trouble")
    assert [line.rpartition(": ")[2] for line in sink.lines] == ["trouble"]


def test_after_uninstalling_nothing_is_left_behind(sink: Sink) -> None:
    before = (logging.getLogger().handlers[:], logging.getLogger("offramp").level)
    install(level=logging.DEBUG, stream=sink).uninstall()
    log.error("unheard")
    assert (logging.getLogger().handlers, logging.getLogger("offramp").level) == before
    assert sink.lines == []
