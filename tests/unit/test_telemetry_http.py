"""The HTTP port: metrics and probes."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from offramp_server.errors import ConfigurationError
from offramp_server.telemetry.gauges import Gauges, ModelGauges
from offramp_server.telemetry.http import TelemetryServer
from offramp_server.telemetry.prometheus import Exposition
from offramp_server.telemetry.stats import Stats

HOST = "127.0.0.1"


@dataclass
class Server:
    """A telemetry server on a free port, over a server whose state a test sets."""

    live: bool = True
    not_ready: str = ""
    models: list[ModelGauges] = field(default_factory=lambda: [ModelGauges("m", "1", True)])
    port: int = 0

    def __post_init__(self) -> None:
        gauges = Gauges(lambda: not self.not_ready, lambda: 0, lambda: self.models, lambda: [], lambda: 1)
        self.http = TelemetryServer(Exposition(Stats(), gauges), lambda: self.live, lambda: self.not_ready)

    def url(self, path: str) -> str:
        return f"http://{HOST}:{self.port}{path}"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    running = Server()
    running.port = await running.http.start(HOST, 0)
    yield running
    await running.http.stop()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False, headers={"Accept-Encoding": "identity"}) as session:
        yield session


async def test_port_zero_takes_a_free_port_and_says_which(server: Server) -> None:
    assert server.port > 0


async def test_metrics_are_served_as_text(server: Server, client: aiohttp.ClientSession) -> None:
    async with client.get(server.url("/metrics")) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert 'offramp_model_ready{model="m",version="1"} 1.0\n' in await answer.text()


async def test_metrics_are_served_as_openmetrics_when_asked(server: Server, client: aiohttp.ClientSession) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
    async with client.get(server.url("/metrics"), headers=accept) as answer:
        assert answer.content_type == "application/openmetrics-text"
        assert (await answer.text()).endswith("# EOF\n")


async def test_metrics_are_compressed_for_those_who_can_read_it(server: Server, client: aiohttp.ClientSession) -> None:
    async with client.get(server.url("/metrics"), headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert b"offramp_ready 1.0\n" in gzip.decompress(await answer.read())


async def test_a_scrape_may_leave_groups_out(server: Server, client: aiohttp.ClientSession) -> None:
    async with client.get(server.url("/metrics?collect[]=offramp&collect[]=process")) as answer:
        text = await answer.text()
    assert "offramp_ready" in text
    assert "nv_inference" not in text


async def test_an_unknown_group_is_a_bad_request_that_names_the_known(
    server: Server, client: aiohttp.ClientSession
) -> None:
    async with client.get(server.url("/metrics?collect[]=gpu")) as answer:
        assert answer.status == 400
        assert "offramp, triton, process" in await answer.text()


@pytest.mark.parametrize("reason", ["starting: 2 of 3 models are loaded", "draining"])
async def test_readyz_says_why_the_server_is_not_ready(
    server: Server, client: aiohttp.ClientSession, reason: str
) -> None:
    server.not_ready = reason
    async with client.get(server.url("/readyz")) as answer:
        assert (answer.status, await answer.text()) == (503, f"{reason}\n")
    async with client.get(server.url("/livez")) as answer:
        assert answer.status == 200
    server.not_ready = ""
    async with client.get(server.url("/readyz")) as answer:
        assert (answer.status, await answer.text()) == (200, "ok\n")


async def test_livez_fails_when_the_server_is_dead(server: Server, client: aiohttp.ClientSession) -> None:
    server.live = False
    async with client.get(server.url("/livez")) as answer:
        assert answer.status == 503


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz"])
async def test_head_is_answered_without_a_body(server: Server, client: aiohttp.ClientSession, path: str) -> None:
    async with client.head(server.url(path)) as answer:
        assert answer.status == 200
        assert await answer.read() == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_other_methods_are_refused(server: Server, client: aiohttp.ClientSession, method: str) -> None:
    async with client.request(method, server.url("/metrics"), data=b"x" * 1000) as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET,HEAD"
        assert "expected GET or HEAD" in await answer.text()


@pytest.mark.parametrize("path", ["/", "/v2/health/ready", "/metrics/", "/%00"])
async def test_an_unknown_path_gets_a_hint(server: Server, client: aiohttp.ClientSession, path: str) -> None:
    async with client.get(server.url(path)) as answer:
        assert answer.status == 404
        assert "/metrics, /livez and /readyz" in await answer.text()


async def test_answers_do_not_tell_which_software_runs(server: Server, client: aiohttp.ClientSession) -> None:
    for path in ("/livez", "/nothing"):
        async with client.get(server.url(path)) as answer:
            assert answer.headers["Server"] == "offramp"


async def test_requests_are_not_logged(
    server: Server, client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with client.get(server.url("/livez")) as answer:
        await answer.read()
    assert [record for record in caplog.records if record.name.startswith("aiohttp")] == []


async def test_bytes_that_are_not_http_do_not_disturb_the_port(server: Server, client: aiohttp.ClientSession) -> None:
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(b"\x16\x03\x01\x02\x00garbage\r\n\r\n")
    assert b" 400 " in await reader.read()
    writer.close()
    await writer.wait_closed()
    async with client.get(server.url("/livez")) as answer:
        assert answer.status == 200


async def test_a_taken_port_is_a_configuration_error_that_names_it(server: Server) -> None:
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{server.port} .*0 takes any"):
        await Server().http.start(HOST, server.port)


async def test_an_address_of_another_machine_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen for HTTP on 192\.0\.2\.1:0"):
        await Server().http.start("192.0.2.1", 0)


async def test_after_a_stop_nobody_listens(client: aiohttp.ClientSession) -> None:
    server = Server()
    server.port = await server.http.start(HOST, 0)
    async with client.get(server.url("/livez")) as answer:
        assert answer.status == 200
    await server.http.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.get(server.url("/livez"))


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server and of a client that trusts its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "offramp test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = tmp_path / "chain.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(chain)
    return server_side, ssl.create_default_context(cafile=str(chain))


async def test_with_a_context_the_port_speaks_tls(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], client: aiohttp.ClientSession
) -> None:
    server_side, client_side = tls
    server = Server()
    server.port = await server.http.start(HOST, 0, ssl_context=server_side)
    try:
        async with client.get(f"https://{HOST}:{server.port}/livez", ssl=client_side) as answer:
            assert answer.status == 200
    finally:
        await server.http.stop()
