"""What a connection is encrypted with."""

from __future__ import annotations

import ssl
from pathlib import Path
from tempfile import TemporaryDirectory


def tls_context(ca: bytes | None, certificate: bytes | None, key: bytes | None) -> ssl.SSLContext:
    """From PEM. `ca` None: the authorities that the system knows. Raises ValueError for what is no such PEM."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As gRPC has it: names stand in subjectAltName.
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["h2"])
    if ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_authorities(context, ca)
    if certificate is not None and key is not None:
        _load_pair(context, certificate, key)
    return context


def _load_authorities(context: ssl.SSLContext, ca: bytes) -> None:
    try:
        # Bundles name their certificates in comments, in whatever language; what counts is in ASCII.
        context.load_verify_locations(cadata=ca.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise ValueError("TLS: ca has no certificates in PEM that can be read") from error


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    # The ssl module reads them from files only.
    with TemporaryDirectory(prefix="offramp-tls-") as folder:
        chain, private = Path(folder, "chain.pem"), Path(folder, "key.pem")
        chain.write_bytes(certificate)
        private.touch(mode=0o600)
        private.write_bytes(key)
        try:
            context.load_cert_chain(chain, private, password=_refuse_encrypted)
        except ssl.SSLError as error:
            raise ValueError(f"TLS: certificate and key cannot be used ({error.reason})") from error


def _refuse_encrypted() -> str:
    raise ValueError("TLS: key is encrypted; expected one without a passphrase")
