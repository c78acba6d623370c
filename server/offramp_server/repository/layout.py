"""Where things lie in a model repository: which folders are models or routes, which versions, which file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from offramp_common.text import quoted

from offramp_server.errors import ConfigurationError, LoadError, NotFound

MODEL_TOML = "model.toml"
ROUTE_TOML = "route.toml"
MODEL_FILES = ("model.pt2", "model.onnx")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model's folder."""

    name: str
    path: Path
    # Version -> its folder, in ascending order.
    versions: dict[int, Path]

    @property
    def toml(self) -> Path:
        return self.path / MODEL_TOML


def check_repository(repository: Path) -> None:
    """Raise ConfigurationError unless `repository` is a folder that can be read."""
    if not repository.is_dir():
        what = "is not a folder" if repository.exists() else "does not exist"
        raise ConfigurationError(f"model repository {repository} {what}; expected a folder with one folder per model")
    try:
        next(repository.iterdir(), None)
    except OSError as error:
        raise ConfigurationError(f"model repository {repository} cannot be read: {error.strerror}") from None


def folder_names(repository: Path) -> list[str]:
    """Names of the folders that hold a model or a route, well or badly; hidden and unrelated folders are left out."""
    return sorted(entry.name for entry in _folders(repository) if is_route(entry) or _is_model(entry))


def unrelated_folders(repository: Path) -> list[str]:
    """Names of visible folders that are neither models nor routes."""
    return sorted(entry.name for entry in _folders(repository) if not is_route(entry) and not _is_model(entry))


def is_route(folder: Path) -> bool:
    return (folder / ROUTE_TOML).is_file()


def check_name(name: str) -> None:
    """Raise ConfigurationError unless `name` may be a model's or a route's: it is a folder's, and part of URLs."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f'"{name[:200]}" cannot be the name of a model or a route; expected at most 128 letters, digits, ".", "_" '
            f'and "-", the first a letter or a digit'
        )


def find_folder(repository: Path, name: str) -> Path:
    """The folder of that name. Raises NotFound."""
    if not _NAME.fullmatch(name) or not (repository / name).is_dir():
        # A badly named folder was put there by an operator, who wants to know why it is not served.
        if name in {entry.name for entry in _folders(repository)}:
            check_name(name)
        known = ", ".join(folder_names(repository)) or "none"
        raise NotFound(f"the repository has no model or route {quoted(name)}; it has: {known[:500]}")
    return repository / name


def find_model(repository: Path, name: str) -> ModelFolder:
    """A model's folder with its versions. Raises NotFound, ConfigurationError or LoadError."""
    folder = find_folder(repository, name)
    versions: dict[int, Path] = {}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name.isdecimal():
            if not _VERSION.fullmatch(entry.name):
                raise ConfigurationError(f'{entry}: "{entry.name}" is not a version; expected 1, 2, 3, ...')
            versions[int(entry.name)] = entry
    if not versions:
        raise LoadError(f"{folder}: there is no version; expected a file like {folder / '1' / MODEL_FILES[0]}")
    return ModelFolder(name, folder, dict(sorted(versions.items())))


def model_file(version: Path) -> Path:
    """The one model file of a version's folder. Raises LoadError."""
    found = [version / file for file in MODEL_FILES if (version / file).is_file()]
    if len(found) > 1:
        raise LoadError(f"{version}: there are both {' and '.join(MODEL_FILES)}; keep one, or make them two versions")
    if not found:
        raise LoadError(f"{version}: there is no model; expected {' or '.join(MODEL_FILES)}")
    return found[0]


def _folders(repository: Path) -> list[Path]:
    return [entry for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _is_model(folder: Path) -> bool:
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        # Whoever reads it says why it cannot be read.
        return True
    return not names.isdisjoint({MODEL_TOML, *MODEL_FILES}) or any(name.isdecimal() for name in names)
