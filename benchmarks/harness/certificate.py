"""A certificate for servers on the loopback interface."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.environments import NotRunnableError

_HOLDS = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    chain: Path
    key: Path


def write_certificate(directory: Path) -> Certificate:
    """A self-signed one for 127.0.0.1. Raises NotRunnableError without the package `cryptography`."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise NotRunnableError("package cryptography is not installed, which makes the certificate") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _HOLDS)
        .not_valid_after(now + _HOLDS)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    made = Certificate(directory / "chain.pem", directory / "key.pem")
    pem = serialization.Encoding.PEM
    made.chain.write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    made.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return made
