"""What a servicer and a client may rely on, whatever the service."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import logging
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import grpc.aio
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from eventually import PATIENCE, eventually
from front_ends import front_ends_here
from offramp_common.grpc_framing import messages
from offramp_common.grpc_framing.messages import MessageBytes
from offramp_server.errors import ConfigurationError
from offramp_server.transport.grpcio import GrpcioTransport, _answers_stream
from offramp_server.transport.interface import (
    CallContext,
    CallFailed,
    Code,
    ListenOptions,
    Parts,
    Service,
    TlsMaterial,
    Transport,
    parses,
)
from offramp_server.transport.native.transport import NativeTransport
from open_inference import grpc_predict_v2_pb2 as pb

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
PREFIX = "/inference.GRPCInferenceService/"
LOOPBACK = ListenOptions("127.0.0.1", 0)


TRANSPORTS: Mapping[str, Callable[[Iterable[Service], ListenOptions], Transport]] = {
    "grpcio": GrpcioTransport,
    "native": NativeTransport,
    "front ends": front_ends_here,
}


@pytest.fixture(params=list(TRANSPORTS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def serving(kind: str, *servicers: object, listen: ListenOptions = LOOPBACK) -> AsyncIterator[str]:
    transport = TRANSPORTS[kind]([Service.of(DESCRIPTOR, *servicers)], listen)
    port = await transport.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await transport.stop(0)


def server_live(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(
        PREFIX + "ServerLive",
        request_serializer=pb.ServerLiveRequest.SerializeToString,
        response_deserializer=pb.ServerLiveResponse.FromString,
    )


def stream_infer(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(
        PREFIX + "ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )


@dataclass
class Seen:
    deadline: float | None
    metadata: Mapping[str, str | bytes]
    peer: str
    identity: str | None


class Live:
    """Answers as it is told and keeps what it saw of the call."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.contexts: list[CallContext] = []
        self.seen: list[Seen] = []

    async def server_live(self, request: pb.ServerLiveRequest, context: CallContext) -> pb.ServerLiveResponse:
        self.contexts.append(context)
        self.seen.append(Seen(context.deadline, context.metadata, context.peer, context.identity))
        context.set_trailing("one", "1")
        context.set_trailing("two", "2")
        context.set_trailing("seen-bin", b"\x00\xfe")
        if self.error is not None:
            raise self.error
        return pb.ServerLiveResponse(live=True)


class Slow:
    """Waits until it is released or cancelled."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()

    async def server_live(self, request: pb.ServerLiveRequest, context: CallContext) -> pb.ServerLiveResponse:
        self.started.set()
        try:
            await self.release.wait()
            return pb.ServerLiveResponse(live=True)
        finally:
            self.ended.set()

    async def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: CallContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        try:
            async for request in requests:
                yield pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id=request.id))
            await self.release.wait()
        finally:
            self.ended.set()


class TooLate:
    """Fails at the moment at which the client gives up."""

    async def server_live(self, request: pb.ServerLiveRequest, context: CallContext) -> pb.ServerLiveResponse:
        assert context.deadline is not None
        await asyncio.sleep(context.deadline - asyncio.get_running_loop().time())
        raise CallFailed(Code.DEADLINE_EXCEEDED, "too late")


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_port_that_is_taken_is_refused_with_the_reason(kind: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(ConfigurationError, match=rf"cannot listen on 127.0.0.1:{port}: Address already in use"):
            await TRANSPORTS[kind]([], ListenOptions("127.0.0.1", port)).start()


async def test_two_servers_never_share_a_port(kind: str) -> None:
    async with serving(kind, Live()) as address:
        port = int(address.rpartition(":")[2])

        with pytest.raises(ConfigurationError, match="cannot listen"):
            await TRANSPORTS[kind]([], ListenOptions("127.0.0.1", port)).start()


async def test_an_address_of_another_machine_is_refused(kind: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 203\.0\.113\.7:0: "):
        await TRANSPORTS[kind]([], ListenOptions("203.0.113.7", 0)).start()


async def test_it_listens_on_ipv6(kind: str) -> None:
    transport = TRANSPORTS[kind]([Service.of(DESCRIPTOR, Live())], ListenOptions("::1", 0))
    port = await transport.start()
    async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
        assert (await server_live(channel)(pb.ServerLiveRequest())).live
    await transport.stop(0)


async def test_a_call_carries_deadline_metadata_and_trailers(kind: str) -> None:
    servicer = Live()
    async with serving(kind, servicer) as address, grpc.aio.insecure_channel(address) as channel:
        before = asyncio.get_running_loop().time()
        call = server_live(channel)(
            pb.ServerLiveRequest(), timeout=60, metadata=(("key", "value"), ("data-bin", b"\x00\xff"))
        )
        assert (await call).live
        trailing = dict(await call.trailing_metadata())
        [context] = servicer.seen

    assert context.deadline is not None
    assert before + 50 < context.deadline < before + 70
    assert context.metadata["key"] == "value"
    assert context.metadata["data-bin"] == b"\x00\xff"
    assert context.peer.startswith("ipv4:127.0.0.1:")
    assert context.identity is None
    assert (trailing["one"], trailing["two"], trailing["seen-bin"]) == ("1", "2", b"\x00\xfe")


async def test_a_call_without_a_deadline_has_none(kind: str) -> None:
    servicer = Live()
    async with serving(kind, servicer) as address, grpc.aio.insecure_channel(address) as channel:
        await server_live(channel)(pb.ServerLiveRequest())

        assert servicer.seen[0].deadline is None


async def test_a_context_of_grpcio_that_outlives_its_call_says_so_instead_of_crashing() -> None:
    servicer = Live()
    async with serving("grpcio", servicer) as address, grpc.aio.insecure_channel(address) as channel:
        await server_live(channel)(pb.ServerLiveRequest())

        with pytest.raises(RuntimeError, match="the call is over"):
            _ = servicer.contexts[0].peer


async def test_a_failed_call_has_its_code_message_and_trailers(kind: str) -> None:
    details = b"\x08\x08\x12\xff"
    failed = CallFailed(Code.RESOURCE_EXHAUSTED, "trop chargé", {"hint": "7", "grpc-status-details-bin": details})
    servicer = Live(failed)
    async with serving(kind, servicer) as address, grpc.aio.insecure_channel(address) as channel:
        error = await failure(server_live(channel)(pb.ServerLiveRequest()))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "trop chargé"
    assert {("one", "1"), ("hint", "7"), ("seen-bin", b"\x00\xfe"), ("grpc-status-details-bin", details)} <= set(
        error.trailing_metadata()
    )


async def test_a_caller_who_leaves_while_an_answer_is_written_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """On a busy machine grpc.aio may make an error of its own of it before it cancels the handler."""

    class Answering:
        async def model_stream_infer(self, requests: Any, context: CallContext) -> AsyncIterator[Any]:
            yield pb.ModelStreamInferResponse()

    class Gone(Mock):
        async def write(self, message: bytes) -> None:
            raise RuntimeError('Failed "execute_batch"')

    [method] = [each for each in Service.of(DESCRIPTOR, Answering()).methods if each.name == "ModelStreamInfer"]
    with pytest.raises(asyncio.CancelledError):
        await _answers_stream(method)(iter(()), Gone())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_error_that_nobody_mapped_reveals_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(kind, Live(ValueError("secret"))) as address, grpc.aio.insecure_channel(address) as channel:
        error = await failure(server_live(channel)(pb.ServerLiveRequest()))

    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(error.details())
    assert "secret" in caplog.text


async def test_failures_that_come_as_the_call_ends_are_not_logged_as_errors(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Which of the two comes first is up to gRPC's threads, so there have to be many calls.
    async with serving(kind, TooLate()) as address, grpc.aio.insecure_channel(address) as channel:
        for _ in range(10):
            calls = (server_live(channel)(pb.ServerLiveRequest(), timeout=0.02 + n * 1e-4) for n in range(50))
            ends = await asyncio.gather(*map(failure, calls))

            assert {end.code() for end in ends} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_an_rpc_that_no_servicer_has_is_unimplemented(kind: str) -> None:
    async with serving(kind, Live()) as address, grpc.aio.insecure_channel(address) as channel:
        ready = channel.unary_unary(PREFIX + "ServerReady", response_deserializer=pb.ServerReadyResponse.FromString)
        unary = await failure(ready(b""))
        call = stream_infer(channel)(iter([pb.ModelInferRequest()]))
        stream = await failure(anext(aiter(call)))
        unknown = await failure(channel.unary_unary(PREFIX + "Nothing")(b""))

    assert unary.code() is stream.code() is unknown.code() is grpc.StatusCode.UNIMPLEMENTED
    assert unary.details() == "/inference.GRPCInferenceService/ServerReady is not implemented by this server"


async def test_a_message_that_does_not_parse_is_the_callers_error(kind: str) -> None:
    async with serving(kind, Live(), StreamOnly()) as address, grpc.aio.insecure_channel(address) as channel:
        unary = await failure(channel.unary_unary(PREFIX + "ServerLive")(b"\xff\xff\xff"))
        call = channel.stream_stream(PREFIX + "ModelStreamInfer")(iter([b"\xff\xff\xff"]))
        stream = await failure(anext(aiter(call)))

    assert unary.code() is stream.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert unary.details() == "the message does not parse: expected inference.ServerLiveRequest"


class StreamOnly:
    async def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: CallContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        async for _ in requests:
            yield pb.ModelStreamInferResponse()


class Backwards:
    """Takes bytes and answers bytes."""

    def parse(self, data: MessageBytes) -> bytes:
        return bytes(data[::-1])

    @parses("parse")
    async def model_infer(self, request: bytes, context: CallContext) -> bytes:
        return request


async def test_a_method_may_read_and_write_bytes_by_itself(kind: str) -> None:
    async with serving(kind, Backwards()) as address, grpc.aio.insecure_channel(address) as channel:
        assert await channel.unary_unary(PREFIX + "ModelInfer")(b"abc") == b"cba"


class InParts:
    """Answers with what it was asked, twice, cut where messages like to be cut wrongly."""

    parse = bytes

    @parses("parse")
    async def model_infer(self, request: bytes, context: CallContext) -> Parts:
        return Parts([request[:1], memoryview(request)[1:], request])

    @parses("parse")
    async def model_stream_infer(self, requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[Parts]:
        async for request in requests:
            yield await self.model_infer(request, context)


@pytest.mark.parametrize("size", [1, 20_000, 1_000_000])
async def test_an_answer_may_be_sent_in_parts(kind: str, size: int) -> None:
    message = bytes(range(1, 256)) * (size // 255) + b"end"
    async with serving(kind, InParts()) as address, grpc.aio.insecure_channel(address) as channel:
        assert await channel.unary_unary(PREFIX + "ModelInfer")(message) == 2 * message
        assert (
            await channel.unary_unary(PREFIX + "ModelInfer")(message, compression=grpc.Compression.Gzip) == 2 * message
        )
        call = channel.stream_stream(PREFIX + "ModelStreamInfer")(iter([message, b"x"]))
        assert [answer async for answer in call] == [2 * message, b"xx"]


async def test_an_answer_in_parts_that_is_too_large_is_refused(kind: str) -> None:
    listen = ListenOptions("127.0.0.1", 0, max_message_bytes=1000)
    async with serving(kind, InParts(), listen=listen) as address, grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary(PREFIX + "ModelInfer")
        assert (await failure(infer(bytes(501)))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await infer(bytes(500)) == bytes(1000)


async def test_messages_over_the_limit_are_refused_and_the_connection_lives(kind: str) -> None:
    listen = ListenOptions("127.0.0.1", 0, max_message_bytes=1000)
    async with serving(kind, Backwards(), listen=listen) as address, grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary(PREFIX + "ModelInfer")
        error = await failure(infer(bytes(1001)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await infer(bytes(1000)) == bytes(1000)


async def test_metadata_over_the_limit_is_refused(kind: str) -> None:
    listen = ListenOptions("127.0.0.1", 0, max_metadata_bytes=4096)
    async with serving(kind, Live(), listen=listen) as address, grpc.aio.insecure_channel(address) as channel:
        error = await failure(server_live(channel)(pb.ServerLiveRequest(), metadata=(("k", "v" * 5000),)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await server_live(channel)(pb.ServerLiveRequest(), metadata=(("k", "v" * 1000),))).live


async def test_a_client_that_cancels_cancels_the_handler(kind: str) -> None:
    servicer = Slow()
    async with serving(kind, servicer) as address, grpc.aio.insecure_channel(address) as channel:
        call = server_live(channel)(pb.ServerLiveRequest())
        await servicer.started.wait()
        call.cancel()

        await asyncio.wait_for(servicer.ended.wait(), PATIENCE)


async def test_a_client_that_leaves_a_stream_closes_the_handler(kind: str) -> None:
    servicer = Slow()
    async with serving(kind, servicer) as address, grpc.aio.insecure_channel(address) as channel:
        call = stream_infer(channel)()
        await call.write(pb.ModelInferRequest(id="7"))
        assert (await call.read()).infer_response.id == "7"
        call.cancel()

        await asyncio.wait_for(servicer.ended.wait(), PATIENCE)


async def test_stopping_lets_a_call_end_and_takes_no_new_one(kind: str) -> None:
    servicer = Slow()
    transport = TRANSPORTS[kind]([Service.of(DESCRIPTOR, servicer)], LOOPBACK)
    port = await transport.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = server_live(channel)(pb.ServerLiveRequest())
        await servicer.started.wait()
        stopping = asyncio.create_task(transport.stop(PATIENCE))
        late = await failure(server_live(channel)(pb.ServerLiveRequest(), timeout=PATIENCE))
        servicer.release.set()

        assert (await call).live
        await stopping

    # A call that crosses the shutdown on its way is cancelled by gRPC. `Serving` has answered UNAVAILABLE long before.
    assert late.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_stopping_cancels_what_outlives_the_grace(kind: str) -> None:
    servicer = Slow()
    transport = TRANSPORTS[kind]([Service.of(DESCRIPTOR, servicer)], LOOPBACK)
    port = await transport.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = server_live(channel)(pb.ServerLiveRequest())
        await servicer.started.wait()
        await transport.stop(0.01)
        await failure(call)

        await asyncio.wait_for(servicer.ended.wait(), PATIENCE)


def test_a_method_of_the_wrong_kind_is_refused_when_the_service_is_built() -> None:
    class NotAsync:
        def server_live(self, request: Any, context: CallContext) -> None: ...

    with pytest.raises(TypeError, match="server_live has to be a coroutine function"):
        Service.of(DESCRIPTOR, NotAsync())
    with pytest.raises(TypeError, match="2 servicers have a method server_live"):
        Service.of(DESCRIPTOR, Live(), Slow())


class Authority:
    """Issues certificates for this machine."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(name)
        self.pem = self._sign(self._key, self._name, authority=True).public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """Certificate and key as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(key, _common_name(name), authority=False)
        return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def _sign(self, key: ec.EllipticCurvePrivateKey, name: x509.Name, *, authority: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


async def test_tls_serves_clients_that_trust_the_certificate(kind: str) -> None:
    authority = Authority("ours")
    certificate, key = authority.issue("server")
    listen = ListenOptions("127.0.0.1", 0, tls=TlsMaterial(certificate, key))
    async with serving(kind, Live(), listen=listen) as address:
        trusting = grpc.ssl_channel_credentials(authority.pem)
        async with grpc.aio.secure_channel(address, trusting) as channel:
            assert (await server_live(channel)(pb.ServerLiveRequest())).live
        async with grpc.aio.insecure_channel(address) as channel:
            error = await failure(server_live(channel)(pb.ServerLiveRequest()))

    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_knows_its_clients_and_refuses_strangers(kind: str) -> None:
    authority, stranger = Authority("ours"), Authority("theirs")
    certificate, key = authority.issue("server")
    servicer = Live()
    tls = TlsMaterial(certificate, key, client_ca=authority.pem)
    async with serving(kind, servicer, listen=ListenOptions("127.0.0.1", 0, tls=tls)) as address:
        async with grpc.aio.secure_channel(address, _credentials(authority.pem, authority.issue("alice"))) as channel:
            await server_live(channel)(pb.ServerLiveRequest())
        assert [seen.identity for seen in servicer.seen] == ["alice"]
        for credentials in (
            grpc.ssl_channel_credentials(authority.pem),
            _credentials(authority.pem, stranger.issue("mallory")),
        ):
            async with grpc.aio.secure_channel(address, credentials) as channel:
                error = await failure(server_live(channel)(pb.ServerLiveRequest()))
                assert error.code() is grpc.StatusCode.UNAVAILABLE


def _credentials(authority: bytes, issued: tuple[bytes, bytes]) -> Any:
    return grpc.ssl_channel_credentials(authority, private_key=issued[1], certificate_chain=issued[0])


async def test_a_certificate_that_cannot_be_used_is_a_configuration_error(kind: str) -> None:
    with pytest.raises(ConfigurationError, match="certificate"):
        await TRANSPORTS[kind]([], ListenOptions("127.0.0.1", 0, tls=TlsMaterial(b"no", b"no"))).start()


async def live_at(path: Path) -> bool:
    async with grpc.aio.insecure_channel(f"unix:{path}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return bool((await server_live(channel)(pb.ServerLiveRequest())).live)


def at(kind: str, path: Path, servicer: object) -> Transport:
    return TRANSPORTS[kind]([Service.of(DESCRIPTOR, servicer)], ListenOptions(f"unix:{path}", 0))


async def test_a_path_of_a_living_server_is_not_taken(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "offramp.sock"
    servicer = Live()
    transport = at(kind, path, servicer)
    await transport.start()
    other = at(kind, path, Live())
    with pytest.raises(ConfigurationError, match=rf"cannot listen on unix:{path}: Address already in use"):
        await other.start()
    await other.stop(0)
    assert await live_at(path)
    assert [seen.peer for seen in servicer.seen] == ["unix:"]
    await transport.stop(0)
    assert not path.exists()


async def test_the_socket_of_a_killed_server_does_not_stand_in_the_way(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "offramp.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    transport = at(kind, path, Live())
    await transport.start()
    assert await live_at(path)
    await transport.stop(0)


async def test_a_path_may_be_taken_over_from_a_server_that_drains(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "offramp.sock"
    slow = Slow()
    before, after = at(kind, path, slow), at(kind, path, Live())
    await before.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = server_live(channel)(pb.ServerLiveRequest())
        await slow.started.wait()
        stopping = asyncio.create_task(before.stop(PATIENCE))
        await eventually(lambda: not path.exists())
        await after.start()
        assert await live_at(path)
        slow.release.set()
        assert (await call).live
        await stopping
    # What has drained took nothing away.
    assert await live_at(path)
    await after.stop(0)


async def test_a_path_that_cannot_be_had_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for name, reason in (
        ("file", "there is a file, which is no socket"),
        ("nowhere/offramp.sock", "No such file or directory"),
        ("long" * 40, "gRPC could not use the address" if kind == "grpcio" else "AF_UNIX path too long"),
    ):
        with pytest.raises(ConfigurationError, match=rf"cannot listen on unix:.*{name}.*: {reason}"):
            await at(kind, tmp_path / name, Live()).start()
    assert (tmp_path / "file").read_text() == "mine"


async def test_an_address_that_stands_for_all_takes_ipv4_as_well(kind: str) -> None:
    transport = TRANSPORTS[kind]([Service.of(DESCRIPTOR, Live())], ListenOptions("::", 0))
    port = await transport.start()
    for address in (f"127.0.0.1:{port}", f"[::1]:{port}"):
        async with grpc.aio.insecure_channel(address) as channel:
            assert (await server_live(channel)(pb.ServerLiveRequest())).live
    await transport.stop(0)


async def test_a_message_that_takes_long_to_unpack_keeps_nobody_else_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, free = threading.Event(), threading.Event()

    def slowly(*given: Any) -> bytes:
        begun.set()
        assert free.wait(PATIENCE)
        return unpack(*given)

    unpack = messages.decompressed
    monkeypatch.setattr(messages, "decompressed", slowly)
    # It becomes smaller, but not small.
    message = random.Random(1).randbytes(50_000).hex().encode()
    squeezed = {"compression": grpc.Compression.Gzip, "timeout": PATIENCE}
    async with serving("native", InParts()) as address, grpc.aio.insecure_channel(address) as channel:
        infer, stream = channel.unary_unary(PREFIX + "ModelInfer"), channel.stream_stream(PREFIX + "ModelStreamInfer")
        for streamed in (False, True):
            slow = stream(iter([message]), **squeezed).read() if streamed else infer(message, **squeezed)
            waiting = asyncio.ensure_future(slow)
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            assert await infer(b"ab", timeout=PATIENCE) == b"abab"
            assert not waiting.done()
            free.set()
            assert await waiting == 2 * message
            begun.clear()
            free.clear()


def test_large_messages_both_ways_over_tls_on_the_loop_that_serves() -> None:
    """uvloop, which a server runs on, pauses writers and makes records of TLS by itself."""
    authority = Authority("ours")
    certificate, key = authority.issue("server")
    message = bytes(range(256)) * 40_000

    async def call_in_a_thread() -> None:
        transport = NativeTransport(
            [Service.of(DESCRIPTOR, Backwards())], ListenOptions("127.0.0.1", 0, tls=TlsMaterial(certificate, key))
        )
        port = await transport.start()

        def call() -> None:
            options = [("grpc.max_receive_message_length", -1)]
            credentials = grpc.ssl_channel_credentials(authority.pem)
            with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
                infer = channel.unary_unary(PREFIX + "ModelInfer")
                calls = [infer.future(message, timeout=PATIENCE) for _ in range(4)]
                assert [each.result() for each in calls] == [message[::-1]] * 4
                assert infer(b"abc", timeout=PATIENCE) == b"cba"

        await asyncio.to_thread(call)
        await transport.stop(1)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(call_in_a_thread())
