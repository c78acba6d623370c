"""Who may call what."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from offramp_server.errors import PermissionDenied, Unauthenticated
from offramp_server.rpc.auth import Authenticator, Role, Token
from offramp_server.rpc.services import RpcSettings
from open_inference import grpc_predict_v2_pb2 as pb
from rpc_fakes import FakeContext, running

INFERENCE = "/inference.GRPCInferenceService/"
ROUTES = "/offramp.v1.RouteService/"
MANAGEMENT = (
    INFERENCE + "RepositoryModelLoad",
    INFERENCE + "RepositoryModelUnload",
    ROUTES + "UpdateRoute",
    ROUTES + "ListRouteChanges",
)
OPEN = (INFERENCE + "ServerLive", INFERENCE + "ServerReady", "/grpc.health.v1.Health/Check")
LOG_READ = pb.LogSettingsRequest()
LOG_CHANGE = pb.LogSettingsRequest(settings={"log_info": pb.LogSettingsRequest.SettingValue(bool_param=False)})
TRACE_CHANGE = pb.TraceSettingRequest(settings={"trace_rate": pb.TraceSettingRequest.SettingValue(value=["5"])})


def token(name: str, role: Role, secret: str) -> Token:
    return Token(name, role, hashlib.sha256(secret.encode()).hexdigest())


TOKENS = (token("app", Role.INFER, "app-secret"), token("operator", Role.ADMIN, "admin-secret"))
WITH_TOKENS = Authenticator(TOKENS, management_allowed=True)


def call(authenticator: Authenticator, path: str, header: str | bytes | None = None, request: Any = None) -> None:
    metadata = {} if header is None else {"authorization": header}
    authenticator.gate(path)(request, FakeContext(metadata))


def test_without_tokens_everybody_infers() -> None:
    for path in (INFERENCE + "ModelInfer", INFERENCE + "ModelMetadata", ROUTES + "ListRoutes", *OPEN):
        call(Authenticator(), path)
    call(Authenticator(), INFERENCE + "LogSettings", request=LOG_READ)


def test_without_tokens_management_is_for_loopback_only() -> None:
    for path in MANAGEMENT:
        call(Authenticator(management_allowed=True), path)
        refusal = f"{path.rpartition('/')[2]} is refused: this server has no tokens and listens beyond"
        with pytest.raises(PermissionDenied, match=refusal):
            call(Authenticator(), path)
    for method, request in (("LogSettings", LOG_CHANGE), ("TraceSetting", TRACE_CHANGE)):
        call(Authenticator(management_allowed=True), INFERENCE + method, request=request)
        with pytest.raises(PermissionDenied):
            call(Authenticator(), INFERENCE + method, request=request)


def test_with_tokens_only_health_is_open() -> None:
    for path in OPEN:
        call(WITH_TOKENS, path)
    for path in (INFERENCE + "ModelInfer", INFERENCE + "ServerMetadata", "/offramp.v1.RouteService/ListRoutes"):
        with pytest.raises(Unauthenticated, match='needs metadata "authorization: Bearer TOKEN"'):
            call(WITH_TOKENS, path)
        call(WITH_TOKENS, path, "Bearer app-secret")


def test_a_role_reaches_as_far_as_it_reaches() -> None:
    for path in MANAGEMENT:
        with pytest.raises(PermissionDenied, match=f"{path.rpartition('/')[2]} needs a token with the role admin"):
            call(WITH_TOKENS, path, "Bearer app-secret")
        call(WITH_TOKENS, path, "bearer admin-secret")
    for method in ("GetRoute", "WatchRoute", "WatchRoutes"):
        call(WITH_TOKENS, ROUTES + method, "Bearer app-secret")
    call(WITH_TOKENS, INFERENCE + "ModelInfer", "Bearer admin-secret")


def test_settings_are_read_by_all_and_changed_by_administrators() -> None:
    call(WITH_TOKENS, INFERENCE + "LogSettings", "Bearer app-secret", LOG_READ)
    for method, request in (("LogSettings", LOG_CHANGE), ("TraceSetting", TRACE_CHANGE)):
        with pytest.raises(PermissionDenied):
            call(WITH_TOKENS, INFERENCE + method, "Bearer app-secret", request)
        call(WITH_TOKENS, INFERENCE + method, "Bearer admin-secret", request)


def test_a_caller_is_known_by_the_best_name_that_he_has() -> None:
    admin = FakeContext({"authorization": "Bearer admin-secret"}, peer="ipv4:10.0.0.1:5", identity="laptop")
    assert WITH_TOKENS.caller(admin) == "operator"
    assert Authenticator().caller(admin) == "laptop"
    assert Authenticator().caller(FakeContext(peer="ipv4:10.0.0.1:5")) == "ipv4:10.0.0.1:5"
    with pytest.raises(Unauthenticated):
        WITH_TOKENS.caller(FakeContext())


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer wrong", "Basic app-secret", "app-secret", b"Bearer app-secret", "Bearer é"],
)
def test_what_is_no_valid_token_is_refused(header: str | bytes) -> None:
    with pytest.raises(Unauthenticated) as caught:
        call(WITH_TOKENS, INFERENCE + "ModelInfer", header)
    assert "secret" not in str(caught.value)


def test_the_hash_of_a_token_is_no_token() -> None:
    with pytest.raises(Unauthenticated):
        call(WITH_TOKENS, INFERENCE + "ModelInfer", f"Bearer {TOKENS[1].sha256}")


def test_every_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    original = hmac.compare_digest

    def compare(presented: bytes, expected: bytes) -> bool:
        compared.append(expected)
        return original(presented, expected)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    call(WITH_TOKENS, INFERENCE + "ModelInfer", "Bearer app-secret")

    assert compared == [token.sha256.encode() for token in TOKENS]


async def test_on_the_wire() -> None:
    settings = RpcSettings("1", tokens=TOKENS)
    async with running(settings) as server, grpc.aio.insecure_channel(server.address) as channel:
        metadata = channel.unary_unary(
            INFERENCE + "ServerMetadata",
            request_serializer=pb.ServerMetadataRequest.SerializeToString,
            response_deserializer=pb.ServerMetadataResponse.FromString,
        )
        stream = channel.stream_stream(INFERENCE + "ModelStreamInfer")()
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", response_deserializer=health_pb2.HealthCheckResponse.FromString
        )

        assert (await metadata(pb.ServerMetadataRequest(), metadata=(("authorization", "Bearer app-secret"),))).name
        assert (await check(b"")).status == health_pb2.HealthCheckResponse.SERVING
        for refused in (metadata(pb.ServerMetadataRequest()), stream.read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await refused
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
