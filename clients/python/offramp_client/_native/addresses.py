"""Where a target's bytes go (the syntax is that of gRPC's name resolution document)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SCHEME = re.compile(r"^(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and its port, or the path of a Unix socket (which begins with a zero byte if it is an abstract one)."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}" if self.path[0] != "\0" else f"unix-abstract:{self.path[1:]}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses_of(target: str) -> tuple[Address, ...]:
    """Raises ValueError for a scheme that only grpcio knows, or what is no address."""
    found = _SCHEME.match(target)
    scheme, rest = (found[1], target[found.end() :]) if found else ("dns", target)
    if scheme in ("ipv4", "ipv6"):
        return tuple(_host_and_port(each, target) for each in rest.split(","))
    if scheme == "unix":
        return (Address(path=rest.removeprefix("//")),)
    if scheme == "unix-abstract":
        return (Address(path="\0" + rest),)
    if scheme != "dns" or re.match("//[^/]", rest):
        raise ValueError(f'target "{target}": the native transport has no {scheme}: of that kind; use grpcio for it')
    return (_host_and_port(rest.removeprefix("///"), target),)


def authority_of(target: str) -> str:
    """What requests are said to be for."""
    if target.startswith(("unix:", "unix-abstract:")):
        return "localhost"
    return re.sub(r"^(dns|ipv4|ipv6):(///)?", "", target).split(",")[0]


def _host_and_port(text: str, target: str) -> Address:
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):(\d{1,5})", text)
    if found is None or int(found[3]) > 65535:
        raise ValueError(f'target "{target}": expected host:port, for example "localhost:8001" or "[::1]:8001"')
    return Address(found[1] or found[2], int(found[3]))
