"""gRPC on a Unix socket: who starts, who is refused, and what is left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from offramp_client import Client
from server_process import ServerProcess, serving

ROW = np.ones((1, 16), np.int32)
ADD_SUB = {"INPUT0": ROW, "INPUT1": ROW}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "offramp.sock"


def serve(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """For servers that end by themselves."""
    command = [sys.executable, "-m", "offramp_server", "serve", f"--model-repository={repository}", "--http-port=0"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)


def sums(server: ServerProcess) -> bool:
    """By the SDK, with the target that the ready line gives."""
    with Client(server.grpc) as client:
        return bool((client.infer("add_sub", ADD_SUB)["OUTPUT0"] == 2).all())


def test_clients_reach_it_and_so_does_the_command_line(
    small_repository: Path, path: Path, transport: dict[str, str]
) -> None:
    with serving(small_repository, ["--in-process", f"--grpc-socket={path}"], transport) as server:
        assert server.grpc == f"unix:{path}"
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert sums(server)
        command = [sys.executable, "-m", "offramp_server", "models", "list", "--ready", f"--target={server.grpc}"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "add_sub" in listed.stdout
        # Whoever reaches it is on this machine, and may manage.
        with Client(server.grpc) as client:
            client.load_model("add_sub")
        assert urlopen(f"http://{server.http}/readyz").status == 200

        refused = serve(small_repository, "--in-process", f"--grpc-socket={path}")
        assert refused.returncode != 0
        assert f"cannot listen on unix:{path}: Address already in use" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert sums(server)

        assert server.stop() == 0
        assert not path.exists()


def test_a_killed_server_leaves_nothing_that_stands_in_the_way(
    small_repository: Path, path: Path, transport: dict[str, str]
) -> None:
    # A path in a file is relative to it.
    config = path.parent / "offramp.toml"
    config.write_text(f'[server]\ngrpc_socket = "{path.name}"\n')
    arguments = ["--in-process", f"--config={config}"]
    with serving(small_repository, arguments, transport) as killed:
        killed.stop(signal.SIGKILL)
    assert path.exists()
    # Processes that share a path take turns at it.
    front_ends = ["--front-ends=2"] if transport["OFFRAMP_SERVER__TRANSPORT"] == "native" else []
    umask = os.umask(0o117)
    try:
        with serving(small_repository, [*arguments, *front_ends], transport) as server:
            assert sums(server)
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert server.stop() == 0
        assert not path.exists()
    finally:
        os.umask(umask)
