"""What a front end is told when it starts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from offramp_server.transport.interface import ListenOptions, TlsMaterial
from offramp_server.transport.relay.forwarding import MethodKind


@dataclass(frozen=True, slots=True)
class Hello:
    """All of it but the sockets, which it inherits."""

    methods: tuple[MethodKind, ...]
    # Of `listen` the address says nothing to it.
    listen: ListenOptions
    # Of unfinished requests, and of those that the server has not taken.
    max_buffered_bytes: int
    # How often it is to be heard of, in seconds; one that is not is taken to hang.
    speak_every: float
    # Of the `logging` module, and the name of a form of lines.
    log_level: int
    log_format: str

    def encode(self) -> bytes:
        told = asdict(self)
        tls = self.listen.tls
        if tls is not None:
            # PEM is ASCII, and what is not will be refused where it is read.
            told["listen"]["tls"] = {
                key: None if pem is None else pem.decode("latin-1") for key, pem in asdict(tls).items()
            }
        return json.dumps(told).encode()

    @classmethod
    def decode(cls, body: bytes) -> Hello:
        told = json.loads(body)
        methods = tuple(MethodKind(**kind) for kind in told.pop("methods"))
        listen = told.pop("listen")
        tls = listen.pop("tls")
        if tls is not None:
            pems: dict[str, Any] = {key: None if pem is None else pem.encode("latin-1") for key, pem in tls.items()}
            listen["tls"] = TlsMaterial(**pems)
        return cls(methods=methods, listen=ListenOptions(**listen), **told)
