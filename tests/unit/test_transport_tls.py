"""PEM files of TLS are checked before gRPC gets them, which would not say what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from client_certificates import Authority
from cryptography.hazmat.primitives import serialization
from offramp_server.errors import ConfigurationError
from offramp_server.transport.tls import read_tls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    authority = Authority()
    pair = authority.sign("localhost")
    (tmp_path / "server.pem").write_bytes(pair.certificate)
    (tmp_path / "server.key").write_bytes(pair.key)
    (tmp_path / "clients.pem").write_bytes(authority.certificate)
    return tmp_path


def read(folder: Path, client_ca: str = "clients.pem") -> object:
    return read_tls(folder / "server.pem", folder / "server.key", folder / client_ca)


def test_good_files_are_read_as_they_are(folder: Path) -> None:
    tls = read_tls(folder / "server.pem", folder / "server.key", folder / "clients.pem")
    assert tls.certificate_chain == (folder / "server.pem").read_bytes()
    assert tls.private_key == (folder / "server.key").read_bytes()
    assert tls.client_ca == (folder / "clients.pem").read_bytes()
    assert read_tls(folder / "server.pem", folder / "server.key", None).client_ca is None


def test_a_key_of_another_certificate_is_named(folder: Path) -> None:
    (folder / "server.key").write_bytes(Authority().sign("localhost").key)
    with pytest.raises(ConfigurationError, match=r"tls\.key: .*server\.key is not the key of the certificate .*\.pem"):
        read(folder)


@pytest.mark.parametrize("file", ["server.pem", "server.key"])
def test_what_is_not_pem_is_named(folder: Path, file: str) -> None:
    (folder / file).write_text("nonsense")
    with pytest.raises(ConfigurationError, match=r"server\.pem and .*server\.key cannot be used \(no PEM\).* both PEM"):
        read(folder)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_passphrase(folder: Path) -> None:
    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
    (folder / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(ConfigurationError, match="is encrypted; expected a key without a passphrase"):
        read(folder)


def test_authorities_that_are_none_are_named(folder: Path) -> None:
    (folder / "clients.pem").write_text("nonsense")
    with pytest.raises(ConfigurationError, match=r"tls\.client_ca: .*clients\.pem cannot be used"):
        read(folder)
