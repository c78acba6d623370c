"""Settings come from a file, the environment and the command line; every bad value is one clear sentence."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from offramp_server.config import Settings, load_settings
from offramp_server.errors import ConfigurationError

DIGEST = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "offramp.toml"


def refusal(file: Path, text: str) -> str:
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(file, environment={})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_file_the_documented_defaults_hold() -> None:
    settings = load_settings(environment={})

    assert settings == Settings()
    assert (settings.server.host, settings.server.grpc_port, settings.server.http_port) == ("127.0.0.1", 8001, 8002)
    assert settings.server.max_message_bytes == 64 * 1024 * 1024
    assert settings.server.drain_timeout == 30.0
    assert settings.limits.max_in_flight == 1024
    assert settings.workers.mode == "process"
    assert settings.workers.max_attempts == 2
    assert not settings.tls.enabled
    assert not settings.shared_memory.enabled
    assert settings.repository.poll_interval == 0
    assert (settings.engines.tune, settings.engines.cache) == ("at-load", None)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(file: Path) -> None:
    file.write_text('[server]\ngrpc_port = 1\nhttp_port = 2\nhost = "::1"\n')

    settings = load_settings(
        file,
        {"server.grpc_port": 0},
        {"OFFRAMP_SERVER__GRPC_PORT": "5", "OFFRAMP_SERVER__HTTP_PORT": "6", "HOME": "/"},
    )

    assert (settings.server.grpc_port, settings.server.http_port, settings.server.host) == (0, 6, "::1")


def test_environment_variables_take_text_numbers_and_booleans() -> None:
    settings = load_settings(
        environment={
            "OFFRAMP_LOGGING__FORMAT": "json",
            "OFFRAMP_SHARED_MEMORY__ENABLED": "true",
            "OFFRAMP_SERVER__DRAIN_TIMEOUT": "1.5",
            "OFFRAMP_TELEMETRY__OTLP_ENDPOINT": "8080",
        }
    )

    assert settings.logging.format == "json"
    assert settings.shared_memory.enabled
    assert settings.server.drain_timeout == 1.5
    assert settings.telemetry.otlp_endpoint == "8080"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[server]\ngrpc_prt = 1", 'unknown key "server.grpc_prt"; did you mean "server.grpc_port"?'),
        ("[sever]\n", 'unknown key "sever"; did you mean "server"?'),
        ("[server]\ngrpc_port = 70000", "server.grpc_port: expected a number from 0 to 65535, got 70000"),
        ("[server]\ndrain_timeout = -1", "server.drain_timeout: expected a number of at least 0, got -1"),
        ("[workers]\nmode = 'thread'", 'workers.mode: expected "process" or "in-process", got "thread"'),
        ("[server]\nfront_ends = 0", "server.front_ends: expected a number from 1 to 64, got 0"),
        (
            "[server]\nfront_ends = 2\ntransport = 'grpcio'",
            'server.front_ends = 2 needs server.transport = "native"',
        ),
        ("[engines]\ntune = 'always'", 'engines.tune: expected "at-load" or "never", got "always"'),
        ("[engines]\nbudget = -1", "engines.budget: expected a number of at least 0, got -1"),
        ("[workers]\nmax_attempts = 0", "workers.max_attempts: expected a number from 1 to 10, got 0"),
        ("[telemetry]\ntrace_sample_ratio = 2", "trace_sample_ratio: expected a number from 0 to 1, got 2"),
        ("[shared_memory]\nprefix = 'x'", "shared_memory.prefix: expected a string that begins with its only '/'"),
        ("[[auth.tokens]]\nname = 'a'\nrole = 'root'\nsha256 = ''", 'role: expected "infer" or "admin", got "root"'),
        (
            "[[auth.tokens]]\nname = 'a'\nrole = 'infer'\nsha256 = 'secret'",
            "auth.tokens[0].sha256: expected the sha256 of the token, 64 hexadecimal digits",
        ),
        ("[[auth.tokens]]\nname = 'a'\nrole = 'infer'", '"auth.tokens[0].sha256" is missing'),
        ("[tls]\ncertificate = 'no.pem'", "tls.certificate: there is no file"),
        ("[auth]\ntokens_file = 'no.toml'", "auth.tokens_file: there is no file"),
        ("[server", "not valid TOML"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_file_and_the_key(file: Path, text: str, sentence: str) -> None:
    assert sentence in refusal(file, text)


def test_an_error_names_the_place_that_the_value_came_from(file: Path) -> None:
    assert refusal(file, "[server]\ngrpc_port = -1").startswith(str(file))
    with pytest.raises(ConfigurationError, match=r"^environment variable OFFRAMP_SERVER__GRPC_PORT: server.grpc_port"):
        load_settings(environment={"OFFRAMP_SERVER__GRPC_PORT": "many"})
    with pytest.raises(ConfigurationError, match=r"^command line: server.grpc_port"):
        load_settings(overrides={"server.grpc_port": "many"}, environment={})
    with pytest.raises(ConfigurationError, match='did you mean "OFFRAMP_SERVER__HOST"'):
        load_settings(environment={"OFFRAMP_SERVER__HOTS": "x"})


def test_tls_files_are_found_beside_the_configuration_file(file: Path) -> None:
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (file.parent / name).write_text("pem")
    file.write_text('[tls]\ncertificate = "cert.pem"\nkey = "key.pem"\nclient_ca = "ca.pem"')

    tls = load_settings(file, environment={}).tls

    assert tls.enabled
    assert (tls.certificate, tls.client_ca) == (file.parent / "cert.pem", file.parent / "ca.pem")


def test_tls_with_half_of_its_files_is_refused(file: Path) -> None:
    (file.parent / "cert.pem").write_text("pem")
    assert "tls.key is missing" in refusal(file, '[tls]\ncertificate = "cert.pem"')
    assert "tls.certificate is missing" in refusal(file, '[tls]\nkey = "cert.pem"')
    assert "tls.client_ca needs tls.certificate" in refusal(file, '[tls]\nclient_ca = "cert.pem"')


def test_tokens_may_live_in_a_file_of_their_own(file: Path) -> None:
    (file.parent / "tokens.toml").write_text(f'[[tokens]]\nname = "ops"\nrole = "admin"\nsha256 = "{DIGEST}"\n')
    file.write_text(
        f'[auth]\ntokens_file = "tokens.toml"\n[[auth.tokens]]\nname = "app"\nrole = "infer"\nsha256 = "{DIGEST}"\n'
    )

    tokens = load_settings(file, environment={}).auth.tokens

    assert [(token.name, token.role) for token in tokens] == [("app", "infer"), ("ops", "admin")]


def test_a_mistake_in_the_tokens_file_names_that_file(file: Path) -> None:
    (file.parent / "tokens.toml").write_text("[[tokens]]\nnam = 'x'")
    assert 'tokens.toml: unknown key "tokens[0].nam"' in refusal(file, '[auth]\ntokens_file = "tokens.toml"')


def test_two_tokens_of_one_name_are_refused(file: Path) -> None:
    token = f'[[auth.tokens]]\nname = "app"\nrole = "infer"\nsha256 = "{DIGEST}"\n'
    assert 'two tokens are named "app"' in refusal(file, token + token)


def test_the_cache_of_engines_lies_where_the_file_says_seen_from_the_file(file: Path) -> None:
    file.write_text('[engines]\ncache = "engines"\n')
    assert load_settings(file, environment={}).engines.cache == file.parent / "engines"
