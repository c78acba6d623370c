"""KServe's client against a real server, and in one process with ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess

SCRIPT = Path(__file__).with_name("kserve_calls.py")


@pytest.fixture(scope="module")
def found(server: ServerProcess) -> Any:
    """What kserve_calls.py got."""
    if sys.version_info >= (3, 14):
        pytest.skip("kserve declares no Python newer than 3.13")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), server.grpc], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_sees_a_server_that_is_live_and_ready(found: Any) -> None:
    assert (found["live"], found["ready"]) == (True, True)


def test_it_sees_which_models_are_ready(found: Any) -> None:
    assert found["model_ready"] == {"add_sub_pt2": True, "nobody": False}


@pytest.mark.parametrize("model", ["add_sub_pt2", "add_sub_onnx"])
@pytest.mark.parametrize("form", ["raw", "typed"])
def test_it_infers(found: Any, model: str, form: str) -> None:
    answer = found[f"{model} {form}"]
    assert (answer["id"], answer["model"]) == ("mine", model)
    assert answer["outputs"] == found["expected"]


def test_it_is_told_what_is_not_there(found: Any) -> None:
    assert found["unknown"] == "NOT_FOUND"


def test_our_client_our_server_and_kserve_share_a_process(found: Any) -> None:
    assert found["ours"] == found["expected"]
    assert found["modules"] == ["kserve", "offramp_client", "offramp_server.app"]
