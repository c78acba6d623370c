from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# An example may take any time: where others use the machine too, that says nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True, scope="session")
def untuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No engines are compared and none are remembered where the user's are, unless a test names a cache of its own."""
    import offramp_server.core as core

    build_engines, folder = core.build_engines, tmp_path_factory.mktemp("engines")

    @functools.wraps(build_engines)
    def without_tuning(settings: core.TuningSettings, *rest: object) -> core.Engines:
        untuned = settings if settings.cache else replace(settings, tune="never", cache=folder)
        return build_engines(untuned, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "build_engines", without_tuning)
        # For servers in processes of their own.
        patch.setenv("OFFRAMP_ENGINES__TUNE", "never")
        patch.setenv("OFFRAMP_ENGINES__CACHE", str(folder))
        yield
