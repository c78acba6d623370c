"""A family's routes in the repository: files that the recipe brings along."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from offramp_common.errors import ConfigurationError

from offramp_compression.export.repository import ROUTE_TOML, staging


def publish_routes(folders: Sequence[Path], repository: Path, say: Callable[[str], None]) -> None:
    """Copy each folder that is not there yet, whole or not at all. One that is there may have been changed by its
    operator, and stays as it is.

    Raises ConfigurationError for a folder without a route.toml, and where a model has the name.
    """
    for folder in folders:
        _require_route(folder)
        place = repository / folder.name
        if not place.exists():
            _copy(folder, repository)
            say(f"{place / ROUTE_TOML}: written")
        elif not (place / ROUTE_TOML).is_file():
            raise ConfigurationError(f'{place} is a model; give the route "{folder.name}" another name')
        elif (place / ROUTE_TOML).read_bytes() == (folder / ROUTE_TOML).read_bytes():
            say(f"{folder.name}: in {repository} already")
        else:
            say(f"{folder.name}: in {repository} already, and other than the recipe has it; delete it to get that one")


def _require_route(folder: Path) -> None:
    if not (folder / ROUTE_TOML).is_file():
        raise ConfigurationError(f"routes: there is no {folder / ROUTE_TOML}; name a folder that holds one")


def _copy(folder: Path, repository: Path) -> None:
    with staging(repository) as place:
        copied = place.scratch / folder.name
        shutil.copytree(folder, copied)
        os.rename(copied, repository / folder.name)
