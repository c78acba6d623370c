"""The PEM files of TLS, read and checked: of a wrong one gRPC says no more than that it could not listen."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from offramp_server.errors import ConfigurationError
from offramp_server.transport.interface import TlsMaterial


def read_tls(certificate: Path, key: Path, client_ca: Path | None) -> TlsMaterial:
    """Raises ConfigurationError for files that are not what they should be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, lambda: _refuse_encrypted(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(f"tls.key: {key} is not the key of the certificate {certificate}") from error
        raise ConfigurationError(
            f"tls: {certificate} and {key} cannot be used ({error.reason or 'no PEM'}); "
            "expected a certificate chain and its private key, both PEM"
        ) from error
    if client_ca is not None:
        _check_authorities(context, client_ca)
    return TlsMaterial(certificate.read_bytes(), key.read_bytes(), client_ca.read_bytes() if client_ca else None)


def _check_authorities(context: ssl.SSLContext, client_ca: Path) -> None:
    try:
        context.load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"tls.client_ca: {client_ca} cannot be used ({error.reason}); expected certificates of authorities, PEM"
        ) from error


def _refuse_encrypted(key: Path) -> NoReturn:
    raise ConfigurationError(f"tls.key: {key} is encrypted; expected a key without a passphrase")
