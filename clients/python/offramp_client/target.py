"""What a gRPC target says about where its bytes go (the syntax is that of gRPC's name resolution document)."""

from __future__ import annotations

import ipaddress
import re

_LOCAL_SCHEMES = ("unix", "unix-abstract")
_SCHEME = re.compile(r"^(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):")

# An IPv6 address is in brackets, or its last group would be the port.
_HOST_AND_PORT = re.compile(r"^(\[[^\[\]]+\]|[^:\[\]]+):\d+$")


def check_target(target: str) -> None:
    """Raise ValueError for what gRPC would take for something else without saying so."""
    if "://" in target and not _SCHEME.match(target):
        raise ValueError(f'target "{target}": expected host:port without {target.split("://")[0]}://')
    if not _SCHEME.match(target) and not _HOST_AND_PORT.match(target):
        raise ValueError(f'target "{target}": expected host:port, for example "localhost:8001" or "[::1]:8001"')


def is_loopback(target: str) -> bool:
    """Whether every address of the target is on this machine. A name counts only if it is "localhost"."""
    scheme = _SCHEME.match(target)
    if scheme is None:
        return _is_loopback_host(target)
    rest = target[scheme.end() :]
    if scheme[1] in _LOCAL_SCHEMES:
        return True
    if scheme[1] == "dns":
        # dns://AUTHORITY/host asks that name server, which may say anything.
        return not re.match("//[^/]", rest) and _is_loopback_host(rest.removeprefix("///"))
    return scheme[1] in ("ipv4", "ipv6") and all(_is_loopback_host(address) for address in rest.split(","))


def _is_loopback_host(address: str) -> bool:
    host = re.sub(r":\d+$", "", address).strip("[]") if _has_port(address) else address.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _has_port(address: str) -> bool:
    return address.startswith("[") or address.count(":") == 1
