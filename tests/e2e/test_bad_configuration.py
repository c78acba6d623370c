"""A server that cannot be what it is asked to be says why in one sentence, and ends with exit code 2."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_certificates import Authority
from eventually import PATIENCE


def refusal(repository: Path, *arguments: str) -> str:
    """What it prints on standard error."""
    command = [sys.executable, "-m", "offramp_server", "serve", f"--model-repository={repository}"]
    if not any(argument.startswith("--grpc-port") for argument in arguments):
        command.append("--grpc-port=0")
    done = subprocess.run(
        [*command, "--http-port=0", "--in-process", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("offramp: error: ")
    return done.stderr


@pytest.fixture
def configured(tmp_path: Path, small_repository: Path) -> Callable[[str], str]:
    """The refusal of a configuration file with that text."""

    def refuse(text: str) -> str:
        file = tmp_path / "offramp.toml"
        file.write_text(text)
        return refusal(small_repository, f"--config={file}")

    return refuse


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_certificate_that_is_not_there_is_named(configured: Callable[[str], str], tmp_path: Path) -> None:
    message = configured('[tls]\ncertificate = "server.pem"\nkey = "server.key"\n')
    assert f"tls.certificate: there is no file {tmp_path / 'server.pem'}" in message


def test_a_certificate_that_is_none_is_refused(configured: Callable[[str], str], tmp_path: Path) -> None:
    pair = Authority().sign("127.0.0.1")
    (tmp_path / "server.pem").write_text("not a certificate")
    (tmp_path / "server.key").write_bytes(pair.key)
    message = configured('[tls]\ncertificate = "server.pem"\nkey = "server.key"\n')
    assert "server.pem and" in message
    assert "expected a certificate chain and its private key, both PEM" in message


def test_a_key_of_another_certificate_is_refused(configured: Callable[[str], str], tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "server.pem").write_bytes(authority.sign("127.0.0.1").certificate)
    (tmp_path / "server.key").write_bytes(authority.sign("127.0.0.1").key)
    message = configured('[tls]\ncertificate = "server.pem"\nkey = "server.key"\n')
    assert f"{tmp_path / 'server.key'} is not the key of the certificate {tmp_path / 'server.pem'}" in message


def test_an_unknown_key_is_told_the_nearest(configured: Callable[[str], str]) -> None:
    message = configured("[server]\ngrcp_port = 1\n")
    assert "grcp_port" in message
    assert 'did you mean "server.grpc_port"?' in message


def test_a_value_out_of_range_is_told_the_range(configured: Callable[[str], str]) -> None:
    assert "limits.max_in_flight: expected a number of at least 1, got 0" in configured("[limits]\nmax_in_flight = 0\n")


def test_a_taken_port_is_named(small_repository: Path, taken_port: int) -> None:
    message = refusal(small_repository, f"--grpc-port={taken_port}")
    assert f"127.0.0.1:{taken_port}" in message
    assert "in use" in message.lower()


def test_a_repository_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")
