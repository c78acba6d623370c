"""`offramp doctor` says what there is, what is missing, and whether a server could start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from machine_fakes import FakeGpu, FakeNvml, v2_machine, write_machine
from model_files import write_linear_onnx
from offramp_server.cli.main import main
from offramp_server.config import ServerSettings, Settings
from offramp_server.doctor.engines import IMPORTS, engines, imports, unmappable
from offramp_server.doctor.machine import gpus, machine
from offramp_server.doctor.section import Section
from offramp_server.doctor.server import configuration, engine_cache
from offramp_server.doctor.software import software
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.catalogue import engine_kinds
from offramp_server.workers.engines.kinds import onnx_gpu

FREE_PORTS = "[server]\ngrpc_port = 0\nhttp_port = 0\n"
GIB = 2**30
NOTHING: Mapping[str, str] = {}


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The status and what was printed, with ports that are free unless a test brings settings of its own."""

    def run(*arguments: str, settings: str = FREE_PORTS) -> tuple[int, str]:
        (tmp_path / "settings.toml").write_text(settings)
        status = main(["doctor", "--config", str(tmp_path / "settings.toml"), *arguments])
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def repository(folder: Path, engine: str = "") -> Path:
    write_linear_onnx(folder / "models" / "m" / "1" / "model.onnx")
    (folder / "models" / "m" / "model.toml").write_text(engine)
    return folder / "models"


class TestTheCommand:
    def test_fits_on_one_screen_and_says_that_a_server_could_start(self, doctor: Any, tmp_path: Path) -> None:
        status, out = doctor("--model-repository", str(repository(tmp_path)))
        assert status == 0
        assert out.splitlines()[-1] == "a server could start"
        assert len(out.splitlines()) <= 50
        assert "1 models, 0 routes, 0 that cannot be served" in out
        for section in ("software", "machine", "gpus", "engines", "configuration", "repository", "engine cache"):
            assert section in out.splitlines()

    def test_tells_programs_the_same(self, doctor: Any, tmp_path: Path) -> None:
        status, out = doctor("--json", "--model-repository", str(repository(tmp_path)))
        found = json.loads(out)
        assert (status, found["can_start"], found["problems"]) == (0, True, [])
        assert found["machine"]["cores"]["usable"] >= 1
        onnx_runtime = found["engines"]["engines"]["onnxruntime"]
        assert onnx_runtime["missing"] == ""
        assert onnx_runtime["versions"].startswith("onnxruntime")
        assert found["engines"]["auto"]["onnx"]
        assert found["repository"]["models"] == 1
        assert found["engine_cache"]["folder"]

    def test_names_the_port_that_is_in_use_and_what_would_be_right(self, doctor: Any, listening: int) -> None:
        status, out = doctor(settings=f"[server]\ngrpc_port = {listening}\nhttp_port = 0\n")
        assert status == 1
        assert f"problem: 127.0.0.1:{listening} (server.grpc_port) is in use; stop what listens there" in out
        assert out.splitlines()[-1] == "a server could not start: 1 problems"

    def test_looks_at_the_cache_of_engines_that_the_configuration_names(
        self, doctor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OFFRAMP_ENGINES__CACHE", raising=False)
        status, out = doctor("--json", settings=f'{FREE_PORTS}[engines]\ncache = "kept"\n')
        assert status == 0
        assert json.loads(out)["engine_cache"]["folder"] == str(tmp_path / "kept")

    def test_repeats_what_is_wrong_with_the_configuration(self, doctor: Any) -> None:
        status, out = doctor(settings="[server]\ngrpc_prt = 1\n")
        assert status == 1
        assert "grpc_prt" in out
        assert "grpc_port" in out

    def test_ends_with_1_where_there_is_no_repository(self, doctor: Any, tmp_path: Path) -> None:
        status, out = doctor("--model-repository", str(tmp_path / "nowhere"))
        assert status == 1
        assert "nowhere does not exist; expected a folder with one folder per model" in out

    def test_warns_of_a_model_that_cannot_be_served_and_ends_with_0(self, doctor: Any, tmp_path: Path) -> None:
        folder = repository(tmp_path)
        (folder / "broken" / "1").mkdir(parents=True)
        (folder / "broken" / "1" / "model.onnx").write_bytes(b"nonsense")
        status, out = doctor("--model-repository", str(folder))
        assert status == 0
        assert "1 models, 0 routes, 1 that cannot be served" in out
        assert "warning: a server starts without it:" in out
        assert "broken" in out

    def test_warns_of_a_model_whose_engine_cannot_run_it(self, doctor: Any, tmp_path: Path) -> None:
        folder = repository(tmp_path, '[engine]\nbackend = "onnxruntime"\nprecision = "fp16"\n')
        status, out = doctor("--model-repository", str(folder))
        assert status == 0
        assert 'warning: a server starts without it: model "m": onnxruntime computes in the precision' in out

    def test_imports_no_library_of_an_engine_itself(self) -> None:
        program = (
            "import sys; from offramp_server.cli.main import main; main(['doctor']); "
            "print({'torch', 'onnxruntime', 'openvino'} & set(sys.modules))"
        )
        child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert child.stdout.splitlines()[-1] == "set()"


class TestSoftware:
    def test_a_missing_package_of_the_server_is_a_problem_with_the_command_that_installs_it(self) -> None:
        section = software({"torch": "2"}.get, ['aiohttp>=3.10; extra == "server"', "torch>=2; extra == 'server'"])
        assert section.problems == ("`offramp serve` needs aiohttp; install with: pip install 'offramp[server]'",)

    def test_a_missing_engine_or_another_extra_is_none(self) -> None:
        section = software(NOTHING.get, ['torch; extra == "server"', 'nvidia-ml-py; extra == "gpu"'])
        assert section.problems == ()
        assert section.facts["missing_packages"]["gpu"] == ["nvidia-ml-py"]
        assert "gpu (without nvidia-ml-py)" in dict(section.lines)["extras"]

    def test_this_installation_has_what_a_server_needs(self) -> None:
        assert software().problems == ()


class TestMachine:
    def test_shows_what_the_container_has(self, tmp_path: Path) -> None:
        root = v2_machine(tmp_path, "/", {"cpu.max": "300000 100000", "memory.max": str(2 * GIB)})
        write_machine(
            root,
            {
                "proc/meminfo": f"MemTotal: {8 * GIB // 1024} kB\nMemAvailable: {4 * GIB // 1024} kB\n",
                "sys/devices/system/node/node0/cpulist": "0-3",
                "sys/devices/system/node/node1/cpulist": "4-7",
            },
        )
        lines = dict(machine(root, frozenset(range(8))).lines)
        assert lines["cores"].startswith("3 usable:")
        assert lines["cores"].endswith("8 by affinity, a quota of 3")
        assert lines["memory"] == "2.0 GiB available of 8.0 GiB, a limit of 2.0 GiB"
        assert lines["numa"] == "2 nodes with 4, 4 cores: workers stay on one each"

    def test_warns_of_less_than_a_core(self, tmp_path: Path) -> None:
        section = machine(v2_machine(tmp_path, "/", {"cpu.max": "50000 100000"}))
        assert "the quota of 0.5 cores is less than one" in section.warnings[0]

    def test_lists_gpus_with_their_driver(self) -> None:
        section = gpus(FakeNvml([FakeGpu(), FakeGpu("NVIDIA L4", lacks=frozenset({"memory", "capability"}))]), {})
        assert section.lines == (
            ("driver", "570.86.15"),
            ("cuda:0", "NVIDIA H100 80GB HBM3, compute capability 9.0, 3.0 GiB of 80.0 GiB in use"),
            ("cuda:1", "NVIDIA L4, compute capability unknown, unknown of unknown in use"),
        )
        assert json.loads(json.dumps(section.facts))["devices"][0]["gpu"]["device"] == "cuda:0"

    def test_says_why_there_is_none(self) -> None:
        assert "kernel module is not loaded" in gpus(FakeNvml(failure=9), {}).lines[0][1]
        assert "CUDA_VISIBLE_DEVICES" in gpus(FakeNvml(), {"CUDA_VISIBLE_DEVICES": ""}).lines[0][1]


class FakeKind:
    """An engine that is there or not."""

    def __init__(self, name: str, missing: str = "") -> None:
        self.name = name
        self._missing = missing

    def missing(self, device: str) -> str:
        return self._missing

    def refusal(self, spec: ModelSpec, device: str) -> str:
        return "" if spec.format == "pt2" else "it runs .pt2 files"

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ("",)

    def builds(self, spec: ModelSpec) -> bool:
        return False

    def build(self, request: Any) -> None:
        raise AssertionError

    def load(self, request: Any) -> Any:
        raise AssertionError


class TestEngines:
    def test_say_what_they_lack_and_auto_leaves_them_out(self) -> None:
        kinds = [FakeKind("good"), FakeKind("bad", "tensorrt is not installed; pip install tensorrt")]
        section = engines("cpu", kinds, {"torch": "2.13"}.get)
        lines = dict(section.lines)
        assert lines["good"] == "yes, torch 2.13"
        assert lines["bad"] == "no: tensorrt is not installed; pip install tensorrt"
        assert (lines["auto, .pt2"], lines["auto, .onnx"]) == ("good", "nothing")
        assert section.problems == ()

    def test_one_that_runs_nothing_on_this_device_is_none_for_it(self) -> None:
        class NeedsGpu(FakeKind):
            def refusal(self, spec: ModelSpec, device: str) -> str:
                return "" if device.startswith("cuda") else "it needs a GPU"

        kinds = [FakeKind("good"), NeedsGpu("graphs")]
        assert dict(engines("cpu", kinds).lines)["graphs"] == "no: it needs a GPU"
        assert dict(engines("cuda:0", kinds).lines)["graphs"].startswith("yes")

    @pytest.mark.parametrize(("installed", "where"), [(True, "cuda:0"), (False, "cpu")])
    def test_that_run_onnx_files_are_asked_about_the_device_where_those_would_run(
        self, monkeypatch: pytest.MonkeyPatch, installed: bool, where: str
    ) -> None:
        class RunsAnything(FakeKind):
            def refusal(self, spec: ModelSpec, device: str) -> str:
                return "" if self.name == device else f"it runs on {self.name}"

        monkeypatch.setattr(onnx_gpu, "missing", lambda: "" if installed else "onnxruntime-gpu is not installed")
        section = engines("cuda:0", [RunsAnything("cpu"), RunsAnything("cuda:0")])
        assert section.facts["auto"] == {"pt2": ["cuda:0"], "onnx": [where]}

    def test_that_unpack_code_are_warned_of_a_folder_where_none_may_run(self, tmp_path: Path) -> None:
        assert unmappable(tmp_path, lambda folder: os.ST_NOSUID) == ()
        [warning] = unmappable(tmp_path, lambda folder: os.ST_NOEXEC | os.ST_NOSUID)
        assert f"{tmp_path} is mounted noexec" in warning

    def test_none_at_all_is_a_problem(self) -> None:
        [problem] = engines("cpu", [FakeKind("bad", "gone")]).problems
        assert problem == "no engine can run here; install one with: pip install 'offramp[server]'"

    def test_those_of_this_server_can_be_asked_on_either_kind_of_device(self) -> None:
        for device in ("cpu", "cuda:0"):
            assert engines(device).facts["engines"].keys() == {kind.name for kind in engine_kinds()}


class TestImports:
    @pytest.mark.parametrize(
        ("program", "said"),
        [
            ("import os; os.abort()", "it crashed with signal 6"),
            ("raise ImportError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
            ("import sys; sys.exit(3)", "it exited with an error"),
            ("import what_lib_needs", "No module named 'what_lib_needs'"),
        ],
    )
    def test_a_library_that_breaks_its_process_is_told_of(self, program: str, said: str) -> None:
        section = imports({"lib": program})
        [warning] = section.warnings
        assert warning.startswith("lib is installed and cannot be imported:")
        assert said in warning

    def test_a_library_that_never_returns_is_given_up(self) -> None:
        [warning] = imports({"lib": "import threading; threading.Event().wait()"}, patience=0.2).warnings
        assert "did not return within 0.2 s" in warning

    def test_a_library_that_is_not_installed_is_no_problem_and_others_say_their_version(self) -> None:
        section = imports({"no_such_library": "import no_such_library", "json": "import json; print('2.0.9')"})
        assert list(section.facts) == ["json"]
        assert section.warnings == ()
        assert section.lines[0][1].startswith("2.0.9 (")

    def test_every_installed_library_of_an_engine_can_be_imported(self) -> None:
        programs: Mapping[str, str] = {"onnxruntime": IMPORTS["onnxruntime"]}
        section = imports(programs)
        assert section.warnings == ()
        assert "CPUExecutionProvider" in section.lines[0][1]


class TestConfiguration:
    def test_one_port_for_both_is_a_problem(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        section = configuration(Settings(ServerSettings(grpc_port=port, http_port=port)), None)
        assert f"server.grpc_port and server.http_port are both {port}; give each its own" in section.problems

    def test_a_unix_socket_is_tried_out_instead_of_the_port(self, tmp_path: Path) -> None:
        def section(path: Path) -> Section:
            return configuration(Settings(ServerSettings(grpc_socket=path, http_port=0)), None)

        path = tmp_path / "offramp.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            # Nobody listens yet, and a server would take it over.
            assert dict(section(path).lines)["grpc_socket"] == f"{path}: free"
            listener.listen()
            [problem] = section(path).problems
            assert problem == f"cannot listen on {path} (server.grpc_socket): Address already in use"
        assert "grpc_port" not in dict(section(path).lines)
        [problem] = section(tmp_path / "nowhere" / "offramp.sock").problems
        assert problem.endswith("No such file or directory")

    def test_an_address_of_another_machine_is_a_problem(self) -> None:
        section = configuration(Settings(ServerSettings(host="192.0.2.1")), None)
        assert len(section.problems) == 2
        assert "server.host has to be an address of this machine" in section.problems[0]

    def test_workers_need_linux(self) -> None:
        section = configuration(Settings(ServerSettings(grpc_port=0, http_port=0)), None, "darwin")
        assert '"in-process" runs on this system' in section.problems[0]

    def test_front_ends_that_leave_workers_no_core_are_warned_of(self) -> None:
        def section(front_ends: int) -> Section:
            server = ServerSettings(grpc_port=0, http_port=0, front_ends=front_ends)
            return configuration(Settings(server), None, cores=4)

        assert section(1).warnings == section(2).warnings == ()
        assert "front_ends" not in dict(section(1).lines)
        assert dict(section(2).lines)["front_ends"] == "2 processes carry calls"
        [warning] = section(3).warnings
        assert "they may take 4 of 4 cores under load" in warning

    def test_a_cache_of_engines_that_others_can_write_to_is_a_problem(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        [problem] = engine_cache(tmp_path).problems
        assert "others may write to it" in problem
        assert "set engines.cache to another folder" in problem

    def test_a_cache_of_engines_is_counted(self, tmp_path: Path) -> None:
        for name in ("one", "two", "unfinished"):
            (tmp_path / name).mkdir()
        for name in ("one", "two"):
            (tmp_path / name / "decision.json").write_bytes(bytes(2**20))
        section = engine_cache(tmp_path)
        assert dict(section.lines)["holds"] == "2 decisions, 2.0 MiB"
        assert "nothing yet" in dict(engine_cache(tmp_path / "none").lines)["holds"]

    def test_a_cache_of_engines_that_changes_meanwhile_is_no_problem(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "package").write_bytes(b"code")
        is_file = Path.is_file

        def replaced(path: Path) -> bool:
            found = is_file(path)
            (tmp_path / "package").unlink(missing_ok=True)
            return found

        monkeypatch.setattr(Path, "is_file", replaced)
        assert engine_cache(tmp_path).problems == ()
