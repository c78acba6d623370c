"""What can be known of the images without building them: the Dockerfile says nothing that the project does not have."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest
from offramp_server.cli.main import build_parser
from offramp_server.config import ServerSettings, load_settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def instructions() -> list[tuple[str, str]]:
    """Keyword and arguments; continued lines are joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def of(keyword: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == keyword]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for arguments in of("ENV") for pair in arguments.split())


def module(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    return loaded


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for arguments in of("COPY"):
        *sources, _ = [word for word in arguments.split() if not word.startswith("--")]
        if "--from=" not in arguments:
            for source in sources:
                assert (ROOT / source).exists(), source
                assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored), source


def test_every_package_of_the_distribution_is_copied() -> None:
    copied = {word for arguments in of("COPY") for word in arguments.split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {package.split("/")[0] for package in packages} <= copied
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied


def test_the_extras_are_those_of_the_project() -> None:
    [extras] = [argument.split("=")[1] for argument in of("ARG") if argument.startswith("EXTRAS=")]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)
    assert "server" in extras.split(",")


def test_every_stage_stands_on_one_that_was_named_before() -> None:
    defaults = dict(argument.split("=", 1) for argument in of("ARG") if "=" in argument)
    stages: list[str] = []
    for arguments in of("FROM"):
        base, *named = arguments.split()
        variable = base.removeprefix("${").removesuffix("}")
        if variable == "DEVICE":
            assert {"cpu", "gpu"} <= set(stages)
            assert defaults["DEVICE"] in stages
        else:
            assert ":" in defaults[variable], "a base image has a tag"
        stages += named[1:]
    copied_from = re.findall(r"--from=(\S+)", " ".join(of("COPY")))
    assert set(copied_from) <= set(stages)


def test_the_ports_are_the_defaults_of_the_server() -> None:
    defaults = ServerSettings()
    assert of("EXPOSE") == [f"{defaults.grpc_port} {defaults.http_port}"]


def test_the_command_is_understood() -> None:
    [entrypoint] = of("ENTRYPOINT")
    program, *arguments = json.loads(entrypoint)
    assert program == "offramp"
    options = build_parser().parse_args(arguments)
    assert str(options.model_repository) in json.loads(of("VOLUME")[0])


def test_what_is_written_lies_on_volumes() -> None:
    settings = load_settings(environment={k: v for k, v in environment().items() if k.startswith("OFFRAMP_")})
    volumes = [Path(volume) for volume in json.loads(of("VOLUME")[0])]
    assert settings.store.path is not None
    assert settings.engines.cache is not None
    written = [settings.store.path, settings.engines.cache]
    written += [Path(environment()[name]) for name in ("HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")]
    for path in written:
        assert any(path.is_relative_to(volume) for volume in volumes), path


def test_the_server_runs_as_a_user_that_is_known_by_number_and_is_not_root() -> None:
    [user] = of("USER")
    assert int(user) > 0
    assert any(f"--uid {user}" in command for command in of("RUN"))
    after = [name for name, _ in instructions()]
    assert "RUN" not in after[after.index("USER") :]


TESTED = ["# a comment", "torch==2.13.0", "typing-extensions==4.16.0", "grpcio==1.85.1"]


def test_on_a_plain_python_everything_is_as_it_was_tested() -> None:
    base = [("pip", "24.0"), ("Typing_Extensions", "4.1")]
    found = list(module(DOCKER / "constraints.py").constraints(base, TESTED))
    assert found == ["grpcio==1.85.1", "torch==2.13.0", "typing-extensions==4.16.0"]


def test_an_image_that_brings_torch_keeps_everything_that_it_brings() -> None:
    base = [("torch", "2.13.0a0+8145d630e8.nv26.06"), ("Typing_Extensions", "4.1"), ("setuptools", "65.5.0")]
    found = list(module(DOCKER / "constraints.py").constraints(base, TESTED))
    assert found == ["torch==2.13.0a0+8145d630e8.nv26.06", "typing-extensions==4.1"]


def test_the_script_that_installs_is_one_for_every_shell() -> None:
    for shell in filter(None, map(shutil.which, ("sh", "bash", "dash"))):
        subprocess.run([shell, "-n", str(DOCKER / "install.sh")], check=True)


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A server that answers /readyz with the status in the list, on the port that the environment names."""
    statuses = [200]

    class Probe(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[0] if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Probe) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OFFRAMP_SERVER__HTTP_PORT", str(server.server_port))
        monkeypatch.setenv("http_proxy", "http://192.0.2.1:1")
        yield statuses
        server.shutdown()
        thread.join()


def check_health() -> int:
    return subprocess.run([sys.executable, str(DOCKER / "ready.py")], capture_output=True, check=False).returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_says_whether_the_server_takes_requests(probed: list[int], status: int, code: int) -> None:
    probed[0] = status
    assert check_health() == code


def test_the_health_check_fails_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_SERVER__HTTP_PORT", "1")
    assert check_health() == 1


def test_the_health_check_is_the_file_that_is_copied() -> None:
    [check] = of("HEALTHCHECK")
    assert "/opt/offramp/ready.py" in check
    assert "docker/ready.py /opt/offramp/ready.py" in of("COPY")
    assert f'"OFFRAMP_SERVER__HTTP_PORT", "{ServerSettings().http_port}"' in (DOCKER / "ready.py").read_text()
