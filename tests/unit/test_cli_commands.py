"""The command `offramp` as far as it needs no server: options, exit codes, tokens, checking a repository."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from model_files import write_identity_onnx
from offramp_client import TLS
from offramp_common.extras import MissingExtra, needs_extra
from offramp_server.cli import connection
from offramp_server.cli.failures import UsageError
from offramp_server.cli.main import build_parser, main
from offramp_server.config import Settings, load_settings


class Outcome:
    """What a command printed, and how it ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def offramp(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for variable in ("OFFRAMP_TARGET", "OFFRAMP_TOKEN"):
        monkeypatch.delenv(variable, raising=False)

    def run(*arguments: str) -> Outcome:
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else -1
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err)

    return run


class TestTheCommandItself:
    def test_says_its_version(self, offramp: Any) -> None:
        outcome = offramp("--version")
        assert outcome.status == 0
        assert outcome.out.startswith("offramp 0.")

    @pytest.mark.parametrize("command", ["serve", "check", "models", "routes", "infer", "bench", "token"])
    def test_explains_every_command(self, offramp: Any, command: str) -> None:
        assert command in offramp("--help").out
        outcome = offramp(command, "--help")
        assert (outcome.status, outcome.out.split()[:3]) == (0, ["usage:", "offramp", command])

    @pytest.mark.parametrize("arguments", [(), ("nonsense",), ("models",), ("bench", "m", "--concurrency", "1,none")])
    def test_ends_with_2_if_it_is_not_understood(self, offramp: Any, arguments: tuple[str, ...]) -> None:
        assert offramp(*arguments).status == 2

    def test_needs_neither_torch_nor_anything_else_of_the_server_extra(self) -> None:
        modules = ("torch", "onnx", "onnxruntime", "aiohttp", "prometheus_client", "grpc_health", "PIL")
        script = (
            f"import sys\nsys.modules.update(dict.fromkeys({modules}))\n"
            "from offramp_server.cli.main import main\nsys.exit(main(['token', 'ci', '--role', 'infer']))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout[:17]) == (0, "[[auth.tokens]]\nn"), done.stderr

    def test_ends_without_a_traceback_when_interrupted(self, offramp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("offramp_server.cli.models.connect", interrupt)
        outcome = offramp("models", "list")
        assert (outcome.status, outcome.err) == (130, "")

    def test_ends_quietly_when_nobody_reads_on(self) -> None:
        script = (
            "import sys\nfrom offramp_server.cli.main import main\nsys.exit(main(['token', 'ci', '--role', 'infer']))"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert b"Traceback" not in process.stderr.read()
        assert process.returncode == 1


class TestServe:
    @pytest.fixture
    def served(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Settings]]:
        calls: list[tuple[Path, Settings]] = []

        def run(repository: Path, settings: Settings) -> int:
            calls.append((repository, settings))
            return 0

        # The real one opens ports.
        monkeypatch.setitem(sys.modules, "offramp_server.app", types.SimpleNamespace(run=run))
        monkeypatch.setattr("offramp_server.app", sys.modules["offramp_server.app"], raising=False)
        return calls

    def test_options_override_the_file(self, offramp: Any, served: list[Any], tmp_path: Path) -> None:
        file = tmp_path / "offramp.toml"
        file.write_text("[server]\ngrpc_port = 1\nhttp_port = 2\n")
        outcome = offramp(
            "serve", "--model-repository", "models", "--config", str(file), "--grpc-port", "0", "--host", "::1",
            "--in-process", "--log-format", "json", "--log-level", "debug", "--poll-interval", "5", "--no-tune",
        )  # fmt: skip
        [(repository, settings)] = served
        assert (outcome.status, repository) == (0, Path("models"))
        assert (settings.server.grpc_port, settings.server.http_port, settings.server.host) == (0, 2, "::1")
        assert (settings.workers.mode, settings.repository.poll_interval) == ("in-process", 5.0)
        assert (settings.logging.format, settings.logging.level) == ("json", "debug")
        assert settings.engines.tune == "never"

    def test_without_options_the_defaults_hold(
        self, offramp: Any, served: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for variable in ("OFFRAMP_ENGINES__TUNE", "OFFRAMP_ENGINES__CACHE"):
            monkeypatch.delenv(variable)
        assert offramp("serve", "--model-repository", "models").status == 0
        assert served == [(Path("models"), Settings())]

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--grpc-port", "99999"], "command line: server.grpc_port: expected a number from 0 to 65535, got 99999"),
            (["--log-level", "loud"], 'expected "debug", "info", "warning" or "error", got "loud"'),
            (["--config", "no-such.toml"], "no-such.toml: cannot be read: No such file or directory"),
        ],
    )
    def test_a_setting_that_cannot_be_used_is_one_sentence(
        self, offramp: Any, served: list[Any], arguments: list[str], sentence: str
    ) -> None:
        outcome = offramp("serve", "--model-repository", "models", *arguments)
        assert (outcome.status, outcome.out, served) == (2, "", [])
        assert outcome.err.startswith("offramp: error: ")
        assert sentence in outcome.err
        assert outcome.err.count("\n") == 1

    def test_a_repository_that_does_not_exist_is_one_sentence(self, offramp: Any, tmp_path: Path) -> None:
        outcome = offramp("serve", "--model-repository", str(tmp_path / "none"), "--grpc-port", "0", "--http-port", "0")
        assert outcome.status == 2
        assert outcome.err.startswith(f"offramp: error: model repository {tmp_path / 'none'} does not exist")
        assert outcome.err.count("\n") == 1


class TestMissingExtras:
    def test_are_named_with_the_command_that_installs_them(self) -> None:
        with pytest.raises(MissingExtra, match=r"offramp serve needs aiohttp; .* pip install 'offramp\[server\]'"):  # noqa: SIM117
            with needs_extra("server", "offramp serve"):
                raise ModuleNotFoundError("No module named 'aiohttp'", name="aiohttp")

    def test_do_not_hide_a_defect_of_ours(self) -> None:
        with pytest.raises(ModuleNotFoundError), needs_extra("server", "offramp serve"):
            raise ModuleNotFoundError("No module named 'offramp_server.typo'", name="offramp_server.typo")


class TestCheck:
    def test_a_good_repository_ends_with_0(self, offramp: Any, tmp_path: Path) -> None:
        write_identity_onnx(tmp_path / "echo" / "1" / "model.onnx")
        outcome = offramp("check", str(tmp_path))
        assert (outcome.status, outcome.err) == (0, "")
        assert "model echo" in outcome.out

    def test_problems_end_with_1_and_come_on_standard_error(self, offramp: Any, tmp_path: Path) -> None:
        write_identity_onnx(tmp_path / "echo" / "1" / "model.onnx")
        (tmp_path / "echo" / "model.toml").write_text("max_bach_size = 4\n")
        outcome = offramp("check", str(tmp_path))
        assert outcome.status == 1
        assert outcome.err.startswith("problem: ")
        assert 'did you mean "max_batch_size"?' in outcome.err

    def test_a_folder_that_does_not_exist_ends_with_2(self, offramp: Any, tmp_path: Path) -> None:
        outcome = offramp("check", str(tmp_path / "none"))
        assert outcome.status == 2
        assert outcome.err.startswith("offramp: error: ")


class TestToken:
    def test_is_shown_once_and_only_its_digest_goes_into_the_table(self, offramp: Any) -> None:
        outcome = offramp("token", "ci", "--role", "infer")
        token = outcome.err.rpartition(" ")[2].strip()
        assert len(token) >= 40
        assert hashlib.sha256(token.encode()).hexdigest() in outcome.out
        assert token not in outcome.out

    def test_the_table_can_be_appended_to_a_configuration_file(self, offramp: Any, tmp_path: Path) -> None:
        file = tmp_path / "offramp.toml"
        file.write_text("".join(offramp("token", name, "--role", "admin").out for name in ("a", "b")))
        assert [(token.name, token.role) for token in load_settings(file).auth.tokens] == [
            ("a", "admin"),
            ("b", "admin"),
        ]

    def test_no_two_are_alike(self, offramp: Any) -> None:
        assert offramp("token", "ci", "--role", "infer").err != offramp("token", "ci", "--role", "infer").err

    def test_a_name_that_the_server_would_refuse_is_refused(self, offramp: Any) -> None:
        outcome = offramp("token", 'a"b', "--role", "infer")
        assert (outcome.status, outcome.out) == (2, "")
        assert "expected a name of letters, digits" in outcome.err


class TestReachingAServer:
    @pytest.fixture(autouse=True)
    def _no_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("OFFRAMP_TARGET", "OFFRAMP_TOKEN"):
            monkeypatch.delenv(variable, raising=False)

    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
        clients: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(connection, "Client", lambda target, **arguments: clients.append((target, arguments)))
        return clients

    def connect(self, *arguments: str) -> None:
        connection.connect(build_parser().parse_args(["models", "list", *arguments]))

    def test_by_default_it_is_on_this_machine_without_tls_or_token(self, made: list[Any]) -> None:
        self.connect()
        assert made == [("localhost:8001", {"tls": None, "token": None, "allow_insecure_token": False})]

    def test_the_environment_says_where_and_who(self, made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OFFRAMP_TARGET", "127.0.0.1:9001")
        monkeypatch.setenv("OFFRAMP_TOKEN", "from-environment")
        self.connect()
        assert (made[0][0], made[0][1]["token"]) == ("127.0.0.1:9001", "from-environment")

    def test_options_go_before_the_environment(self, made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OFFRAMP_TOKEN", "from-environment")
        self.connect("--token", "from-option")
        assert made[0][1]["token"] == "from-option"

    def test_a_token_file_may_end_with_a_line_break(self, made: list[Any], tmp_path: Path) -> None:
        (tmp_path / "token").write_text("from-file\n")
        self.connect("--token-file", str(tmp_path / "token"))
        assert made[0][1]["token"] == "from-file"

    def test_naming_an_authority_turns_tls_on(self, made: list[Any]) -> None:
        self.connect("--tls-ca", "ca.pem", "--tls-server-name", "models.example", "--timeout", "3")
        assert made[0][1]["tls"] == TLS(ca="ca.pem", server_name="models.example")
        assert made[0][1]["timeout"] == 3.0

    def test_a_token_does_not_leave_the_machine_unencrypted(self, made: list[Any]) -> None:
        with pytest.raises(UsageError, match=r'token would go to "10\.0\.0\.1:8001" unencrypted; use --tls'):
            self.connect("--target", "10.0.0.1:8001", "--token", "secret")
        self.connect("--target", "10.0.0.1:8001", "--token", "secret", "--allow-insecure-token")
        self.connect("--target", "10.0.0.1:8001", "--token", "secret", "--tls")
        assert len(made) == 2

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--target", "localhost"], "expected host:port"),
            (["--tls-key", "key.pem"], "key is given without certificate"),
            (["--tls-ca", "no-such.pem"], "no-such.pem: No such file or directory"),
            (["--token-file", "no-such-token"], "no-such-token: No such file or directory"),
            (["--timeout", "-1"], "positive number of seconds"),
        ],
    )
    def test_what_cannot_be_used_ends_with_2_and_a_sentence(
        self, offramp: Any, arguments: list[str], sentence: str
    ) -> None:
        outcome = offramp("models", "list", *arguments)
        assert outcome.status == 2
        assert sentence in outcome.err

    def test_nobody_listening_ends_with_1_and_the_status_code(self, offramp: Any) -> None:
        outcome = offramp("models", "list", "--target", "127.0.0.1:1", "--timeout", "1")
        assert outcome.status == 1
        assert outcome.err.startswith(("offramp: UNAVAILABLE: ", "offramp: DEADLINE_EXCEEDED: "))
