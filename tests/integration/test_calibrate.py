"""`offramp calibrate`: from a labelled file to a route that leaves early as often as it may."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import write_broken_model, write_classifier, write_labelled, write_route
from exit_networks import encoder, tokens
from offramp_adapters.confidence.temperature import log_probabilities
from offramp_compression.exits.attach import attach
from offramp_compression.exits.segments import export_segments
from offramp_compression.export.preparing import preparing
from offramp_compression.export.program import text_lengths
from offramp_compression.export.publish import Target
from offramp_server.cli.main import main
from offramp_server.core import serve_in_process
from offramp_server.inference import InferRequest, InferResponse
from open_inference.tensor import BYTES, Tensor, encode_bytes
from server_process import serving
from text_models import IDS, write_bag, write_tokenizer

TEXT = """\
# What the shop asks.
kind = "early_exit"

[[stages]]
name = "quick"      # a tenth of the other
model = "small"
threshold = 0.5

[[stages]]
model = "large"

[audit]
rate = 0.01         # watched
"""
LABELS = ("cat", "dog", "owl")
# The classes seen through noise. "small" sees half of what "large" sees, and says it too surely.
RANDOM = np.random.default_rng(3)
TRUTH = RANDOM.integers(0, 3, 1600)
SEEN = 2.5 * np.eye(3)[TRUTH] + RANDOM.normal(size=(1600, 3))
ROWS = np.hstack([SEEN, RANDOM.normal(size=(1600, 3))]).astype(np.float32)
LARGE = np.vstack([2.5 * np.eye(3), np.zeros((3, 3))])
SMALL = np.vstack([6 * np.eye(3), 3 * np.eye(3)])


@pytest.fixture
def models(repository: Path) -> Path:
    write_classifier(repository, "small", SMALL)
    write_classifier(repository, "large", LARGE, labels=LABELS)
    # Nobody asks it, and it would not load.
    write_broken_model(repository)
    write_route(repository, "pets", TEXT)
    return repository


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_labelled(tmp_path / "test.npz", ROWS, TRUTH, LABELS)


def calibrate(models: Path, data: Path, *options: str) -> int:
    return main(["calibrate", str(models / "pets"), "--data", str(data), "--agreement", "0.97", *options])


def text_of(models: Path) -> str:
    return (models / "pets" / "route.toml").read_text()


def stages(models: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads(text_of(models))["stages"]
    return found


def answer(models: Path, route: str, *inputs: Tensor) -> InferResponse:
    async def ask() -> InferResponse:
        async with serve_in_process(models) as server:
            return await server.infer(InferRequest(route, list(inputs)))

    return asyncio.run(ask())


def refused(
    capsys: pytest.CaptureFixture[str], status: int, sentence: str, models: Path, data: Path, *options: str
) -> None:
    before = text_of(models)
    assert calibrate(models, data, "--write", *options) == status
    assert sentence in capsys.readouterr().err
    assert text_of(models) == before


# What it does


def test_the_thresholds_that_are_written_leave_early_where_the_last_stage_would_agree(models: Path, data: Path) -> None:
    assert calibrate(models, data, "--write") == 0
    quick, large = stages(models)
    highest = np.exp(log_probabilities(ROWS[:16] @ SMALL / quick["temperature"], "logits")).max(axis=1)
    response = answer(models, "pets", Tensor.from_numpy("x", ROWS[:16]))
    left = ["quick" if score >= quick["threshold"] else "large" for score in highest]
    assert response.parameters["offramp_exit"] == ",".join(left)
    assert len(set(left)) == 2
    assert "threshold" not in large
    # It says more than twice what it should.
    assert quick["temperature"] > 2
    early = np.exp(log_probabilities(ROWS @ SMALL / quick["temperature"], "logits")).max(axis=1) >= quick["threshold"]
    agrees = (ROWS @ SMALL).argmax(axis=1) == (ROWS @ LARGE).argmax(axis=1)
    assert 1 - (early & ~agrees).mean() >= 0.965
    assert early.mean() > 0.4


def write_network(repository: Path, tokenizer: bytes) -> None:
    """A small text encoder with an exit in the middle, as a route over its two segments."""
    network = attach(encoder(), ["encoder.layers.1"], tokens())
    export_segments(
        network, tokens(), Target(repository, "net", "pt2", backend="torch-eager"),
        variable=text_lengths(network.input_names, tokens()), additions=preparing(tokens(), tokenizer, 32),
    )  # fmt: skip
    exits = '[[stages]]\nmodel = "net-stage1"\nthreshold = 0.5\n[[stages]]\nmodel = "net-stage2"\n'
    write_route(repository, "pets", f'kind = "early_exit"\n{exits}')


def test_texts_of_any_length_go_through_the_segments_of_a_network(repository: Path, tmp_path: Path) -> None:
    write_network(repository, write_tokenizer(tmp_path).read_bytes())
    texts = ["good film", "bad film bad", "book"] * 8 + ["good book " * 10, "bad film " * 12] * 8
    rows = [f"{text.strip()},{'abc'[number % 3]}" for number, text in enumerate(texts)]
    (tmp_path / "test.csv").write_text("\n".join(["text,label", *rows]))
    # Nothing has taught the exit, which seldom agrees.
    assert calibrate(repository, tmp_path / "test.csv", "--write", "--agreement", "0.05") == 0
    exit, end = stages(repository)
    assert {"threshold", "temperature"} <= exit.keys()
    assert "temperature" in end
    asked = Tensor("text", BYTES, (2, 1), encode_bytes(texts[:2]))
    assert "net-stage1" in str(answer(repository, "pets", asked).parameters["offramp_exit"]).split(",")


def test_stages_that_name_their_inputs_in_another_order_get_them_by_name(repository: Path, tmp_path: Path) -> None:
    swapped = '[[inputs]]\nname = "attention_mask"\ndatatype = "INT64"\ndims = [-1]\n'
    swapped += '[[inputs]]\nname = "input_ids"\ndatatype = "INT64"\ndims = [-1]\n'
    for name, order in (("small", ""), ("large", swapped)):
        write_bag(repository / name / "1" / "model.onnx", {"good": (0.0, 1.0), "bad": (1.0, 0.0)})
        (repository / name / "model.toml").write_text(order)
    write_route(repository, "pets", TEXT)
    draw = np.random.default_rng(0)
    ids = draw.choice([IDS["good"], IDS["bad"]], (200, 3))
    right = (ids == IDS["good"]).sum(axis=1) > 1
    np.savez(tmp_path / "test.npz", x0=ids, x1=np.ones_like(ids), labels=right.astype(np.int64))
    assert calibrate(repository, tmp_path / "test.npz", "--write") == 0
    # Both count the same words, and so always agree.
    assert stages(repository)[0]["threshold"] < 1


def test_comments_and_everything_else_in_the_file_stay(
    models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(models, data, "--write") == 0
    quick, large = stages(models)
    temperature = f"temperature = {quick['temperature']}\n"
    expected = TEXT.replace("threshold = 0.5\n", f"threshold = {quick['threshold']}\n{temperature}")
    expected = expected.replace('"large"\n', f'"large"\ntemperature = {large["temperature"]}\n')
    assert text_of(models) == expected
    assert [path.name for path in (models / "pets").iterdir()] == ["route.toml"]
    assert "offramp models load pets" in capsys.readouterr().out


def test_without_write_it_proposes_and_changes_nothing(
    models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(models, data) == 0
    assert text_of(models) == TEXT
    printed = capsys.readouterr().out
    assert "running 2 stages on 1600 examples" in printed
    assert "chosen on 800 examples; on 800 others:" in printed
    assert "agreement with large: 9" in printed
    assert "with confidence 0.95 (wanted: 97.00%)" in printed
    assert "--write puts thresholds and temperatures into" in printed


def test_the_choice_may_be_measured_on_other_examples(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "other.npz", x=ROWS[:300], labels=TRUTH[:300])
    assert calibrate(models, data, "--unseen", str(tmp_path / "other.npz")) == 0
    assert "chosen on 1600 examples; on 300 others:" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["curve.png", "curve.svg"])
def test_a_picture_shows_the_curve(models: Path, data: Path, tmp_path: Path, name: str) -> None:
    assert calibrate(models, data, "--picture", str(tmp_path / "new" / name)) == 0
    begins = {".png": b"\x89PNG", ".svg": b"<?xml"}[Path(name).suffix]
    assert (tmp_path / "new" / name).read_bytes().startswith(begins)


def test_a_running_server_may_do_the_computing(models: Path, data: Path) -> None:
    with serving(models, ["--in-process"]) as server:
        assert calibrate(models, data, "--write", "--target", server.grpc) == 0
    over_the_wire = stages(models)
    write_route(models, "pets", TEXT)
    assert calibrate(models, data, "--write") == 0
    assert [each["temperature"] for each in stages(models)] == [each["temperature"] for each in over_the_wire]


# What it refuses


def test_a_route_whose_exits_need_no_thresholds_is_refused(
    models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def of(text: str, sentence: str) -> None:
        write_route(models, "pets", text)
        refused(capsys, 2, sentence, models, data)

    of('kind = "single"\nmodel = "small"\n', 'route "pets" is of kind single; only early_exit has thresholds')
    stage = '[[stages]]\nname = "{}"\nmodel = "small"\n'
    patience = "".join(map(stage.format, "abc")) + '[[stages]]\nmodel = "large"\n'
    of(
        f'kind = "early_exit"\nscore = "patience"\npatience = 2\n{patience}',
        'stage "a" goes by score = "patience"; thresholds are chosen for max_probability, margin, entropy',
    )
    of(
        TEXT.replace("threshold = 0.5", "threshold = 0.5\nthresholds_by_class = { cat = 0.9 }"),
        'stage "quick" has thresholds_by_class, which would hold instead; take them out first',
    )


def test_a_route_that_is_not_there_is_refused(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(models / "cats"), "--data", str(data)]) == 2
    assert "cats" in capsys.readouterr().err


def test_stages_that_do_not_fit_are_named(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of(reference: str, sentence: str) -> None:
        write_route(models, "pets", TEXT.replace('"large"', f'"{reference}"'))
        refused(capsys, 2, sentence, models, data)

    write_classifier(models, "pair", LARGE[:, :2])
    of("pair", "classes")
    of("broken", "broken")
    of("huge", "huge")


def test_examples_that_do_not_fit_are_refused(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(data, x=ROWS, labels=TRUTH, class_names=np.array(["cat", "dog", "fox"]))
    refused(capsys, 2, 'the model has no class "fox"', models, data)
    np.savez(data, x=ROWS[:, :3], labels=TRUTH)
    refused(capsys, 2, "expected FP32[-1,6], got FP32[", models, data)
    np.savez(data, x=ROWS[:1], labels=TRUTH[:1], class_names=np.array(LABELS))
    refused(capsys, 2, "the 0 examples to choose on, whatever they show; expected at least 198", models, data)
    data.unlink()
    refused(capsys, 2, "there is no such file", models, data)
    np.savez(data, x=ROWS, labels=TRUTH + 1)
    write_route(models, "pets", TEXT.replace('"large"', '"small"'))
    refused(capsys, 2, 'there is a label 3, and "small" has 3 classes: expected labels from 0 to 2', models, data)


def test_how_many_examples_a_wish_takes_is_said_before_anything_is_run(
    models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, 2, "expected at least 5990, of which half are for choosing", models, data, "--agreement", "0.999")
    refused(capsys, 2, "expected at least 2995, or", models, data, "--agreement", "0.999", "--unseen", str(data))
    assert "running" not in capsys.readouterr().out


def test_a_reference_that_says_nothing_is_no_reference(
    models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classifier(models, "nan", np.full((6, 3), np.nan))
    write_route(models, "pets", TEXT.replace('"large"', '"nan"'))
    refused(capsys, 1, '"nan" answers 1600 of 1600 examples with NaN', models, data)


def test_exits_that_know_nothing_are_not_opened(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classifier(models, "clueless", np.zeros((6, 3)))
    write_route(models, "pets", TEXT.replace('"small"', '"clueless"'))
    refused(capsys, 1, "nothing may leave early, if the agreement is to be 0.97 with confidence 0.95", models, data)


def test_thresholds_that_the_levels_of_load_do_not_allow_are_not_written(
    models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_route(models, "pets", f"{TEXT}\n[load.idle]\nthresholds = [0.51]\n")
    refused(capsys, 1, "nothing was written, change this first", models, data)


def test_options_that_cannot_be_are_refused(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value, sentence in (
        ("--agreement", "99", "--agreement: expected a number above 0 and below 1, such as 0.99, got 99"),
        ("--confidence", "high", "--confidence: expected a number above 0 and below 1, such as 0.99, got high"),
        ("--picture", "curve.gif", "--picture: expected a name that ends in .png or .svg, got curve.gif"),
    ):
        with pytest.raises(SystemExit, match="2"):
            calibrate(models, data, option, value)
        assert sentence in capsys.readouterr().err
