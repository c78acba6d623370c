"""Everything that `offramp doctor` looks at, in the order in which it is shown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offramp_server.config import Settings, load_settings
from offramp_server.doctor.engines import engines, imports
from offramp_server.doctor.machine import gpus, machine
from offramp_server.doctor.section import Section
from offramp_server.doctor.server import broken_configuration, configuration, engine_cache, model_repository
from offramp_server.doctor.software import software
from offramp_server.errors import ConfigurationError
from offramp_server.tuning.cache import default_folder


def examine(repository: Path | None, config: Path | None, *, import_libraries: bool = False) -> list[Section]:
    """Takes a second; with `import_libraries` as long as importing every library of an engine does. Imports none of
    them here."""
    of_gpus = gpus()
    device = "cuda:0" if of_gpus.facts["devices"] else "cpu"
    tried = [imports()] if import_libraries else []
    settings, of_settings = _settings(config)
    return [
        *(software(), machine(), of_gpus, engines(device), *tried, of_settings, model_repository(repository)),
        engine_cache(settings.engines.cache or default_folder(os.environ)),
    ]


def _settings(file: Path | None) -> tuple[Settings, Section]:
    """The defaults, where they cannot be used."""
    try:
        settings = load_settings(file)
    except ConfigurationError as error:
        return Settings(), broken_configuration(error, file)
    return settings, configuration(settings, file)


def as_json(sections: Sequence[Section]) -> dict[str, Any]:
    problems = [problem for section in sections for problem in section.problems]
    return {
        "can_start": not problems,
        "problems": problems,
        "warnings": [warning for section in sections for warning in section.warnings],
        **{section.name.replace(" ", "_"): dict(section.facts) for section in sections},
    }
