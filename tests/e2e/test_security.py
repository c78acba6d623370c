"""Encryption, tokens, limits, and what never reaches the log, as a client of a real server finds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from client_certificates import Authority
from eventually import PATIENCE
from offramp_client import TLS, Client, RetryPolicy, errors
from open_inference import grpc_predict_v2_pb2 as pb
from open_inference.tensor import encode_bytes
from server_process import ServerProcess, serving

ONCE = RetryPolicy(max_attempts=1)
ROW = np.ones((1, 16), np.int32)
OPERANDS = {"INPUT0": ROW, "INPUT1": ROW}
TOKENS = {"infer": "let-me-infer", "admin": "let-me-manage"}
MAX_MESSAGE, MAX_METADATA, MAX_NAME = 65536, 2048, 32


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def certificates(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a server of 127.0.0.1 needs."""
    folder = tmp_path_factory.mktemp("certificates")
    pair = authority.sign("127.0.0.1")
    for name, content in (
        ("server.pem", pair.certificate),
        ("server.key", pair.key),
        ("clients.pem", authority.certificate),
    ):
        (folder / name).write_bytes(content)
    return folder


def write_config(folder: Path, name: str, text: str) -> list[str]:
    """The options that make a server use it."""
    (folder / name).write_text(text)
    return ["--in-process", f"--config={folder / name}"]


TLS_TABLE = '[tls]\ncertificate = "server.pem"\nkey = "server.key"\n'


@pytest.fixture(scope="module")
def secure(small_repository: Path, certificates: Path) -> Iterator[ServerProcess]:
    """TLS, a token for each role, and a log of everything."""
    tokens = "".join(
        f'[[auth.tokens]]\nname = "{role}-app"\nrole = "{role}"\nsha256 = "{hashlib.sha256(t.encode()).hexdigest()}"\n'
        for role, t in TOKENS.items()
    )
    logging = '[logging]\nlevel = "debug"\nformat = "json"\n'
    with serving(small_repository, write_config(certificates, "secure.toml", TLS_TABLE + tokens + logging)) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(small_repository: Path, certificates: Path) -> Iterator[ServerProcess]:
    config = write_config(certificates, "mutual.toml", TLS_TABLE + 'client_ca = "clients.pem"\n')
    with serving(small_repository, config) as server:
        yield server


@pytest.fixture(scope="module")
def exposed(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Reachable from other hosts, without tokens, and with low limits."""
    limits = (
        f'[server]\nhost = "0.0.0.0"\nmax_message_bytes = {MAX_MESSAGE}\n'
        f"[limits]\nmax_metadata_bytes = {MAX_METADATA}\nmax_name_length = {MAX_NAME}\n"
    )
    config = write_config(tmp_path_factory.mktemp("exposed"), "exposed.toml", limits)
    with serving(small_repository, config) as server:
        yield server


def here(server: ServerProcess) -> str:
    """Its address on this machine."""
    return server.grpc.replace("0.0.0.0", "127.0.0.1")


def connect(server: ServerProcess, tls: TLS | None = None, token: str | None = None) -> Client:
    return Client(here(server), tls=tls, token=token, timeout=PATIENCE, retries=ONCE)


# TLS


def test_a_client_that_knows_the_authority_is_served(secure: ServerProcess, authority: Authority) -> None:
    with connect(secure, TLS(ca=authority.certificate), TOKENS["infer"]) as client:
        assert client.infer("add_sub", OPERANDS)["OUTPUT0"][0, 0] == 2


def test_a_client_that_trusts_another_authority_or_none_gets_no_answer(secure: ServerProcess) -> None:
    for tls in (TLS(ca=Authority().certificate), None):
        with connect(secure, tls) as client, pytest.raises(errors.Unavailable):
            client.server_metadata()


def test_with_mutual_tls_a_client_needs_a_certificate_of_the_authority(
    mutual: ServerProcess, authority: Authority
) -> None:
    known, stranger = authority.sign("app"), Authority().sign("app")
    with connect(mutual, TLS(authority.certificate, known.certificate, known.key)) as client:
        assert client.infer("add_sub", OPERANDS)["OUTPUT0"][0, 0] == 2
    for tls in (TLS(authority.certificate), TLS(authority.certificate, stranger.certificate, stranger.key)):
        with connect(mutual, tls) as client, pytest.raises(errors.Unavailable):
            client.infer("add_sub", OPERANDS)


# Tokens

CALLS: dict[str, Callable[[Client], Any]] = {
    "infer": lambda client: client.infer("add_sub", OPERANDS),
    "metadata": lambda client: client.model_metadata("add_sub"),
    "index": lambda client: client.repository_index(),
    "load": lambda client: client.load_model("add_sub"),
    "unload": lambda client: client.unload_model("nobody"),
}


def status(secure: ServerProcess, authority: Authority, token: str | None, call: str) -> str:
    with connect(secure, TLS(ca=authority.certificate), token) as client:
        try:
            CALLS[call](client)
        except errors.OfframpError as error:
            return error.code
        return "OK"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("token", [None, "wrong", TOKENS["admin"][:-1]])
def test_without_a_valid_token_nothing_is_answered(
    secure: ServerProcess, authority: Authority, token: str | None, call: str
) -> None:
    assert status(secure, authority, token, call) == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("infer", "OK"),
        ("metadata", "OK"),
        ("index", "OK"),
        ("load", "PERMISSION_DENIED"),
        ("unload", "PERMISSION_DENIED"),
    ],
)
def test_a_token_to_infer_does_not_manage(
    secure: ServerProcess, authority: Authority, call: str, expected: str
) -> None:
    assert status(secure, authority, TOKENS["infer"], call) == expected


@pytest.mark.parametrize(
    ("call", "expected"), [("infer", "OK"), ("metadata", "OK"), ("load", "OK"), ("unload", "NOT_FOUND")]
)
def test_a_token_to_manage_does_everything(
    secure: ServerProcess, authority: Authority, call: str, expected: str
) -> None:
    assert status(secure, authority, TOKENS["admin"], call) == expected


def test_whoever_asks_whether_the_server_is_up_needs_no_token(secure: ServerProcess, authority: Authority) -> None:
    with connect(secure, TLS(ca=authority.certificate)) as client:
        assert client.is_live()
        assert client.is_ready()


def test_settings_are_read_with_any_token_and_changed_as_admin(secure: ServerProcess, authority: Authority) -> None:
    change = pb.LogSettingsRequest()
    change.settings["log_verbose_level"].uint32_param = 1
    with secure_channel(secure, authority) as channel:
        call = unary(channel, "LogSettings", pb.LogSettingsResponse)

        def log_settings(request: pb.LogSettingsRequest, token: str) -> int:
            response = call(request, metadata=bearer(token), timeout=PATIENCE)
            return int(response.settings["log_verbose_level"].uint32_param)

        assert log_settings(pb.LogSettingsRequest(), TOKENS["infer"]) == 1
        assert log_settings(change, TOKENS["admin"]) == 1
        with pytest.raises(grpc.RpcError) as caught:
            log_settings(change, TOKENS["infer"])
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def secure_channel(server: ServerProcess, authority: Authority) -> Any:
    return grpc.secure_channel(server.grpc, grpc.ssl_channel_credentials(authority.certificate))


def unary(channel: Any, method: str, response: Any) -> Any:
    return channel.unary_unary(
        f"/inference.GRPCInferenceService/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def test_beyond_loopback_nobody_manages_without_tokens(exposed: ServerProcess) -> None:
    with connect(exposed) as client:
        assert client.infer("add_sub", OPERANDS)["OUTPUT0"][0, 0] == 2
        for change in (client.load_model, client.unload_model):
            with pytest.raises(errors.PermissionDenied, match="configure a token for admin"):
                change("add_sub")
        assert client.infer("add_sub", OPERANDS)["OUTPUT0"][0, 0] == 2


def test_on_loopback_management_needs_no_token(small_server: ServerProcess) -> None:
    with connect(small_server) as client:
        client.load_model("add_sub")


# Limits


@pytest.fixture(scope="module")
def infer(exposed: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(here(exposed)) as channel:
        yield unary(channel, "ModelInfer", pb.ModelInferResponse)


def text_request(*elements: bytes, **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(**{"model_name": "text", **fields})
    request.inputs.add(name="x", datatype="BYTES", shape=[1, len(elements)])
    request.raw_input_contents.append(encode_bytes(elements))
    return request


def refusal(infer: Any, request: pb.ModelInferRequest, **options: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        infer(request, timeout=PATIENCE, **options)
    error: Any = caught.value
    return error.code(), error.details()


def test_a_message_over_the_limit_is_refused_with_both_sizes(infer: Any) -> None:
    infer(text_request(b"x" * (MAX_MESSAGE - 200)), timeout=PATIENCE)
    request = text_request(b"x" * MAX_MESSAGE)
    code, message = refusal(infer, request)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_MESSAGE) in message
    assert str(request.ByteSize()) in message


def test_metadata_over_the_limit_is_refused(infer: Any) -> None:
    infer(text_request(b"x"), timeout=PATIENCE, metadata=[("note", "x" * 100)])
    code, message = refusal(infer, text_request(b"x"), metadata=[("note", "x" * 4 * MAX_METADATA)])
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "metadata" in message


def test_names_over_the_limit_are_refused(infer: Any) -> None:
    long = "n" * (MAX_NAME + 1)
    output, key, tensor = text_request(b"x"), text_request(b"x"), text_request(b"x")
    output.outputs.add(name=long)
    key.parameters[long].int64_param = 1
    tensor.inputs[0].name = long
    for kind, request in (
        ("model name", text_request(b"x", model_name=long)),
        ("model version", text_request(b"x", model_version=long)),
        ("request id", text_request(b"x", id=long)),
        ("parameter key", key),
        ("tensor name", tensor),
        ("tensor name", output),
    ):
        assert refusal(infer, request) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            f"a {kind} has at most {MAX_NAME} characters, got {MAX_NAME + 1}",
        )


def test_a_server_over_its_limits_goes_on_answering(infer: Any) -> None:
    for _ in range(3):
        refusal(infer, text_request(b"x" * MAX_MESSAGE))
    response = infer(text_request(b"still", b"here"), timeout=PATIENCE)
    assert response.raw_output_contents[0] == encode_bytes([b"still", b"here"])


# The log


def test_the_log_names_requests_and_never_shows_what_they_hold(secure: ServerProcess, authority: Authority) -> None:
    marker = "c0nf1dent1al"
    good = text_request(marker.encode(), id="good-one")
    good.parameters["note"].string_param = marker
    wrong_shape = text_request(marker.encode(), id="wrong-shape")
    wrong_shape.inputs[0].shape[:] = [1, 7]
    no_text = text_request(marker.encode() + b"\xff", id="no-text")
    typed = pb.ModelInferRequest(model_name="text", id="typed-one")
    typed.inputs.add(name="x", datatype="INT32", shape=[1, 1]).contents.bytes_contents.append(marker.encode())
    requests = {"good-one": good, "wrong-shape": wrong_shape, "no-text": no_text, "typed-one": typed}
    with secure_channel(secure, authority) as channel:
        infer = unary(channel, "ModelInfer", pb.ModelInferResponse)
        metadata = [*bearer(TOKENS["infer"]), ("note", marker)]
        infer(good, metadata=metadata, timeout=PATIENCE)
        for name in ("wrong-shape", "no-text", "typed-one"):
            refusal(infer, requests[name], metadata=metadata)
        refusal(infer, good, metadata=bearer(marker))

    logged = secure.logged()
    # gRPC's core writes of failed handshakes in a form of its own.
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    codes = {line["request_id"]: line["code"] for line in lines if line.get("request_id") in requests}
    assert codes.keys() == requests.keys()
    assert [codes[name] for name in ("wrong-shape", "no-text", "typed-one")] == ["INVALID_ARGUMENT"] * 3
    for secret in (marker, *TOKENS.values()):
        assert secret not in logged
