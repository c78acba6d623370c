"""The commands that talk to a server, against a real one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from eventually import PATIENCE
from model_repository import write_add_sub
from offramp_server.cli.main import main
from server_process import serving

TOKEN = "correct horse battery staple".replace(" ", "-")


@dataclass
class Outcome:
    status: int
    out: str
    err: str


Offramp = Callable[..., Outcome]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("models")
    write_add_sub(repository, "plus_one", offset=1.0)
    write_add_sub(repository, "spare")
    (repository / "plus_one" / "model.toml").write_text(
        'max_batch_size = 8\n[[inputs]]\nname = "x"\ndatatype = "FP32"\ndims = [4]\n'
        '[[outputs]]\nname = "y"\ndatatype = "FP32"\ndims = [4]\nlabels = ["a", "b", "c", "d"]\n'
        '[[outputs]]\nname = "z"\ndatatype = "FP32"\ndims = [4]\n'
    )
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"not a model")
    with serving(repository, ["--in-process"]) as server:
        yield server.grpc


@pytest.fixture
def offramp(target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Offramp:
    monkeypatch.setenv("OFFRAMP_TARGET", target)
    monkeypatch.delenv("OFFRAMP_TOKEN", raising=False)

    def run(*arguments: str) -> Outcome:
        status = main(arguments)
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err)

    return run


class TestModels:
    def test_list_shows_what_answers_and_why_the_rest_does_not(self, offramp: Offramp) -> None:
        outcome = offramp("models", "list")
        lines = {line.split()[0]: line for line in outcome.out.splitlines()}
        assert lines["NAME"].split() == ["NAME", "VERSION", "STATE", "REASON"]
        assert lines["plus_one"].split() == ["plus_one", "1", "READY"]
        assert "UNAVAILABLE" in lines["broken"]
        assert "not an ONNX model" in lines["broken"]

    def test_list_can_leave_out_what_cannot_answer(self, offramp: Offramp) -> None:
        entries = json.loads(offramp("models", "list", "--ready", "--json").out)
        assert "plus_one" in {entry["name"] for entry in entries}
        assert {entry["state"] for entry in entries} == {"READY"}

    def test_unload_takes_a_model_away_and_load_brings_it_back(self, offramp: Offramp, tmp_path: Path) -> None:
        request = tmp_path / "x.json"
        request.write_text("[[1, 2, 3, 4]]")
        assert offramp("models", "unload", "spare").status == 0
        refused = offramp("infer", "spare", str(request))
        assert (refused.status, refused.err[:19]) == (1, "offramp: NOT_FOUND:")
        assert offramp("models", "load", "spare").out == "loaded spare\n"
        assert offramp("infer", "spare", str(request)).status == 0

    def test_a_model_that_does_not_load_is_answered_with_the_reason(self, offramp: Offramp) -> None:
        outcome = offramp("models", "load", "broken")
        assert outcome.status == 1
        assert "model.onnx" in outcome.err


class TestInfer:
    def test_prints_outputs_and_labels(self, offramp: Offramp, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.array([0.0, 3.0, 1.0, 2.0]))
        outcome = offramp("infer", "plus_one", str(tmp_path / "x.npy"), "--top", "1")
        assert outcome.status == 0, outcome.err
        assert "y: FP32[1, 4]" in outcome.out
        assert "[[1. 4. 2. 3.]]" in outcome.out
        assert "     1  b      4.0000" in outcome.out
        assert outcome.err == "x: [4] is sent as a batch of one\n"

    def test_prints_json_with_only_the_outputs_that_were_asked_for(self, offramp: Offramp, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text(json.dumps({"inputs": {"x": [[1, 2, 3, 4], [5, 6, 7, 8]]}}))
        outcome = offramp("infer", "plus_one", str(tmp_path / "x.json"), "--json", "--output", "z")
        [output] = json.loads(outcome.out)["outputs"]
        assert (output["name"], output["shape"], output["data"]) == ("z", [2, 4], [0, 1, 2, 3, 4, 5, 6, 7])

    def test_a_request_that_the_server_refuses_ends_with_1_and_its_sentence(
        self, offramp: Offramp, tmp_path: Path
    ) -> None:
        (tmp_path / "x.json").write_text("[[1, 2, 3]]")
        outcome = offramp("infer", "plus_one", "--input", f"x={tmp_path / 'x.json'}")
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err.startswith('offramp: INVALID_ARGUMENT: input "x": expected FP32[')

    def test_without_a_file_there_is_nothing_to_send(self, offramp: Offramp) -> None:
        outcome = offramp("infer", "plus_one")
        assert (outcome.status, outcome.err) == (
            2, "offramp: error: infer: nothing to send; give FILE or --input NAME=FILE\n",
        )  # fmt: skip


class TestBench:
    def test_prints_a_row_for_each_number_of_callers(self, offramp: Offramp) -> None:
        outcome = offramp("bench", "plus_one", "--concurrency", "1,3", "--seconds", "0.5", "--batch-size", "2")
        assert outcome.status == 0, outcome.err
        header, *rows = (line.split() for line in outcome.out.splitlines())
        assert header[0] == "load"
        assert [(row[0], row[-1]) for row in rows] == [("1", "none"), ("3", "none")]
        assert all(float(row[1]) > 0 for row in rows)

    def test_can_send_at_a_fixed_rate(self, offramp: Offramp) -> None:
        outcome = offramp("bench", "plus_one", "--open-loop", "50", "--seconds", "0.5", "--json")
        period = json.loads(outcome.out)
        assert (period["load"], period["errors"], period["not_sent"]) == (50, {}, 0)
        assert period["answers"] > 0

    def test_what_would_be_wrong_with_every_request_ends_it_at_once(self, offramp: Offramp) -> None:
        outcome = offramp("bench", "plus_one", "--batch-size", "9")
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err.startswith("offramp: INVALID_ARGUMENT: ")

    def test_can_be_interrupted_without_a_traceback(self, target: str) -> None:
        command = [sys.executable, "-m", "offramp_server", "bench", "plus_one", "--seconds", "60"]
        environment = {**os.environ, "OFFRAMP_TARGET": target}
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            # A shell starts what it puts into the background with this signal ignored, and children inherit that.
            preexec_fn=_heed_interrupts,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (130, "")


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class TestTokens:
    def test_a_server_with_tokens_is_managed_with_the_right_one_only(
        self, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_add_sub(repository)
        (tmp_path / "admin").write_text(TOKEN)
        settings = tmp_path / "offramp.toml"
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        settings.write_text(f'[[auth.tokens]]\nname = "ci"\nrole = "admin"\nsha256 = "{digest}"\n')
        with serving(repository, ["--in-process", f"--config={settings}"]) as server:
            monkeypatch.setenv("OFFRAMP_TARGET", server.grpc)
            assert main(["models", "list"]) == 1
            assert capsys.readouterr().err.startswith("offramp: UNAUTHENTICATED: ")
            assert main(["models", "load", "add_sub", "--token-file", str(tmp_path / "admin")]) == 0
