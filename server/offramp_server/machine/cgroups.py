"""The control groups that this process is in: what a container may use of its machine (cgroups(7))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

V2 = ""
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class _Mount:
    # The group that is seen at `point`.
    group: str
    point: str
    # "cgroup" (v1) or "cgroup2".
    kind: str
    options: frozenset[str]


def groups(controller: str, root: Path = ROOT) -> list[Path]:
    """The folders of the process's group and of those above it, innermost first, for a controller of version 1 such
    as "cpu", or for V2. None if there is no such hierarchy. Limits of an outer group hold for the inner ones.

    What a container cannot see of the hierarchy above it is missing.
    """
    path = _own_group(controller, root)
    mount = next((mount for mount in _mounts(root) if _carries(mount, controller)), None)
    if path is None or mount is None:
        return []
    top = root / mount.point.lstrip("/")
    # Without a namespace of its own a container is told the path on the host, while its mount shows its own group.
    inside = path.removeprefix(mount.group.rstrip("/")) if _is_within(path, mount.group) else ""
    own = top / inside.strip("/")
    return [folder for folder in (own, *own.parents) if folder.is_relative_to(top) and folder.is_dir()]


def read_number(file: Path) -> int | None:
    """The number in a group's file; None if it is not there or says "max"."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _own_group(controller: str, root: Path) -> str | None:
    """/proc/self/cgroup has lines like "4:cpu,cpuacct:/some/group", and "0::/some/group" for version 2."""
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number == "0" and not controllers) if controller == V2 else controller in controllers.split(","):
            return path
    return None


def _mounts(root: Path) -> Iterator[_Mount]:
    """/proc/self/mountinfo, as proc_pid_mountinfo(5) describes it."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mounted, described = before.split(), after.split()
        if len(mounted) > 4 and len(described) > 2 and described[0] in ("cgroup", "cgroup2"):
            group, point = _unescape(mounted[3]), _unescape(mounted[4])
            yield _Mount(group, point, described[0], frozenset(described[2].split(",")))


def _carries(mount: _Mount, controller: str) -> bool:
    return mount.kind == "cgroup2" if controller == V2 else mount.kind == "cgroup" and controller in mount.options


def _is_within(path: str, group: str) -> bool:
    return group == "/" or path == group or path.startswith(group + "/")


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
