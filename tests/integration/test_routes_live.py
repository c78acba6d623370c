"""Routes of a real server, changed over the wire and from the command line while they run."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import write_classifier, write_route
from eventually import PATIENCE
from metrics_page import metric
from offramp_client import Aborted, Client, InvalidArgument, NotFound, PermissionDenied, Unavailable
from offramp_server.cli.main import main
from server_process import ServerProcess, serving

X = {"x": np.eye(3, dtype=np.float32)}
BLEND = """\
kind = "ensemble"
combine = "weighted_mean"
[[members]]
model = "one"
weight = 3.0
[[members]]
model = "two"
weight = 1.0
"""
TOKENS = {"app": "infer", "operator": "admin"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    repository = tmp_path / "models"
    repository.mkdir()
    write_classifier(repository, "one", np.eye(3))
    write_classifier(repository, "two", 1 - np.eye(3))
    write_route(repository, "blend", BLEND)
    write_route(repository, "stable", 'kind = "single"\nmodel = "one"\n')
    return repository


@contextmanager
def running(repository: Path, *arguments: str) -> Iterator[tuple[ServerProcess, Client]]:
    with serving(repository, ["--in-process", *arguments]) as server, Client(server.grpc) as client:
        yield server, client


@dataclass
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture
def offramp(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    monkeypatch.delenv("OFFRAMP_TOKEN", raising=False)

    def run(server: ServerProcess, *arguments: str) -> Outcome:
        monkeypatch.setenv("OFFRAMP_TARGET", server.grpc)
        status = main(arguments)
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err)

    return run


def who_answers(client: Client) -> str:
    return ",".join(client.infer("blend", X).path.models)


def test_a_change_is_for_the_next_request_and_fails_none(models: Path) -> None:
    with running(models) as (_, client):
        stop, failures, answered = threading.Event(), [], 0

        def call() -> None:
            nonlocal answered
            while not stop.is_set():
                try:
                    client.infer("blend", X)
                    answered += 1
                except Exception as error:
                    failures.append(error)

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for weight in (0.0, 2.0) * 20:
            client.update_route("blend", {"weight.one": weight})
            # Other callers go on meanwhile.
            assert who_answers(client) == ("one:1,two:1" if weight else "two:1")
        stop.set()
        for caller in callers:
            caller.join()
        assert failures == []
        assert answered > 0


def test_metrics_show_what_is_set(models: Path) -> None:
    with running(models) as (server, client):
        for weight in (3.0, 0.5):
            client.update_route("blend", {"weight.one": weight})
            assert metric(server, "offramp_route_setting", route="blend", setting="weight.one") == weight


def test_of_two_writers_one_is_told_that_the_other_was_first(models: Path) -> None:
    with running(models) as (server, ana), Client(server.grpc) as ben:
        etag = ana.route("blend").etag
        assert ben.route("blend").etag == etag
        after = ana.update_route("blend", {"weight.one": 0}, etag=etag)
        with pytest.raises(Aborted, match=f'"{after.etag}", not "{etag}"; read it again'):
            ben.update_route("blend", {"weight.one": 9}, etag=etag)
        assert ben.update_route("blend", {"weight.one": 9}, etag=after.etag).settings["weight.one"] == 9


def test_what_a_route_cannot_be_is_refused_with_what_would_do(models: Path) -> None:
    with running(models) as (_, client):
        before = client.route("blend")
        for settings, sentence in (
            ({"wieght.one": 1.0}, 'did you mean "weight.one"'),
            ({"weight.one": 0.5, "weight.two": -1.0}, "weight.two: expected a number of at least 0, got -1"),
            ({"weight.one": float("nan")}, "expected a number, got nan"),
        ):
            with pytest.raises(InvalidArgument, match=sentence):
                client.update_route("blend", settings)
        with pytest.raises(InvalidArgument, match="kind single, which has nothing to set"):
            client.update_route("stable", {"weight.one": 1})
        with pytest.raises(NotFound, match='there is no route "bland"; routes: blend, stable'):
            client.update_route("bland", {"weight.one": 1})
        assert client.route("blend") == before


def test_a_watch_sees_changes_loads_and_unloads_and_ends_when_the_server_drains(models: Path) -> None:
    with running(models) as (server, client):
        watch, one, slow = client.watch_routes(), client.watch_route("blend"), client.watch_route("blend")
        assert list(next(watch)) == ["blend", "stable"]
        assert next(one).settings["weight.one"] == 3

        client.update_route("blend", {"weight.one": 2})
        assert next(watch)["blend"].settings["weight.one"] == 2
        assert next(one).settings["weight.one"] == 2
        next(slow)
        for number in range(100):
            # Nobody waits for who does not read.
            last = client.update_route("blend", {"weight.one": number}).etag
        assert last in (route.etag for route in slow)
        assert last in (routes["blend"].etag for routes in watch)
        client.unload_model("stable")
        assert list(next(watch)) == ["blend"]
        client.load_model("stable")
        assert list(next(watch)) == ["blend", "stable"]

        server.process.send_signal(signal.SIGTERM)
        for states in (watch, one, slow):
            with pytest.raises(Unavailable, match="draining"):
                list(states)
        assert server.process.wait(PATIENCE) == 0


def test_a_route_is_listed_loaded_and_reloaded_like_a_model_and_its_file_wins(models: Path) -> None:
    with running(models) as (_, client):
        assert ("blend", "1", "READY") in {(row.name, row.version, row.state) for row in client.repository_index()}
        client.update_route("blend", {"weight.one": 0})

        client.unload_model("blend")
        assert "blend" not in {row.name for row in client.repository_index()}
        with pytest.raises(NotFound):
            client.infer("blend", X)
        client.load_model("blend")
        assert who_answers(client) == "two:1"

        write_route(models, "blend", f"# A remark says nothing else.\n{BLEND}")
        client.load_model("blend")
        assert who_answers(client) == "two:1"

        write_route(models, "blend", BLEND.replace("3.0", "4.0"))
        client.load_model("blend")
        route = client.route("blend")
        assert (dict(route.settings)["weight.one"], route.updated_by) == (4.0, "route.toml")
        assert [change.kind for change in client.route_changes("blend")] == ["file", "updated"]


def test_a_change_outlasts_a_restart_and_a_kill(models: Path) -> None:
    with running(models) as (server, client):
        before = client.update_route("blend", {"weight.one": 0})
        # As hard as it can: what was answered is on disk.
        server.process.kill()
        server.process.wait(PATIENCE)
    with running(models) as (_, client):
        after = client.route("blend")
        assert (after.etag, after.settings, after.updated_at) == (before.etag, before.settings, before.updated_at)
        assert who_answers(client) == "two:1"
        write_route(models, "blend", BLEND.replace("3.0", "4.0"))
    with running(models) as (_, client):
        assert client.route("blend").settings["weight.one"] == 4
        assert [change.by for change in client.route_changes("blend")] == ["route.toml", before.updated_by]


def token(name: str) -> str:
    return f"{name}-token-of-a-test"


@pytest.fixture
def guarded(tmp_path: Path) -> list[str]:
    hashes = {name: hashlib.sha256(token(name).encode()).hexdigest() for name in TOKENS}
    tables = [
        f'[[auth.tokens]]\nname = "{name}"\nrole = "{role}"\nsha256 = "{hashes[name]}"' for name, role in TOKENS.items()
    ]
    (tmp_path / "offramp.toml").write_text("\n".join(tables))
    return ["--config", str(tmp_path / "offramp.toml")]


def test_only_administrators_change_routes_and_the_record_has_their_names(models: Path, guarded: list[str]) -> None:
    with serving(models, ["--in-process", *guarded]) as server:
        with Client(server.grpc, token=token("app")) as app:
            for refused in (lambda: app.update_route("blend", {"weight.one": 0}), lambda: app.route_changes("blend")):
                with pytest.raises(PermissionDenied, match="needs a token with the role admin"):
                    refused()
            assert next(app.watch_route("blend")).settings["weight.one"] == 3
        with Client(server.grpc, token=token("operator")) as operator:
            assert operator.update_route("blend", {"weight.one": 0}).updated_by == "operator"
            assert operator.route("blend").updated_by == "operator"
            with Client(server.grpc, token=token("app")) as app:
                assert app.route("blend").updated_by == ""
            [change] = operator.route_changes("blend")
            assert (change.by, change.settings[0].before, change.settings[0].after) == ("operator", 3.0, 0.0)


class TestTheCommand:
    def test_lists_routes_with_what_they_run_and_what_is_set(self, models: Path, offramp: Any) -> None:
        with running(models) as (server, client):
            client.update_route("blend", {"weight.one": 0.5})
            for arguments in ((), ("list",)):
                header, blend, stable = offramp(server, "routes", *arguments).out.splitlines()
                assert header.split() == ["NAME", "KIND", "READY", "TARGETS", "EXITS", "SETTINGS"]
                assert blend.split()[:5] == ["blend", "ensemble", "yes", "one:1,", "two:1"]
                assert "weight.one=0.5* weight.two=1" in blend
                assert stable.split() == ["stable", "single", "yes", "one:1"]
            assert [route["name"] for route in json.loads(offramp(server, "routes", "--json").out)] == [
                "blend",
                "stable",
            ]

    def test_shows_one_route(self, models: Path, offramp: Any) -> None:
        with running(models) as (server, client):
            etag = client.update_route("blend", {"weight.one": 0.5}).etag
            shown = offramp(server, "routes", "get", "blend").out
            assert ["weight.one", "0.5", "3"] in [line.split() for line in shown.splitlines()]
            assert ["member", "one", "one", "latest", "1"] in [line.split() for line in shown.splitlines()]
            assert etag in shown
            assert "UTC by ipv4:127.0.0.1:" in shown
            assert json.loads(offramp(server, "routes", "get", "blend", "--json").out)["etag"] == etag

    def test_sets_checks_resets_and_remembers(self, models: Path, offramp: Any) -> None:
        with running(models) as (server, client):
            etag = client.route("blend").etag
            assert offramp(server, "routes", "set", "blend", "weight.one=0", "--check").status == 0
            assert client.route("blend").etag == etag
            assert offramp(server, "routes", "set", "blend", "weight.one=0", "weight.two=2", "--etag", etag).status == 0
            assert who_answers(client) == "two:1"

            late = offramp(server, "routes", "set", "blend", "weight.one=1", "--etag", etag)
            assert (late.status, late.err[:17]) == (1, "offramp: ABORTED:")
            wrong = offramp(server, "routes", "set", "blend", "wight.one=1")
            assert (wrong.status, 'did you mean "weight.one"?' in wrong.err) == (1, True)

            assert offramp(server, "routes", "reset", "blend", "weight.one").status == 0
            assert client.route("blend").settings["weight.two"] == 2
            assert offramp(server, "routes", "reset", "blend").status == 0
            assert client.route("blend").file_settings == {}

            rows = offramp(server, "routes", "history", "blend", "--limit", "2").out.splitlines()
            assert ["weight.two 2 -> 1" in row for row in rows] == [False, True, False]
            changes = json.loads(offramp(server, "routes", "history", "blend", "--json").out)
            assert [len(change["settings"]) for change in changes] == [1, 1, 2]

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("set", "blend", "weight.one"), "expected KEY=NUMBER, as threshold.student=0.9"),
            (("set", "blend", "weight.one=much"), 'got "weight.one=much"'),
            (("set", "blend"), "the following arguments are required: KEY=NUMBER"),
        ],
    )
    def test_says_what_a_setting_looks_like(
        self, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["routes", *arguments])
        assert caught.value.code == 2
        assert sentence in capsys.readouterr().err

    def test_watches(self, models: Path) -> None:
        with running(models) as (server, client):
            command = [sys.executable, "-m", "offramp_server", "routes", "--target", server.grpc, "watch", "blend"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
                assert watcher.stdout is not None
                assert watcher.stdout.readline().startswith("blend ready level=")
                client.update_route("blend", {"weight.one": 0})
                assert watcher.stdout.readline().endswith(" weight.one=0* weight.two=1\n")
                client.unload_model("blend")
                assert watcher.wait() == 1

    def test_a_watch_ends_after_its_time(self, models: Path, offramp: Any) -> None:
        with running(models) as (server, _):
            outcome = offramp(server, "routes", "watch", "--timeout", "0.2", "--json")
            assert outcome.status == 0
            assert [json.loads(line)["name"] for line in outcome.out.splitlines()] == ["blend", "stable"]

    def test_infer_names_the_way_and_shows_the_path(self, models: Path, offramp: Any, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text("[[1, 0, 0]]")
        with running(models) as (server, _):
            shown = offramp(server, "infer", "blend", str(tmp_path / "x.json"))
            assert "path: route ensemble; confidence 0." in shown.out
            assert "; models one:1, two:1;" in shown.out
            only = offramp(server, "infer", "blend", str(tmp_path / "x.json"), "--route", "model:two", "--unit", "u")
            assert "models two:1" in only.out
