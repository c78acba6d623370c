"""Whether the configuration can be used: its ports, its model repository, its engine cache."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from offramp_server.config import ServerSettings, Settings
from offramp_server.doctor.section import Section
from offramp_server.errors import ConfigurationError
from offramp_server.machine.cores import usable_cores
from offramp_server.transport.unix_socket import refusal_of
from offramp_server.tuning.cache import DECISION, EngineCache
from offramp_server.tuning.eviction import size_of

MIB = 2**20


def configuration(
    settings: Settings, file: Path | None, system: str = sys.platform, cores: int | None = None
) -> Section:
    """Of settings that could be read; its ports are tried out."""
    cores = usable_cores() if cores is None else cores
    ports = _ports(settings.server)
    lines = [("file", "none: defaults and the environment" if file is None else str(file))]
    lines += [(port.key, f"{port.at}: {port.problem or 'free'}") for port in ports]
    path = settings.server.grpc_socket
    refusal = "" if path is None else refusal_of(path)
    lines += [] if path is None else [("grpc_socket", f"{path}: {refusal or 'free'}")]
    lines += _front_ends(settings.server)
    facts = {
        "file": None if file is None else str(file),
        "ports": {port.key: {"address": port.at, "problem": port.problem} for port in ports},
        "grpc_socket": None if path is None else {"path": str(path), "problem": refusal},
    }
    unusable = [f"cannot listen on {path} (server.grpc_socket): {refusal}"] if refusal else []
    problems = (*unusable, *_problems(ports), *_system(settings, system))
    return Section("configuration", tuple(lines), facts, problems, tuple(_crowd(settings.server, cores)))


def _front_ends(server: ServerSettings) -> list[tuple[str, str]]:
    return [("front_ends", f"{server.front_ends} processes carry calls")] if server.front_ends > 1 else []


def _crowd(server: ServerSettings, cores: int) -> Iterator[str]:
    """Each front end may take a core, and so may the server itself; workers compute on what they leave."""
    if server.front_ends > 1 and server.front_ends + 1 >= cores:
        yield (
            f"server.front_ends = {server.front_ends}: with the server itself they may take {server.front_ends + 1} of "
            f"{cores} cores under load, and leave workers none; fewer are faster here"
        )


@dataclass(frozen=True, slots=True)
class _Port:
    key: str
    host: str
    port: int
    # Empty: it is free.
    problem: str

    @property
    def at(self) -> str:
        return f"{self.host}:{self.port}" if self.port else f"{self.host}, any port"


def _ports(server: ServerSettings) -> list[_Port]:
    wanted = {"grpc_port": server.grpc_port, "http_port": server.http_port}
    if server.grpc_socket is not None:
        del wanted["grpc_port"]
    return [_Port(key, server.host, port, _refused(server.host, port)) for key, port in wanted.items()]


def _refused(host: str, port: int) -> str:
    """Why nobody could listen there now; empty if one could."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            # As servers do: connections that were closed a moment ago do not count.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except OSError as error:
        return "in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return ""


def _problems(ports: list[_Port]) -> Iterator[str]:
    for port in ports:
        if port.problem == "in use":
            yield (
                f"{port.at} (server.{port.key}) is in use; stop what listens there, or set server.{port.key} to a free "
                "port (0 takes any)"
            )
        elif port.problem:
            yield (
                f"cannot listen on {port.at} (server.{port.key}): {port.problem}; server.host has to be an address of "
                "this machine, and ports below 1024 mostly need root"
            )
    numbers = {port.port for port in ports}
    if len(numbers) < len(ports) and 0 not in numbers:
        yield f"server.grpc_port and server.http_port are both {ports[0].port}; give each its own"


def _system(settings: Settings, system: str) -> tuple[str, ...]:
    if settings.workers.mode == "process" and system != "linux":
        return ('workers.mode = "process" needs Linux (memfd and eventfd); "in-process" runs on this system',)
    return ()


def broken_configuration(error: ConfigurationError, file: Path | None) -> Section:
    return Section(
        "configuration", (("file", str(file)),), {"file": str(file), "error": str(error)}, problems=(str(error),)
    )


def model_repository(folder: Path | None) -> Section:
    """What `offramp check` finds. Only a folder that is none keeps a server from
    starting: it serves what it can."""
    if folder is None:
        return Section("repository", (("none", "--model-repository DIR looks into one"),), {"folder": None})
    from offramp_server.repository.check import check

    try:
        report = check(folder)
    except ConfigurationError as error:
        return Section("repository", (("folder", str(folder)),), {"folder": str(folder)}, problems=(str(error),))
    models = len({spec.name for spec in report.specs})
    found = f"{models} models, {report.routes} routes, {len(report.problems)} that cannot be served"
    facts = {
        "folder": str(folder),
        "models": models,
        "routes": report.routes,
        "cannot_be_served": list(report.problems),
    }
    # Each says which model it is about, and what would be right.
    warnings = tuple(f"a server starts without it: {problem}" for problem in report.problems)
    return Section("repository", (("folder", str(folder)), ("holds", found)), facts, warnings=warnings)


def engine_cache(folder: Path) -> Section:
    """What a server would remember about engines, and whether it would trust the folder."""
    try:
        EngineCache(folder)
        entries = sum((each / DECISION).is_file() for each in folder.iterdir()) if folder.is_dir() else 0
        # What a running server replaces meanwhile counts for nothing.
        size = size_of(folder)
    except ConfigurationError as error:
        return _unusable(folder, str(error))
    except OSError as error:
        return _unusable(folder, f"engines.cache: {folder} cannot be read ({error.strerror}); set it to another folder")
    holds = f"{entries} decisions, {size / MIB:.1f} MiB" if folder.is_dir() else "nothing yet: it is made when needed"
    facts = {"folder": str(folder), "entries": entries, "size_bytes": size}
    return Section("engine cache", (("folder", str(folder)), ("holds", holds)), facts)


def _unusable(folder: Path, problem: str) -> Section:
    return Section("engine cache", (("folder", str(folder)),), {"folder": str(folder)}, problems=(problem,))
