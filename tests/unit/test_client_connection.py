"""How the clients reach a server: targets, encryption, tokens and gRPC's own settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from client_certificates import Authority, KeyPair
from client_fakes import KINDS, FakeServer, client_of
from offramp_client import TLS, AsyncClient, Client, KeepAlive, RetryPolicy, errors
from offramp_client._connection import connection_to
from offramp_client._grpcio import channel_options
from offramp_client.target import is_loopback

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def server_pair(authority: Authority) -> KeyPair:
    return authority.sign("127.0.0.1")


@pytest.fixture(scope="module")
def tls_server(authority: Authority, server_pair: KeyPair) -> Iterator[FakeServer]:
    credentials = grpc.ssl_server_credentials([(server_pair.key, server_pair.certificate)])
    with FakeServer(credentials) as server:
        yield server


@pytest.fixture(scope="module")
def mutual_server(authority: Authority, server_pair: KeyPair) -> Iterator[FakeServer]:
    credentials = grpc.ssl_server_credentials(
        [(server_pair.key, server_pair.certificate)], authority.certificate, require_client_auth=True
    )
    with FakeServer(credentials) as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestTls:
    def test_a_server_whose_authority_is_known_is_talked_to(
        self, kind: str, tls_server: FakeServer, authority: Authority
    ) -> None:
        with client_of(kind, tls_server.target, tls=TLS(ca=authority.certificate), token="t") as client:
            assert client.server_metadata().name == "fake"
        assert tls_server.seen[-1][2]["authorization"] == "Bearer t"

    def test_a_pem_may_be_given_by_its_path(self, tls_server: FakeServer, authority: Authority, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_bytes(authority.certificate)
        for ca in (tmp_path / "ca.pem", str(tmp_path / "ca.pem")):
            with Client(tls_server.target, tls=TLS(ca=ca)) as client:
                assert client.is_live()

    def test_comments_between_certificates_may_be_in_any_language(
        self, kind: str, tls_server: FakeServer, authority: Authority
    ) -> None:
        """As in the bundles of some distributions."""
        ca = "# Főtanúsítvány\n".encode() + authority.certificate
        with client_of(kind, tls_server.target, tls=TLS(ca=ca)) as client:
            assert client.server_metadata().name == "fake"

    def test_a_stranger_is_not_talked_to(self, kind: str, tls_server: FakeServer) -> None:
        for tls in (True, TLS(ca=Authority().certificate)):
            with (
                client_of(kind, tls_server.target, tls=tls, retries=ONCE) as client,
                pytest.raises(errors.Unavailable),
            ):
                client.server_metadata()

    def test_the_name_to_expect_may_be_another_than_the_targets(self, authority: Authority) -> None:
        pair = authority.sign("models.example")
        with FakeServer(grpc.ssl_server_credentials([(pair.key, pair.certificate)])) as server:
            tls = TLS(ca=authority.certificate, server_name="models.example")
            with Client(server.target, tls=tls) as client:
                assert client.is_live()
            with (
                Client(server.target, tls=TLS(ca=authority.certificate), retries=ONCE) as client,
                pytest.raises(errors.Unavailable),
            ):
                client.server_metadata()

    def test_a_server_that_asks_for_it_is_shown_the_clients_certificate(
        self, kind: str, mutual_server: FakeServer, authority: Authority
    ) -> None:
        pair = authority.sign("app")
        tls = TLS(ca=authority.certificate, certificate=pair.certificate, key=pair.key)
        with client_of(kind, mutual_server.target, tls=tls) as client:
            assert client.is_live()
        with (
            client_of(kind, mutual_server.target, tls=TLS(ca=authority.certificate), retries=ONCE) as client,
            pytest.raises(errors.Unavailable),
        ):
            client.server_metadata()

    @pytest.mark.parametrize(("given", "missing"), [("certificate", "key"), ("key", "certificate")])
    def test_half_a_key_pair_is_refused(self, given: str, missing: str) -> None:
        options: dict[str, Any] = {given: b"pem"}
        with pytest.raises(ValueError, match=f"{given} is given without {missing}; mutual TLS needs both"):
            TLS(**options)

    def test_pem_text_in_place_of_a_path_is_refused_without_being_shown(self) -> None:
        with pytest.raises(ValueError, match="key is PEM text; give it as bytes") as caught:
            TLS(certificate=b"pem", key="-----BEGIN PRIVATE KEY-----\nsecret")
        assert "secret" not in str(caught.value)

    def test_a_file_that_is_not_there_is_named(self) -> None:
        with pytest.raises(FileNotFoundError, match="no-such-ca"):
            Client(tls=TLS(ca="no-such-ca.pem"))

    def test_a_key_is_not_shown(self) -> None:
        assert "secret" not in repr(TLS(certificate=b"c", key=b"secret"))


class TestTokens:
    def test_a_token_goes_to_this_machine_without_encryption(self) -> None:
        for target in ("localhost:8001", "127.0.0.1:8001", "[::1]:8001", "unix:/run/offramp.sock"):
            Client(target, token="t").close()

    @pytest.mark.parametrize("kind", [Client, AsyncClient])
    def test_a_token_does_not_leave_this_machine_without_encryption(self, kind: Any) -> None:
        with pytest.raises(ValueError, match=r'the token would go to "models\.example:8001" unencrypted; pass tls'):
            kind("models.example:8001", token="t")

    def test_unless_told_to(self) -> None:
        Client("models.example:8001", token="t", allow_insecure_token=True).close()
        Client("models.example:8001", token="t", tls=True).close()

    @pytest.mark.parametrize("token", ["", "a\n", " a", "\x00", "é"])
    def test_a_token_that_cannot_travel_is_refused_without_being_shown(self, token: str) -> None:
        with pytest.raises(ValueError, match="the token is empty or has characters that cannot travel in a header"):
            Client(token=token)

    def test_a_token_is_not_shown(self) -> None:
        with Client(token="s3cret") as client:
            assert "s3cret" not in repr(client)


class TestTargets:
    @pytest.mark.parametrize(
        "target",
        [
            "localhost:1",
            "LOCALHOST:1",
            "127.0.0.1:1",
            "127.8.9.1:1",
            "[::1]:1",
            "dns:localhost:1",
            "dns:///localhost:1",
            "ipv4:127.0.0.1:1,127.0.0.2:1",
            "ipv6:[::1]:1",
            "unix:/run/x",
            "unix-abstract:x",
        ],
    )
    def test_what_stays_on_this_machine(self, target: str) -> None:
        assert is_loopback(target)

    @pytest.mark.parametrize(
        "target",
        [
            "models.example:1",
            "localhost.example:1",
            "10.0.0.1:1",
            "[fe80::1]:1",
            "dns:///models.example:1",
            "dns://10.0.0.1/localhost:1",
            "ipv4:127.0.0.1:1,10.0.0.1:1",
            "vsock:2:1",
            "xds:///localhost:1",
        ],
    )
    def test_what_does_not(self, target: str) -> None:
        assert not is_loopback(target)

    @pytest.mark.parametrize("target", ["localhost", "models.example", "::1", "[::1]", ""])
    def test_a_target_without_a_port_is_refused(self, target: str) -> None:
        with pytest.raises(ValueError, match=r'expected host:port, for example "localhost:8001"'):
            Client(target)

    @pytest.mark.parametrize("scheme", ["http", "https", "grpc"])
    def test_a_url_is_refused(self, scheme: str) -> None:
        with pytest.raises(ValueError, match=f"expected host:port without {scheme}://"):
            Client(f"{scheme}://localhost:8001")


class TestChannelOptions:
    def options(self, target: str = "localhost:8001", **changes: Any) -> dict[str, int | str]:
        arguments = {
            "tls": None,
            "token": None,
            "keepalive": KeepAlive(),
            "max_message_bytes": 1000,
            "allow_insecure_token": False,
        }
        return dict(channel_options(connection_to(target, **{**arguments, **changes})))

    def test_only_the_client_retries(self) -> None:
        assert self.options()["grpc.enable_retries"] == 0

    def test_messages_are_bounded_in_both_directions(self) -> None:
        options = self.options()
        assert options["grpc.max_send_message_length"] == options["grpc.max_receive_message_length"] == 1000

    def test_keepalive_is_what_was_asked_for(self) -> None:
        options = self.options(keepalive=KeepAlive(interval=60.0, timeout=5.0, while_idle=True))
        assert options["grpc.keepalive_time_ms"] == 60_000
        assert options["grpc.keepalive_timeout_ms"] == 5000
        assert options["grpc.keepalive_permit_without_calls"] == 1
        assert not any("keepalive" in name for name in self.options(keepalive=None))

    def test_a_proxy_is_only_for_other_machines(self) -> None:
        assert self.options()["grpc.enable_http_proxy"] == 0
        assert self.options("models.example:1")["grpc.enable_http_proxy"] == 1

    @pytest.mark.parametrize("options", [{"interval": 0.5}, {"timeout": 0.0}])
    def test_keepalive_that_makes_no_sense_is_refused(self, options: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="interval has to be at least 1 s and timeout positive"):
            KeepAlive(**options)  # type: ignore[arg-type]

    def test_a_message_limit_that_makes_no_sense_is_refused(self) -> None:
        with pytest.raises(ValueError, match="max_message_bytes has to be positive, got 0"):
            Client(max_message_bytes=0)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_default_timeout_that_makes_no_sense_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="a timeout is a positive number of seconds, or None for no limit; got 0"):
        kind(timeout=0)


def test_a_client_says_where_it_calls() -> None:
    with Client("localhost:7") as client:
        assert repr(client) == "offramp_client.client.Client('localhost:7')"
