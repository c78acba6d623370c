"""The server's settings: a TOML file, environment variables and the command line, in rising order of precedence.

Every table of the file is one dataclass here. A value that cannot be used is a ConfigurationError of one sentence.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from offramp_common.toml_schema import between, bind, matches, read_toml, unknown_key

from offramp_server.errors import ConfigurationError

ENVIRONMENT_PREFIX = "OFFRAMP_"
# A path of the store that is none.
IN_MEMORY = ":memory:"

_Seconds = Annotated[float, between(0)]
_Count = Annotated[int, between(1)]
_Port = Annotated[int, between(0, 65535)]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`[server]`: where the server listens and how it stops."""

    # The address both ports listen on. Management calls from other hosts need an admin token.
    host: Annotated[str, matches(r"\S+", "a host name or an IP address")] = "127.0.0.1"
    # gRPC; 0 takes a free port.
    grpc_port: _Port = 8001
    # A Unix socket that gRPC is served on instead of `host` and `grpc_port`: only for clients on this machine whom the
    # permissions of its folder and the umask of the server let write to it. HTTP stays on `host`. Relative to the
    # configuration file.
    grpc_socket: Path | None = None
    # HTTP for /metrics, /livez and /readyz; 0 takes a free port.
    http_port: _Port = 8002
    # What speaks gRPC: "native" is the server's own HTTP/2 (docs/adr/0016), "grpcio" Google's library, which takes two
    # to five times as much CPU for each call.
    transport: Literal["grpcio", "native"] = "native"
    # Processes that speak gRPC at the port (docs/adr/0017). 1: the server itself. More: so many beside it, which hand
    # it their calls; they need transport = "native".
    front_ends: Annotated[int, between(1, 64)] = 1
    # Largest gRPC message in either direction, in bytes.
    max_message_bytes: Annotated[int, between(1024, 2**31 - 1)] = 64 * 2**20
    # How long work in flight may take to finish after SIGTERM, in seconds.
    drain_timeout: _Seconds = 30.0


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """`[limits]`: what is refused before it costs anything."""

    # Requests that may be waiting or computing at once; one more is answered RESOURCE_EXHAUSTED.
    max_in_flight: _Count = 1024
    # Requests of one ModelStreamInfer call that may be in flight at once; the stream is read no further until one ends.
    max_stream_in_flight: _Count = 32
    # Audits and shadow copies that may wait or compute at once; further ones are dropped and counted.
    max_follow_ups: _Count = 256
    # Inputs that are kept for them, in bytes; while there are more, further ones are dropped.
    max_follow_up_bytes: _Count = 256 * 2**20
    # How long after its answer a request may still be audited or shadowed, in seconds.
    max_follow_up_age: Annotated[float, between(0.001)] = 30.0
    # Input tensors of one request.
    max_tensors: _Count = 64
    # Characters of a model, tensor or parameter name.
    max_name_length: _Count = 256
    # All gRPC metadata of one call, in bytes.
    max_metadata_bytes: Annotated[int, between(256)] = 8192
    # Items (rows along the batch dimension) of one request.
    max_batch_items: _Count = 4096


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """`[workers]`: the processes that execute models."""

    # "process" isolates crashes; "in-process" runs models on a thread of the server, for tests and embedding.
    mode: Literal["process", "in-process"] = "process"
    # Idle workers kept ready to take over from one that dies.
    standby: Annotated[int, between(0, 64)] = 1
    # How often one request may be computed before it is given up, attempts ended by a worker's death included.
    max_attempts: Annotated[int, between(1, 10)] = 2
    # How long a worker may take to start, load and warm up its model, in seconds.
    startup_timeout: Annotated[float, between(1)] = 300.0
    # How long one batch may compute before its worker is killed, in seconds; 0: for ever.
    hang_timeout: _Seconds = 0.0
    # What one worker may hold of the outputs of early stages for later ones, in bytes; beyond that they travel.
    max_held_bytes: Annotated[int, between(0)] = 512 * 1024 * 1024
    # The share of a GPU's memory that torch may take in one worker; a batch that needs more is computed in parts.
    gpu_memory_share: Annotated[float, between(0.01, 1)] = 1.0


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """`[engines]`: how the engine of a model with `backend = "auto"` is found."""

    # "at-load": a model that was never seen on this machine is measured while it is loaded. "never": it gets what is
    # remembered, or else the plain engine of its format.
    tune: Literal["at-load", "never"] = "at-load"
    # Where decisions are remembered, with what was built for them: a folder that nobody else can write to, since code
    # lies there. Relative to the configuration file. Not set: offramp/engines in $XDG_CACHE_HOME or ~/.cache.
    cache: Path | None = None
    # What that folder may grow to, in bytes; 0: no limit. What was used longest ago goes, but nothing that a running
    # server uses.
    max_cache_bytes: Annotated[int, between(0)] = 10 * 1024 * 1024 * 1024
    # What a load may spend on measuring one model, in seconds. What is not tried by then is left out; `offramp tune`
    # takes the time that it needs.
    budget: _Seconds = 20.0
    # How long one step of one candidate (building, loading, answering) may take, in seconds.
    candidate_timeout: Annotated[float, between(1)] = 300.0
    # Resident memory that one candidate may take while it is tried, in bytes; 0: half of what is free.
    max_memory_bytes: Annotated[int, between(0)] = 0


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """`[load]`: how the level of load is told at which routes do what their [load] says."""

    # false: it is always the normal one.
    enabled: bool = True
    # How long a request may wait for its turn, in seconds. Half of the time to its deadline, where that is less.
    target_wait: Annotated[float, between(0.001)] = 0.1


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """`[tls]`: encryption of the gRPC port. Paths are relative to the configuration file."""

    # PEM file with the server's certificate chain. TLS is on where it is set.
    certificate: Path | None = None
    # PEM file with the certificate's private key.
    key: Path | None = None
    # PEM file with the authorities that clients' certificates must come from; where set, every client must show one.
    client_ca: Path | None = None

    @property
    def enabled(self) -> bool:
        return self.certificate is not None


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """`[[auth.tokens]]`: one bearer token."""

    # Who it belongs to; shown in logs.
    name: Annotated[str, matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "a name of letters, digits, '.', '_' and '-'")]
    # "infer" may call models and read about them, "admin" may also load, unload and change settings.
    role: Literal["infer", "admin"]
    # sha256 of the token in hexadecimal: the token itself is stored nowhere.
    sha256: Annotated[str, matches(r"[0-9a-fA-F]{64}", "the sha256 of the token, 64 hexadecimal digits")]


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """`[auth]`: who may call. Without tokens everybody may infer, and manage from this machine only."""

    # The accepted tokens, those of `tokens_file` included once the settings are loaded.
    tokens: tuple[TokenSettings, ...] = ()
    # A TOML file of further [[tokens]] tables, kept apart so that it can be a mounted secret.
    tokens_file: Path | None = None


@dataclass(frozen=True, slots=True)
class SharedMemorySettings:
    """`[shared_memory]`: system shared memory as a way in and out for tensors."""

    # Clients on this machine may register regions. They can then make the server read and write these.
    enabled: bool = False
    # Only regions whose key begins like this may be registered.
    prefix: Annotated[str, matches(r"/[^/]*", "a string that begins with its only '/'")] = "/"


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """`[logging]`: log lines on standard error. They never hold payloads."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    # "json": one object a line.
    format: Literal["text", "json"] = "text"


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """`[telemetry]`: traces. Metrics are always served."""

    # OTLP/gRPC collector, e.g. "http://localhost:4317"; empty: no traces.
    otlp_endpoint: str = ""
    # Share of requests traced that bring no decision of their own.
    trace_sample_ratio: Annotated[float, between(0, 1)] = 1.0


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """`[repository]`: how changes of the model repository are noticed."""

    # Seconds between looks at the folder; 0: models change only when a client asks for it.
    poll_interval: _Seconds = 0.0


@dataclass(frozen=True, slots=True)
class PreprocessSettings:
    """`[preprocess]`: the making of tensors from texts and pictures, which model.toml describes."""

    # Threads of the front end that do it; 0: half of the cores.
    threads: Annotated[int, between(0, 256)] = 0


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """`[store]`: the file with what outlasts the server: what audits found, epochs, settings that were changed live."""

    # The file, which no other server may use; ":memory:" keeps nothing. Relative to the configuration file. Not set:
    # .offramp/state.sqlite3 in the model repository, or in memory with a warning where that cannot be written.
    path: Path | None = None
    # Audited items and shadow copies are forgotten after so many days...
    retention_days: Annotated[float, between(0)] = 90.0
    # ...or when there are more of either than this. Totals are kept for ever.
    max_rows: _Count = 5_000_000
    # Rows that may wait for the disk; if it takes none, further ones are given up and counted.
    max_buffered_rows: _Count = 100_000
    # How often they are written, in seconds: what a crash may lose.
    commit_interval: Annotated[float, between(0.001)] = 0.25


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set."""

    server: ServerSettings = field(default_factory=ServerSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    load: LoadSettings = field(default_factory=LoadSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    shared_memory: SharedMemorySettings = field(default_factory=SharedMemorySettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    repository: RepositorySettings = field(default_factory=RepositorySettings)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    engines: TuningSettings = field(default_factory=TuningSettings)


def load_settings(
    path: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings.

    `path` is a TOML file; `overrides` are dotted keys with values ("server.grpc_port": 0) from the command line;
    `environment` (by default this process's) sets the same keys as OFFRAMP_SERVER__GRPC_PORT.
    Raises ConfigurationError with one sentence for anything that cannot be used.
    """
    layers = _Layers("configuration" if path is None else str(path), {} if path is None else read_toml(path))
    layers.add_environment(os.environ if environment is None else environment)
    for key, value in (overrides or {}).items():
        layers.add(key, value, "command line")
    settings = bind(Settings, layers.table, layers.origin)
    return _resolve(settings, Path() if path is None else path.parent)


class _Layers:
    """A table under construction that remembers who set what."""

    def __init__(self, file: str, table: dict[str, Any]) -> None:
        self.table = table
        self._file = file
        self._origins: dict[str, str] = {}

    def origin(self, key: str) -> str:
        return self._origins.get(key, self._file)

    def add(self, key: str, value: object, origin: str) -> None:
        section, _, name = key.partition(".")
        self._origins[key] = origin
        known = self.table.setdefault(section, {})
        # Not a table: `bind` says so.
        if isinstance(known, dict):
            known[name] = value

    def add_environment(self, environment: Mapping[str, str]) -> None:
        kinds = _variables()
        for variable, text in environment.items():
            if variable in kinds:
                key, kind = kinds[variable]
                self.add(key, _from_text(kind, text), f"environment variable {variable}")
            elif variable.startswith(ENVIRONMENT_PREFIX) and "__" in variable:
                raise unknown_key("environment", variable, list(kinds))


def _variables() -> dict[str, tuple[str, Any]]:
    """Environment variable -> (dotted key, type)."""
    variables = {}
    for section in dataclasses.fields(Settings):
        hints = get_type_hints(get_type_hints(Settings)[section.name])
        for name, kind in hints.items():
            variable = f"{ENVIRONMENT_PREFIX}{section.name.upper()}__{name.upper()}"
            variables[variable] = (f"{section.name}.{name}", kind)
    return variables


def _from_text(kind: Any, text: str) -> object:
    """Text that is not a number or true/false stays text, and `bind` says what was expected."""
    if kind is str or Path in get_args(kind):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _resolve(settings: Settings, folder: Path) -> Settings:
    """Check what spans several keys, and read the files that the settings name."""
    tls = _resolve_paths(settings.tls, folder, "tls")
    if (tls.certificate is None) != (tls.key is None):
        missing = "tls.key" if tls.key is None else "tls.certificate"
        raise ConfigurationError(f"{missing} is missing: TLS needs both tls.certificate and tls.key")
    if tls.client_ca is not None and not tls.enabled:
        raise ConfigurationError("tls.client_ca needs tls.certificate and tls.key as well")
    if settings.server.front_ends > 1 and settings.server.transport != "native":
        raise ConfigurationError(
            f'server.front_ends = {settings.server.front_ends} needs server.transport = "native": '
            "grpcio listens in the server itself only"
        )
    server = settings.server
    if server.grpc_socket is not None:
        server = dataclasses.replace(server, grpc_socket=(folder / server.grpc_socket).absolute())
    store = settings.store
    if store.path is not None and str(store.path) != IN_MEMORY:
        store = dataclasses.replace(store, path=folder / store.path)
    engines = settings.engines
    if engines.cache is not None:
        engines = dataclasses.replace(engines, cache=folder / engines.cache)
    auth = _resolve_auth(settings.auth, folder)
    return dataclasses.replace(settings, server=server, tls=tls, auth=auth, store=store, engines=engines)


def _resolve_auth(auth: AuthSettings, folder: Path) -> AuthSettings:
    auth = _resolve_paths(auth, folder, "auth")
    tokens = auth.tokens
    if auth.tokens_file is not None:
        tokens += bind(_TokensFile, read_toml(auth.tokens_file), auth.tokens_file).tokens
    names = [token.name for token in tokens]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f'auth.tokens: two tokens are named "{name}"; give each its own name')
    return dataclasses.replace(auth, tokens=tokens)


@dataclass(frozen=True, slots=True)
class _TokensFile:
    tokens: tuple[TokenSettings, ...]


S = TypeVar("S", TlsSettings, AuthSettings)


def _resolve_paths(section: S, folder: Path, name: str) -> S:
    """Make paths absolute to the configuration file's folder, and make sure that they can be read."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(section):
        value = getattr(section, entry.name)
        if isinstance(value, Path):
            found[entry.name] = _readable(folder / value, f"{name}.{entry.name}")
    return dataclasses.replace(section, **found)


def _readable(path: Path, key: str) -> Path:
    if not path.is_file():
        raise ConfigurationError(f"{key}: there is no file {path}")
    if not os.access(path, os.R_OK):
        raise ConfigurationError(f"{key}: {path} may not be read by this user")
    return path
