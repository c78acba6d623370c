"""`offramp check` lists what would be served and everything that keeps the rest from it; routes point to models."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_files import export_add_sub, write_linear_onnx, write_sequence_onnx
from offramp_adapters.routes.plan import Target
from offramp_server.errors import ConfigurationError, NotFound
from offramp_server.repository.check import check
from offramp_server.repository.reader import is_route, read_route


def write_route(repository: Path, name: str, text: str) -> Path:
    (repository / name).mkdir(parents=True, exist_ok=True)
    (repository / name / "route.toml").write_text(text)
    return repository / name


def refusal(repository: Path, text: str) -> str:
    write_route(repository, "r", text)
    with pytest.raises(ConfigurationError) as caught:
        read_route(repository, "r")
    return str(caught.value)


def test_a_route_names_its_model_and_perhaps_a_version(tmp_path: Path) -> None:
    write_route(tmp_path, "r", 'kind = "single"\nmodel = "m"')
    assert is_route(tmp_path / "r")
    assert read_route(tmp_path, "r").kind == "single"
    assert read_route(tmp_path, "r").targets == (Target("m"),)

    write_route(tmp_path, "r", 'kind = "single"\nmodel = "m"\nversion = 3')
    assert read_route(tmp_path, "r").targets == (Target("m", "3"),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('kind = "single"', '"model" is missing; expected the name of a model'),
        ('model = "m"', '"kind" is missing; expected one of "single"'),
        ('kind = "best"\nmodel = "m"', 'kind: expected one of "single"'),
        ('kind = "single"\nmodle = "m"', 'unknown key "modle"; did you mean "model"?'),
        ('kind = "single"\nmodel = "../m"', 'model: expected the name of a model or a route, got "../m"'),
        ('kind = "single"\nmodel = "m"\nversion = "1"', 'version: expected a number of at least 1, got "1"'),
        ('kind = "single"\nmodel = "r"', 'the route "r" cannot run itself; name a model'),
        ("kind = [", "route.toml: not valid TOML"),
    ],
)
def test_a_mistake_in_route_toml_is_one_clear_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    assert sentence in refusal(tmp_path, text)


def test_a_folder_is_a_route_or_a_model(tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "r" / "1" / "model.onnx")
    assert "has both route.toml and 1; a folder is a route or a model" in refusal(
        tmp_path, 'kind = "single"\nmodel = "m"'
    )


def test_a_route_outside_the_repository_is_not_found(tmp_path: Path) -> None:
    write_route(tmp_path, "r", 'kind = "single"\nmodel = "m"')
    (tmp_path / "models").mkdir()
    with pytest.raises(NotFound):
        read_route(tmp_path / "models", "../r")


def test_the_report_lists_models_versions_tensors_batching_and_routes(tmp_path: Path) -> None:
    export_add_sub(tmp_path / "add" / "1" / "model.pt2")
    write_sequence_onnx(tmp_path / "sum" / "2" / "model.onnx")
    write_route(tmp_path, "public", 'kind = "single"\nmodel = "add"\nversion = 1')
    (tmp_path / "notes").mkdir()

    report = check(tmp_path)

    assert report.problems == ()
    text = "\n".join(report.lines)
    assert "model add\n  version 1: pt2, " in text
    assert " bytes, batches of up to 16, engine auto" in text
    assert "    in:  INPUT0 INT32[16], INPUT1 INT32[16]\n    out: OUTPUT0 INT32[16], OUTPUT1 INT32[16]" in text
    assert "model sum\n  version 2: onnx, " in text
    assert "    in:  tokens FP32[-1,4]" in text
    assert "route public: single of add version 1" in text
    assert "ignored notes: neither a model nor a route" in text


def test_every_problem_is_reported_and_none_hides_another(tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "good" / "1" / "model.onnx")
    write_linear_onnx(tmp_path / "bad-toml" / "1" / "model.onnx")
    (tmp_path / "bad-toml" / "model.toml").write_text("max_batch = 1")
    (tmp_path / "bad-file" / "1").mkdir(parents=True)
    (tmp_path / "bad-file" / "1" / "model.onnx").write_bytes(b"rubbish")
    write_route(tmp_path, "r1", 'kind = "single"\nmodel = "absent"')
    write_route(tmp_path, "r2", 'kind = "single"\nmodel = "bad-file"')
    write_route(tmp_path, "r3", 'kind = "single"\nmodel = "good"\nversion = 2')
    write_route(tmp_path, "r4", 'kind = "single"\nmodel = "r1"')
    write_route(tmp_path, "r5", 'kind = "ensmble"')
    write_route(tmp_path, "r6", 'kind = "single"\nmodel = "r7"')
    write_route(tmp_path, "r7", 'kind = "single"\nmodel = "r6"')

    report = check(tmp_path)

    expected = [
        "bad-file/1/model.onnx: not an ONNX model",
        'bad-toml/model.toml: unknown key "max_batch"; did you mean "max_batch_size"?',
        'r5/route.toml: kind: expected one of "single"',
        'route "r1": there is no model "absent"; there are: good',
        'route "r2": its model "bad-file" cannot be served',
        'route "r3": model "good" serves no version 2; it serves: 1',
        'route "r4": route "r1": there is no model "absent"',
        'route "r6": routes must not run in a circle: r6 -> r7 -> r6',
        'route "r7": routes must not run in a circle: r7 -> r6 -> r7',
    ]
    assert len(report.problems) == len(expected)
    for problem, sentence in zip(report.problems, expected, strict=True):
        assert sentence in problem
    assert "model good" in report.lines


def test_an_empty_repository_has_nothing_to_report(tmp_path: Path) -> None:
    report = check(tmp_path)
    assert (report.lines, report.problems) == ((), ())
