from __future__ import annotations

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
