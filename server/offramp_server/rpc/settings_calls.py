"""GRPCInferenceService: TraceSetting and LogSettings, Triton's settings on top of ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from offramp_common.text import did_you_mean, quoted
from open_inference import grpc_predict_v2_pb2 as pb

from offramp_server.errors import InvalidRequest, NotSupported
from offramp_server.rpc.ports import LogControl, TraceControl
from offramp_server.transport.interface import CallContext

# From the most to the least that is logged. Triton has a switch for each level, here the lowest one that is on counts.
_LEVELS = MappingProxyType(
    {
        "log_verbose_level": logging.DEBUG,
        "log_info": logging.INFO,
        "log_warning": logging.WARNING,
        "log_error": logging.ERROR,
    }
)
_FORMATS = MappingProxyType({"default": "text", "text": "text", "json": "json"})
_OFF = "OFF"
# Triton's.
_DEFAULT_TRACE_RATE = 1000
_TIMESTAMPS = "TIMESTAMPS"


class SettingsCalls:
    """Reading and changing how the server logs and traces."""

    def __init__(self, logs: LogControl, traces: TraceControl) -> None:
        self._logs = logs
        self._traces = traces

    async def log_settings(self, request: pb.LogSettingsRequest, context: CallContext) -> pb.LogSettingsResponse:
        asked = {key: _value(key, value) for key, value in request.settings.items()}
        if asked:
            self._logs.configure(level=_level(self._logs.level, asked), format=_format(asked))
        response = pb.LogSettingsResponse()
        for key, value in self._log_state().items():
            _write(response.settings[key], value)
        return response

    def _log_state(self) -> dict[str, bool | int | str]:
        return {"log_file": "", "log_format": self._logs.format, **_switches(self._logs.level)}

    async def trace_setting(self, request: pb.TraceSettingRequest, context: CallContext) -> pb.TraceSettingResponse:
        asked = {key: list(setting.value) for key, setting in request.settings.items()}
        if asked:
            _configure_traces(self._traces, asked, request.model_name)
        response = pb.TraceSettingResponse()
        for key, values in _trace_state(self._traces).items():
            response.settings[key].value.extend(values)
        return response


def _value(key: str, setting: Any) -> bool | int | str:
    kind = setting.WhichOneof("parameter_choice")
    if kind is None:
        raise InvalidRequest(f"log setting {quoted(key)} has no value")
    value: bool | int | str = getattr(setting, kind)
    return value


def _write(setting: Any, value: bool | int | str) -> None:
    if isinstance(value, bool):
        setting.bool_param = value
    elif isinstance(value, int):
        setting.uint32_param = value
    else:
        setting.string_param = value


def _switches(level: int) -> dict[str, bool | int]:
    """Triton's switches as they stand at a threshold; the first is a number there."""
    switches: dict[str, bool | int] = {key: level <= threshold for key, threshold in _LEVELS.items()}
    return {**switches, "log_verbose_level": int(switches["log_verbose_level"])}


def _level(level: int, asked: Mapping[str, bool | int | str]) -> int | None:
    """The threshold after the switches are set as asked; None if none is."""
    asked_switches = {key: value for key, value in asked.items() if key in _LEVELS}
    if not asked_switches:
        return None
    for key, value in asked_switches.items():
        expected = int if key == "log_verbose_level" else bool
        if type(value) is not expected:
            raise InvalidRequest(f"log setting {quoted(key)}: expected {expected.__name__}, got {quoted(value)}")
    wanted = {**_switches(level), **asked_switches}
    chosen = min((threshold for key, threshold in _LEVELS.items() if wanted[key]), default=logging.CRITICAL)
    for key, value in asked_switches.items():
        if not value and _LEVELS[key] > chosen:
            raise InvalidRequest(
                f"log setting {quoted(key)} cannot be off while a lower level is on; switch the lower ones off as well"
            )
    return chosen


def _format(asked: Mapping[str, bool | int | str]) -> str | None:
    for key in asked:
        if key == "log_file" and asked[key]:
            raise NotSupported('log setting "log_file": the log goes to standard error; redirect it there')
        if key not in (*_LEVELS, "log_file", "log_format"):
            raise InvalidRequest(f"unknown log setting {quoted(key)}{did_you_mean(key, [*_LEVELS, 'log_format'])}")
    if "log_format" not in asked:
        return None
    name = str(asked["log_format"])
    if name not in _FORMATS:
        raise InvalidRequest(f'log setting "log_format": expected {", ".join(_FORMATS)}, got {quoted(name)}')
    return _FORMATS[name]


def _trace_state(traces: TraceControl) -> dict[str, list[str]]:
    return {
        "trace_level": [_TIMESTAMPS if traces.enabled else _OFF],
        "trace_rate": [str(traces.rate)],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_file": [""],
        "trace_mode": ["opentelemetry"],
    }


def _configure_traces(traces: TraceControl, asked: Mapping[str, Sequence[str]], model: str) -> None:
    if model:
        raise NotSupported("trace settings are those of the whole server here; leave the model name empty")
    state = _trace_state(traces)
    for key, values in asked.items():
        if key not in state:
            raise InvalidRequest(f"unknown trace setting {quoted(key)}{did_you_mean(key, state)}")
        # An empty list asks for the default.
        if key not in ("trace_level", "trace_rate") and values and list(values) != state[key]:
            raise NotSupported(f"trace setting {quoted(key)} is always {quoted(state[key][0])} here")
    traces.configure(
        enabled=_trace_level(asked["trace_level"]) if "trace_level" in asked else None,
        rate=_trace_rate(asked["trace_rate"]) if "trace_rate" in asked else None,
    )


def _trace_level(values: Sequence[str]) -> bool:
    for value in values:
        if value not in (_OFF, _TIMESTAMPS):
            raise InvalidRequest(f'trace setting "trace_level": expected {_OFF} or {_TIMESTAMPS}, got {quoted(value)}')
    return _TIMESTAMPS in values


def _trace_rate(values: Sequence[str]) -> int:
    if not values:
        return _DEFAULT_TRACE_RATE
    value = values[0] if len(values) == 1 else ""
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise InvalidRequest(f'trace setting "trace_rate": expected a number from 0, got {quoted(", ".join(values))}')
    return int(value)
