"""`offramp make`: a family from one file, made once, resumed where it was stopped, judged by what it must reach."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from offramp_common.errors import ConfigurationError, OfframpError
from offramp_compression.blueprint import Blueprint
from offramp_compression.errors import DataError
from offramp_compression.evaluation.bootstrap import Bootstrap, Estimate
from offramp_compression.evaluation.evaluation import Evaluation
from offramp_compression.evaluation.latency import Timing
from offramp_compression.evaluation.metrics import quality
from offramp_compression.model_file import load, save
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance
from offramp_compression.recipes.data import RecipeData
from offramp_compression.recipes.judge import verdicts_on
from offramp_compression.recipes.read import read_recipe
from offramp_compression.recipes.run import BudgetSpent, chosen, default_places, make
from offramp_compression.recipes.schema import DataTable, RecipeTable, Requirement
from offramp_compression.recipes.steps.learning import StepTraining, settings_for
from offramp_compression.recipes.workshop import Workshop
from offramp_server.cli.main import main

TEACHER = """
[[steps]]
name = "teacher"
kind = "train"
architecture = "tiny_cnn"
arguments = { channels = [4, 8] }
training = { epochs = 1, batch_size = 20, learning_rate = 0.05 }
augmentation = { flip = false, shift = 0 }
serve = ["pt2"]
"""
STUDENT = """
[[steps]]
name = "student"
kind = "distill"
teachers = ["teacher"]
architecture = "tiny_cnn"
arguments = { channels = [2, 4] }
training = { epochs = 1, batch_size = 20, learning_rate = 0.05 }
augmentation = { flip = false, shift = 0 }
"""
STUDENT_OF_WEIGHTS = """
[[steps]]
name = "student"
kind = "load"
weights = "weights.safetensors"
architecture = "tiny_cnn"
arguments = { channels = [2, 4] }
serve = ["pt2"]
"""
HEAD = """
name = "family"
threads = 1

[data]
path = "data"
validation = 0.2

[evaluation]
resamples = 5
batch_sizes = [1]
"""


def write_data(folder: Path, seed: int = 0) -> None:
    """Squares in one of two corners."""
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 100), ("test", 40)):
        labels = np.arange(count) % 2
        images = random.integers(0, 60, (count, 1, 16, 16), dtype=np.uint8)
        images[labels == 0, :, :6, :6] = 250
        images[labels == 1, :, 10:, 10:] = 250
        np.savez(folder / f"{part}.npz", x=images, labels=labels, class_names=np.asarray(["left", "right"]))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    path = tmp_path / "recipe.toml"
    path.write_text(HEAD + TEACHER + STUDENT)
    return path


def run(recipe: Path, *options: str) -> int:
    return main(["make", str(recipe), "--work", str(recipe.parent / "work"), *options])


def test_a_family_is_made_served_and_measured(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe) == 0
    work = recipe.parent / "work"
    assert (work / "repository" / "family-teacher" / "1" / "model.pt2").is_file()
    assert not (work / "repository" / "family-student").exists()
    report = json.loads((work / "report.json").read_text())
    assert [each["name"] for each in report["evaluations"]] == [
        "teacher (network)", "family-teacher", "student (network)",
    ]  # fmt: skip
    assert report["evaluations"][0]["quality"]["examples"] == 40
    assert "agreement" in capsys.readouterr().out


def test_a_log_gets_a_line_for_each_epoch_and_hears_of_what_has_learnt_nothing(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text().replace("learning_rate = 0.05", "learning_rate = 1e-9"))
    assert run(recipe, "--no-evaluation") == 0
    said = capsys.readouterr()
    assert "teacher: epoch 1: loss" in said.out
    assert "\r" not in said.out + said.err
    assert "offramp: warning: step teacher is right on" in said.err
    made = load(recipe.parent / "work" / "steps" / "teacher" / "network.safetensors")
    assert made.provenance.metrics["better_than_guessing"] == 0.0


def test_what_was_made_before_is_not_made_again(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recipe, "--no-evaluation") == 0
    made = {path: path.stat().st_mtime_ns for path in (recipe.parent / "work").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(recipe, "--no-evaluation") == 0
    printed = capsys.readouterr().out
    assert "teacher: made before" in printed
    assert "family-teacher: in" in printed
    assert made == {path: path.stat().st_mtime_ns for path in (recipe.parent / "work").rglob("*") if path.is_file()}


def test_a_changed_step_is_made_again_with_those_that_are_made_of_it(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, "--no-evaluation")
    capsys.readouterr()
    recipe.write_text(recipe.read_text().replace("[2, 4]", "[2, 6]"))
    run(recipe, "--no-evaluation")
    printed = capsys.readouterr().out
    assert "teacher: made before" in printed
    assert "student: distill" in printed
    recipe.write_text(recipe.read_text().replace("[4, 8]", "[4, 6]"))
    run(recipe, "--no-evaluation")
    printed = capsys.readouterr().out
    assert "teacher: train" in printed
    assert "student: distill" in printed
    # The repository has the new teacher as its next version.
    assert (recipe.parent / "work" / "repository" / "family-teacher" / "2" / "model.pt2").is_file()


def test_how_a_model_is_served_or_judged_does_not_change_what_it_is(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, "--no-evaluation")
    capsys.readouterr()
    recipe.write_text(recipe.read_text() + 'serve = ["pt2"]\nserve_as = "small"\nrequire = { accuracy = 0.1 }\n')
    run(recipe, "--no-evaluation")
    assert "student: made before" in capsys.readouterr().out
    assert (recipe.parent / "work" / "repository" / "small" / "1" / "model.pt2").is_file()


def test_other_settings_of_serving_make_the_next_version_and_those_of_the_operator_stay(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(recipe, "--no-evaluation", "--only", "teacher")
    model = recipe.parent / "work" / "repository" / "family-teacher"
    toml = model / "model.toml"
    toml.write_text(toml.read_text().replace("max_batch_size = 16", "max_batch_size = 4"))
    run(recipe, "--no-evaluation", "--only", "teacher")
    assert not (model / "2").exists()
    recipe.write_text(recipe.read_text().replace('serve = ["pt2"]', 'serve = ["pt2"]\nkeep_network = false'))
    capsys.readouterr()
    run(recipe, "--no-evaluation", "--only", "teacher")
    assert "teacher: made before" in capsys.readouterr().out
    assert [path.name for path in (model / "2").iterdir()] == ["model.pt2"]
    assert "max_batch_size = 4\n" in toml.read_text()
    recipe.write_text(recipe.read_text().replace("keep_network = false", "max_batch_size = 32"))
    run(recipe, "--no-evaluation", "--only", "teacher")
    assert {path.name for path in (model / "3").iterdir()} == {"model.pt2", "network.safetensors"}
    assert "max_batch_size = 32\n" in toml.read_text()


def test_a_family_begins_with_what_is_served(recipe: Path) -> None:
    run(recipe, "--no-evaluation", "--only", "teacher")
    step = '[[steps]]\nname = "served"\nkind = "load"\nweights = "work/repository/family-teacher"\n'
    tune = '[[steps]]\nname = "tuned"\nkind = "fine-tune"\nof = "served"\ntraining = { epochs = 1, batch_size = 20 }\n'
    second = recipe.with_name("second.toml")
    second.write_text(HEAD.replace("family", "second") + step + tune)
    assert main(["make", str(second), "--work", str(recipe.parent / "second"), "--no-evaluation"]) == 0
    steps = recipe.parent / "second" / "steps"
    served, tuned = (load(steps / name / "network.safetensors") for name in ("served", "tuned"))
    assert served.provenance.settings["started_from"] == "family-teacher/1"
    assert tuned.provenance.parents == (served.digest(),)


@pytest.mark.parametrize(("written", "seed"), [(None, 7), (0, 0), (3, 3)])
def test_a_step_has_the_seed_of_the_recipe_unless_it_has_its_own(written: int | None, seed: int) -> None:
    recipe = RecipeTable("family", seed=7)
    networks: dict[str, Network] = {}
    workshop = Workshop(recipe, RecipeData(recipe.data, Path(), 7), Path(), Path(), networks.__getitem__, print)
    assert settings_for(StepTraining(seed=written), workshop).seed == seed


def test_other_data_make_everything_again(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe, "--no-evaluation")
    capsys.readouterr()
    write_data(recipe.parent / "data", seed=1)
    run(recipe, "--no-evaluation")
    assert "made before" not in capsys.readouterr().out


def test_a_step_can_be_asked_for_with_those_it_needs(recipe: Path) -> None:
    parsed = read_recipe(recipe)
    assert [step.name for step in chosen(parsed, ["teacher"]).steps] == ["teacher"]
    assert [step.name for step in chosen(parsed, ["student"]).steps] == ["teacher", "student"]
    with pytest.raises(ConfigurationError, match="the recipe has no step nobody; it has teacher, student"):
        chosen(parsed, ["nobody"])


def test_what_a_model_misses_is_said_and_the_command_fails(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text() + "require = { parameters = 3 }\n")
    assert run(recipe) == 1
    assert "at most 3 parameters" in capsys.readouterr().out


def test_no_step_begins_when_the_budget_is_spent_and_what_was_made_is_kept(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("[evaluation]", "[budget]\nminutes = 1\n\n[evaluation]"))
    parsed = read_recipe(recipe)
    places = default_places(recipe, "family", recipe.parent / "work", None)
    data = RecipeData(parsed.table.data, recipe.parent, 0)
    times = iter([0.0, 0.0, 0.0, 61.0, 61.0])
    with pytest.raises(BudgetSpent, match="1 of 1 minutes are spent and student is not made"):
        make(parsed, places, data, lambda _: None, clock=lambda: next(times))
    # The next run goes on after the teacher.
    said: list[str] = []
    products = make(parsed, places, data, said.append, clock=lambda: 0.0)
    assert list(products) == ["teacher", "student"]
    assert said[0].startswith("teacher: made before")


def test_data_are_fetched_by_a_program_beside_the_recipe(recipe: Path) -> None:
    program = recipe.parent / "fetch.py"
    program.write_text(f"print('fetching ...')\nprint({str(recipe.parent / 'data')!r})\n")
    recipe.write_text(recipe.read_text().replace('path = "data"', 'fetch = "fetch.py"'))
    assert run(recipe, "--no-evaluation", "--only", "teacher") == 0


def test_a_program_that_cannot_fetch_ends_with_a_sentence(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "fetch.py").write_text("raise SystemExit('no network')\n")
    recipe.write_text(recipe.read_text().replace('path = "data"', 'fetch = "fetch.py"'))
    assert run(recipe) == 2
    assert "did not say where the data are" in capsys.readouterr().err


def test_a_trial_takes_a_few_examples_of_each_part_and_of_each_class(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    data = RecipeData(DataTable(path="data", validation=0.2, limit=10), tmp_path, 0)
    for part in (data.train, data.validation, data.test):
        assert len(part) == 10
        assert set(part.labels) == {0, 1}


def test_classes_get_the_names_that_the_recipe_gives_them(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    data = RecipeData(DataTable(path="data", class_names=("west", "east")), tmp_path, 0)
    assert data.train.class_names == data.test.class_names == ("west", "east")
    data = RecipeData(DataTable(path="data", class_names=("west",)), tmp_path, 0)
    with pytest.raises(DataError, match="class_names has 1 names and the data have 2 classes"):
        _ = data.train


def test_validation_and_test_examples_are_not_learnt_from(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    data = RecipeData(DataTable(path="data", validation=0.2, calibration=30), tmp_path, 0)
    learnt = {image.tobytes() for image in data.train.inputs[0]}
    assert len(learnt) == 80
    for part in (data.validation, data.test):
        assert not learnt & {image.tobytes() for image in part.inputs[0]}
    assert {image.tobytes() for image in data.calibration.inputs[0]} <= learnt
    assert len(data.calibration) == 30


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", r'"name" is missing'),
        ('name = "x"\n', r"a recipe needs at least one \[\[steps\]\]"),
        (HEAD + "[[steps]]\nname = 'a'\n", 'step "a": "kind" is missing'),
        (HEAD + "[[steps]]\nname = 'a'\nkind = 'distil'\n", r'no kind "distil"; did you mean "distill"\?'),
        (HEAD + TEACHER.replace("epochs", "epoch"), r'unknown key "training.epoch"; did you mean "training.epochs"'),
        (HEAD + STUDENT, 'step "student" needs "teacher", which no step before it makes'),
        (HEAD + TEACHER + TEACHER, 'two steps are named "teacher"'),
        (HEAD.replace("resamples", "reference = 'tutor'\nresamples") + TEACHER, "evaluation.reference: there is no"),
        (HEAD + TEACHER.replace('["pt2"]', '["pt3"]'), "serve: expected a list"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_read_says_what_is_at_fault(tmp_path: Path, written: str, words: str) -> None:
    (tmp_path / "recipe.toml").write_text(written)
    with pytest.raises(ConfigurationError, match=words):
        read_recipe(tmp_path / "recipe.toml")


def test_a_recipe_without_data_says_how_to_give_them(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text().replace('path = "data"\n', ""))
    assert run(recipe) == 2
    assert "pass --data" in capsys.readouterr().err


def test_weights_of_another_architecture_are_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    save_file({"nothing": np.zeros(3, np.float32)}, recipe.parent / "weights.safetensors")
    step = '[[steps]]\nname = "teacher"\nkind = "load"\nweights = "weights.safetensors"\narchitecture = "tiny_cnn"\n'
    recipe.write_text(HEAD + step)
    assert run(recipe) == 2
    assert "does not hold the weights of tiny_cnn" in capsys.readouterr().err


def write_student(path: Path, seed: int) -> None:
    """Plain weights, as `safetensors` writes them, of the network that STUDENT_OF_WEIGHTS describes."""
    from offramp_compression.blueprint import Blueprint
    from safetensors.torch import save_file

    arguments = {"channels": [2, 4], "num_classes": 2, "in_channels": 1, "image_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_file(Blueprint("tiny_cnn", arguments).build().state_dict(), path)


def test_weights_that_have_changed_are_loaded_and_served_anew(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(HEAD + STUDENT_OF_WEIGHTS)
    write_student(recipe.parent / "weights.safetensors", seed=1)
    assert run(recipe, "--no-evaluation") == 0
    write_student(recipe.parent / "weights.safetensors", seed=2)
    capsys.readouterr()
    assert run(recipe, "--no-evaluation") == 0
    assert "student: load" in capsys.readouterr().out
    versions = recipe.parent / "work" / "repository" / "family-student"
    assert (versions / "1" / "model.pt2").read_bytes() != (versions / "2" / "model.pt2").read_bytes()


def test_weights_that_are_not_there_are_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(HEAD + STUDENT_OF_WEIGHTS)
    assert run(recipe) == 2
    said = capsys.readouterr().err
    assert f"step student needs {recipe.parent / 'weights.safetensors'}, which cannot be read: No such file" in said


def evaluation(name: str, accuracy: float, seconds: float, parameters: int | None = 100) -> Evaluation:
    labels = np.zeros(100, np.int64)
    logits = np.eye(2)[(np.arange(100) >= 100 * accuracy).astype(int)]
    timing = Timing(16, Estimate(seconds))
    figures = quality(logits, labels, ("a", "b"), bootstrap=Bootstrap(0))
    return Evaluation(name, "engine", parameters, 1, None, figures, (timing,))


def test_a_requirement_is_about_the_reference_and_one_model_has_to_reach_it_all() -> None:
    reference = evaluation("teacher", accuracy=0.9, seconds=1.0)
    fast_and_wrong, slow_and_right = evaluation("a", 0.5, 0.1), evaluation("b", 0.9, 1.0)
    asked = Requirement(points_lost=1.0, speedup=2.0)
    missed = verdicts_on("student", asked, reference, [fast_and_wrong, slow_and_right])
    assert [each.reached for each in missed] == [True, False]
    good = evaluation("c", 0.895, 0.4)
    reached = verdicts_on("student", asked, reference, [fast_and_wrong, good, slow_and_right])
    assert [(each.measured, each.reached) for each in reached] == [("+0.00", True), ("2.50x", True)]
    assert math.isclose(reference.timings[0].items_per_second, 16)


def test_a_recipe_is_not_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make", "nowhere.toml"]) == 2
    assert "nowhere.toml: cannot be read" in capsys.readouterr().err
    assert issubclass(ConfigurationError, OfframpError)


INT8 = """
[[steps]]
name = "int8"
kind = "quantize"
of = "teacher"
serve = ["onnx"]
max_points_lost = 100.0
"""


def test_a_quantised_model_is_served_and_found_again(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(HEAD + TEACHER + INT8)
    assert run(recipe) == 0
    model = recipe.parent / "work" / "repository" / "family-int8"
    assert (model / "1" / "model.onnx").is_file()
    assert 'provenance.method" = "quantize"' in (model / "model.toml").read_text()
    capsys.readouterr()
    assert run(recipe) == 0
    assert "int8: made before" in capsys.readouterr().out
    assert not (model / "2").exists()


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (INT8.replace('["onnx"]', '["pt2"]'), r'it makes a .onnx file, so serve can be \["onnx"\] only'),
        (INT8.replace('of = "teacher"\n', ""), 'name the step "of" which the network is quantised'),
        (STUDENT.replace('architecture = "tiny_cnn"\n', ""), 'give the student an "architecture"'),
        (STUDENT.replace('["teacher"]', "[]"), 'name at least one step in "teachers"'),
        ('[[steps]]\nname = "a"\nkind = "fine-tune"\n', 'name the step "of" which it goes on from'),
    ],
)
def test_a_step_that_cannot_be_made_is_refused_before_anything_is(tmp_path: Path, step: str, words: str) -> None:
    (tmp_path / "recipe.toml").write_text(HEAD + TEACHER + step)
    with pytest.raises(ConfigurationError, match=words):
        read_recipe(tmp_path / "recipe.toml")


def test_what_is_no_network_any_more_cannot_be_started_from(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = INT8.replace('"int8"', '"again"').replace('of = "teacher"', 'of = "int8"')
    recipe.write_text(HEAD + TEACHER + INT8 + again)
    assert run(recipe) == 2
    assert "step int8 makes a .onnx file, which cannot be trained or changed" in capsys.readouterr().err


ZEROS = """
[[steps]]
name = "zeros"
kind = "prune-weights"
of = "teacher"
sparsity = 0.6
"""


def test_the_share_of_zeros_is_said_over_all_and_by_layer(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(HEAD + TEACHER + ZEROS)
    assert run(recipe, "--no-evaluation") == 0
    said = re.search(r"^zeros: (\S+)% zeros: features.0 (\S+)%, features.4 (\S+)%, head", capsys.readouterr().out, re.M)
    assert said is not None
    assert float(said[1]) == pytest.approx(60, abs=0.5)


OTHER_CLASSES = """
[[steps]]
name = "elsewhere"
kind = "load"
weights = "elsewhere.safetensors"
"""


def write_network_of_other_classes(path: Path) -> None:
    blueprint = Blueprint("tiny_cnn", {"channels": [4, 8], "image_size": 16, "num_classes": 3})
    names = ("a", "b", "c")
    save(Network(blueprint.build().eval(), blueprint, names, ("image",), ("logits",), Provenance("test")), path)


def test_a_network_of_other_classes_is_fine_tuned_and_left_out_of_the_comparison(recipe: Path) -> None:
    write_network_of_other_classes(recipe.parent / "elsewhere.safetensors")
    tuned = """
[[steps]]
name = "tuned"
kind = "fine-tune"
of = "elsewhere"
training = { epochs = 1, batch_size = 20 }
"""
    recipe.write_text(HEAD + OTHER_CLASSES + tuned)
    assert run(recipe) == 0
    report = json.loads((recipe.parent / "work" / "report.json").read_text())
    assert [each["name"] for each in report["evaluations"]] == ["tuned (network)"]


def test_a_network_of_other_classes_cannot_be_measured_while_it_is_made_smaller(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_network_of_other_classes(recipe.parent / "elsewhere.safetensors")
    recipe.write_text(HEAD + OTHER_CLASSES + INT8.replace('"teacher"', '"elsewhere"'))
    assert run(recipe) == 2
    assert (
        "step elsewhere has the classes a, b, c and the data left, right; fine-tune it first" in capsys.readouterr().err
    )
