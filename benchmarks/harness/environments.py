"""Virtual environments for the peers, made on demand and kept in the cache."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path

from benchmarks.harness.cache import cache_directory

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
# One torch for every server. An unpinned torch would bring gigabytes of CUDA libraries along.
TORCH = "torch==2.13.0"


class NotRunnableError(Exception):
    """A server cannot take part in this run; the message is the reason that the report gives."""


@dataclass(frozen=True)
class Environment:
    """A Python environment: its interpreter and the folder that holds it."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    def site_packages(self) -> Path:
        return next(self.root.glob("lib/python3.*/site-packages"))

    def version(self, package: str) -> str | None:
        """Return the installed version of `package` without starting the interpreter; None if it is not there."""
        found = distributions(name=package, path=[str(self.site_packages())])
        return next((distribution.version for distribution in found), None)

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Return the installed version of each of `packages`, by name."""
        code = "import sys, importlib.metadata as m\nfor p in sys.argv[1:]: print(p, m.version(p))"
        done = subprocess.run([self.python, "-c", code, *packages], capture_output=True, text=True, check=True)
        return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def project_environment() -> Environment:
    """Return the environment that runs the benchmark, which Offramp and the controls use."""
    return Environment(Path(sys.prefix))


def peer_environment(name: str, requirements: Sequence[str], packages: Sequence[str] = ()) -> Environment:
    """Return the environment of a peer, installing it first if the cache has none for `requirements`.

    `packages` are added to it in the releases that this environment has, without making it anew. Raises
    NotRunnableError if pip cannot install something.
    """
    wanted = "\n".join([sys.version, *requirements])
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:12]
    root = cache_directory("environments") / f"{name}-{digest}"
    complete = root / "complete"
    if not complete.exists():
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", root], check=True)
        install(root, requirements)
        complete.write_text(wanted)
    environment = Environment(root)
    missing = [f"{name}=={version(name)}" for name in packages if environment.version(name) != version(name)]
    if missing:
        install(root, missing)
    return environment


def install(root: Path, requirements: Sequence[str]) -> None:
    print(f"installing {' '.join(requirements)} into {root.name} ...", file=sys.stderr, flush=True)
    log = root / "pip.log"
    command: list[str | Path] = [
        root / "bin" / "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        *requirements,
    ]
    with log.open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise NotRunnableError(f"pip install failed: {last_error_line(log)} (whole log: {log})")


def last_error_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no output"])[-1]
