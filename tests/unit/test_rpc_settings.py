"""LogSettings and TraceSetting: Triton's names, our effect."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from offramp_server.errors import InvalidRequest
from offramp_server.rpc.settings_calls import SettingsCalls
from open_inference import grpc_predict_v2_pb2 as pb
from rpc_fakes import FakeContext, FakeLogs, FakeTraces, Running, running
from tritonclient.grpc.aio import InferenceServerClient as Client
from tritonclient.utils import InferenceServerException


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as server:
        yield server


@pytest.fixture
async def client(server: Running) -> AsyncIterator[Client]:
    async with Client(server.address) as client:
        yield client


async def refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        await call
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


async def test_log_settings_are_read_in_tritons_words(client: Client) -> None:
    settings = (await client.get_log_settings(as_json=True))["settings"]

    assert settings == {
        "log_file": {"string_param": ""},
        "log_format": {"string_param": "text"},
        "log_verbose_level": {"uint32_param": 0},
        "log_info": {"bool_param": True},
        "log_warning": {"bool_param": True},
        "log_error": {"bool_param": True},
    }


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({"log_verbose_level": 1}, logging.DEBUG),
        ({"log_info": False}, logging.WARNING),
        ({"log_info": False, "log_warning": False}, logging.ERROR),
        ({"log_info": False, "log_warning": False, "log_error": False}, logging.CRITICAL),
        ({"log_error": True}, logging.INFO),
    ],
)
async def test_switches_set_the_level(server: Running, client: Client, settings: dict[str, Any], level: int) -> None:
    await client.update_log_settings(settings)

    assert server.logs.level == level


async def test_the_level_goes_down_and_up_again(server: Running, client: Client) -> None:
    await client.update_log_settings({"log_verbose_level": 2})
    await client.update_log_settings({"log_verbose_level": 0})
    assert server.logs.level == logging.INFO
    await client.update_log_settings({"log_info": False})
    await client.update_log_settings({"log_info": True})
    assert server.logs.level == logging.INFO


async def test_the_format_is_text_or_json(server: Running, client: Client) -> None:
    await client.update_log_settings({"log_format": "json"})
    assert (server.logs.format, server.logs.level) == ("json", logging.INFO)
    await client.update_log_settings({"log_format": "default"})
    assert server.logs.format == "text"
    code, message = await refusal(client.update_log_settings({"log_format": "ISO8601"}))
    assert (code, message) == (
        "INVALID_ARGUMENT",
        'log setting "log_format": expected default, text, json, got "ISO8601"',
    )


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (
            {"log_warning": False},
            "INVALID_ARGUMENT",
            'log setting "log_warning" cannot be off while a lower level is on',
        ),
        ({"log_inof": True}, "INVALID_ARGUMENT", 'unknown log setting "log_inof"; did you mean "log_info"?'),
        ({"log_file": "/tmp/x"}, "UNIMPLEMENTED", 'log setting "log_file": the log goes to standard error'),
    ],
)
async def test_log_settings_that_cannot_be_are_refused_and_change_nothing(
    server: Running, client: Client, settings: dict[str, Any], code: str, message: str
) -> None:
    found = await refusal(client.update_log_settings({"log_format": "json", **settings}))

    assert found[0] == code
    assert found[1].startswith(message)
    assert (server.logs.level, server.logs.format) == (logging.INFO, "text")


async def test_a_log_setting_has_the_type_of_its_switch() -> None:
    value = pb.LogSettingsRequest.SettingValue
    calls = SettingsCalls(FakeLogs(), FakeTraces())
    for key, setting, message in (
        ("log_info", value(string_param="yes"), 'log setting "log_info": expected bool, got "yes"'),
        ("log_verbose_level", value(bool_param=True), 'log setting "log_verbose_level": expected int, got "True"'),
        ("log_info", value(), 'log setting "log_info" has no value'),
    ):
        with pytest.raises(InvalidRequest, match=message):
            await calls.log_settings(pb.LogSettingsRequest(settings={key: setting}), FakeContext())


async def test_tracing_is_switched_and_thinned(server: Running, client: Client) -> None:
    await client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "50"})
    assert (server.traces.enabled, server.traces.rate) == (True, 50)

    settings = (await client.get_trace_settings(as_json=True))["settings"]
    assert settings["trace_level"] == {"value": ["TIMESTAMPS"]}
    assert settings["trace_rate"] == {"value": ["50"]}
    assert settings["trace_mode"] == {"value": ["opentelemetry"]}

    await client.update_trace_settings(settings={"trace_level": "OFF", "trace_rate": None, "trace_count": "-1"})
    assert (server.traces.enabled, server.traces.rate) == (False, 1000)


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"trace_level": ["TENSORS"]}, "INVALID_ARGUMENT", 'trace setting "trace_level": expected OFF or TIMESTAMPS'),
        ({"trace_rate": "often"}, "INVALID_ARGUMENT", 'trace setting "trace_rate": expected a number from 0'),
        ({"trace_rate": ["1", "2"]}, "INVALID_ARGUMENT", 'trace setting "trace_rate": expected a number from 0'),
        ({"trace_fiel": "x"}, "INVALID_ARGUMENT", 'unknown trace setting "trace_fiel"'),
        ({"trace_count": "7"}, "UNIMPLEMENTED", 'trace setting "trace_count" is always "-1" here'),
        ({"trace_file": "x"}, "UNIMPLEMENTED", 'trace setting "trace_file" is always "" here'),
    ],
)
async def test_trace_settings_that_cannot_be_are_refused(
    server: Running, client: Client, settings: dict[str, Any], code: str, message: str
) -> None:
    found = await refusal(client.update_trace_settings(settings=settings))

    assert found[0] == code
    assert found[1].startswith(message)
    assert (server.traces.enabled, server.traces.rate) == (False, 1)


async def test_one_model_cannot_be_traced_alone(client: Client) -> None:
    code, message = await refusal(client.update_trace_settings("echo", {"trace_rate": "1"}))

    assert code == "UNIMPLEMENTED"
    assert message.startswith("trace settings are those of the whole server here")
    assert (await client.get_trace_settings("echo")).settings["trace_level"].value == ["OFF"]
