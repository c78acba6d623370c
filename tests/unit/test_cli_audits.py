"""`offramp audits`: a store, read while nobody or a server has it open."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from offramp_adapters.audits.observation import ExitObservation
from offramp_server.cli.main import main
from offramp_server.routing.recorder import Recorder
from offramp_server.store.audits import SCHEMA
from offramp_server.store.database import Database
from offramp_server.store.epochs import Epochs


def exited(sequence: int, agrees: bool | None, probability: float = 0.1) -> ExitObservation:
    """At the first of two stages; None: not audited."""
    agreed = () if agrees is None else (agrees,)
    rate, audited = probability, agrees is not None
    return ExitObservation(1, sequence, 0, 0, 2, (0.9,), (0.8,), probability, rate, audited, "", agreed)


def deferred(sequence: int) -> ExitObservation:
    return ExitObservation(1, sequence, 0, 1, 2, (0.5,), (0.8,), 1.0, 0.1, True, "", (True,))


async def write(path: Path) -> None:
    """One epoch of 100 items, 50 of them deferred, 5 audited, 1 of these in disagreement; and one without items."""
    database = Database(path, [SCHEMA])
    epochs = Epochs(database, lambda: 0.0)
    recorder = Recorder(database, epochs, lambda: 0.0)
    epoch = epochs.current("fashion", "student 1, teacher 1")
    for number in range(100):
        arrival = recorder.begin(epoch)
        audited = (number != 0) if number % 20 == 0 else None
        arrival.note([exited(arrival.sequence, audited) if number % 2 == 0 else deferred(arrival.sequence)])
        arrival.release()
    failed = recorder.begin(epoch)
    failed.failure = "deadline_exceeded"
    failed.release()
    recorder.begin(epochs.current("fashion", "student 2, teacher 1")).release()
    await recorder.close()
    await database.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    asyncio.run(write(tmp_path / "state.sqlite3"))
    return tmp_path / "state.sqlite3"


def test_each_epoch_is_a_row(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audits", "fashion", "--store", str(path)]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "EPOCH", "BEGAN", "ITEMS", "EXITS", "AUDITED", "LOST", "DISAGREE", "BOUNDS", "MISSING", "FAILED",
    ]  # fmt: skip
    assert first.split()[3:] == ["100", "50.0%/50.0%", "5", "0", "10.000%", "0.253%", "to", "54.459%", "0", "1"]
    assert second.split()[3:] == ["0", "-", "0", "0", "-", "-", "0", "0"]


def test_as_json_with_what_the_epochs_were_judged_as(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audits", "fashion", "--store", str(path), "--json", "--confidence", "0.5"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["epoch"], first["items"], first["exits"], first["disagreement"]) == (1, 100, [0.5, 0.5], 0.1)
    assert 0 < first["low"] < 0.1 < first["high"] < 0.4
    assert (second["epoch"], second["items"], second["exits"], second["disagreement"]) == (2, 0, [], None)
    assert second["subject"] == "student 2, teacher 1"


async def test_a_server_may_be_writing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = Database(path, [SCHEMA])
    assert await asyncio.to_thread(main, ["audits", "fashion", "--store", str(path)]) == 0
    await database.close()
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_it_is_found_in_the_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".offramp").mkdir()
    asyncio.run(write(tmp_path / ".offramp" / "state.sqlite3"))
    assert main(["audits", "fashion", "--model-repository", str(tmp_path)]) == 0
    assert "50.0%/50.0%" in capsys.readouterr().out


def test_what_is_not_there_is_named(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audits", "fashon", "--store", str(path)]) == 1
    assert 'nothing is stored of a route "fashon"; routes: fashion' in capsys.readouterr().err
    assert main(["audits", "fashion", "--store", str(tmp_path / "nowhere")]) == 2
    assert "there is no file" in capsys.readouterr().err
    (tmp_path / "text").write_bytes(os.urandom(5000))
    assert main(["audits", "fashion", "--store", str(tmp_path / "text")]) == 2
    assert "damaged or no SQLite database" in capsys.readouterr().err
