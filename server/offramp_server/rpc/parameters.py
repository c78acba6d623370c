"""Parameters of the Open Inference Protocol: a oneof on the wire, a plain value here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offramp_common.text import quoted
from open_inference.grpc_predict_v2_pb2 import InferParameter

from offramp_server.errors import InvalidRequest
from offramp_server.inference import ParameterValue

_MAX_INT64 = 2**63 - 1


def read_parameter(key: str, parameter: InferParameter) -> ParameterValue:
    """Raises InvalidRequest if no value is set."""
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise InvalidRequest(
            f"parameter {quoted(key)} has no value; expected one of bool, int64, string, double, uint64"
        )
    value: ParameterValue = getattr(parameter, kind)
    return value


def write_parameters(target: Any, values: Mapping[str, ParameterValue]) -> None:
    """Set entries of the map `target`, each in the field of its Python type."""
    for key, value in values.items():
        parameter = target[key]
        if isinstance(value, str):
            parameter.string_param = value
        elif isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        elif value > _MAX_INT64:
            parameter.uint64_param = value
        else:
            parameter.int64_param = value


def count(key: str, value: ParameterValue) -> int:
    """A number that is not negative; a string of digits counts. Raises InvalidRequest."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        shown = quoted(value) if isinstance(value, str) else str(value)
        raise InvalidRequest(f"parameter {quoted(key)}: expected a number from 0 as an integer, got {shown}")
    return value


def flag(key: str, value: ParameterValue) -> bool:
    """Raises InvalidRequest unless the value is a bool."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"parameter {quoted(key)}: expected a bool, got {quoted(value)}")
    return value
