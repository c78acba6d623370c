"""`offramp evaluate`: models of every format side by side, and a report that needs nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from offramp_common.errors import OfframpError
from offramp_compression.blueprint import Blueprint
from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import ModelError
from offramp_compression.evaluation import flops
from offramp_compression.evaluation.bootstrap import Bootstrap
from offramp_compression.evaluation.evaluation import evaluate
from offramp_compression.evaluation.predict import predict, predict_exits
from offramp_compression.evaluation.subject import Subject, full_batch, open_subject
from offramp_compression.model_file import save
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance
from offramp_server.cli.main import main
from torch import Tensor, nn

NAMES = ("square", "circle", "line")


def pictures(count: int = 30) -> Dataset:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 1, 12, 12), dtype=np.uint8)
    return Dataset((images,), np.arange(count) % len(NAMES), NAMES)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    blueprint = Blueprint("torch.nn:Sequential")
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, len(NAMES)))
    return Network(module.eval(), blueprint, NAMES, ("image",), ("logits",), Provenance("test"))


def exported(folder: Path, module: nn.Module) -> tuple[Path, Path]:
    """The module as .pt2 and as .onnx, with a free batch size."""
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    program = torch.export.export(module, (torch.zeros(2, 1, 12, 12),), dynamic_shapes=(batch,))
    torch.export.save(program, folder / "made.pt2")
    write_onnx(module, folder / "made.onnx")
    return folder / "made.pt2", folder / "made.onnx"


def write_onnx(module: nn.Module, path: Path) -> None:
    """By hand, as torch's exporter takes seconds: convolution, ReLU, Flatten, Gemm."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    weights = {name.replace(".", "_"): tensor.numpy() for name, tensor in module.state_dict().items()}
    nodes = [
        helper.make_node("Conv", ["image", "0_weight", "0_bias"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "3_weight", "3_bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "made",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_every_format_answers_alike_and_counts_the_same_operations(tmp_path: Path) -> None:
    made, data = network(), pictures()
    expected = predict(made.module, data)
    for path in exported(tmp_path, made.module):
        subject = open_subject(path)
        np.testing.assert_allclose(subject.logits(data), expected, atol=1e-5)
        convolution, linear = 2 * 4 * 9 * 100, 2 * 400 * 3
        assert subject.flops(full_batch(data, 1)) == convolution + linear


def test_predicting_leaves_the_module_as_it_was_and_does_not_depend_on_the_batch_size() -> None:
    module = network().module.train()
    whole, cut = predict(module, pictures(), batch_size=30), predict(module, pictures(), batch_size=7)
    np.testing.assert_allclose(whole, cut, atol=1e-6)
    assert whole.dtype == np.float32
    assert module.training


def test_a_network_with_exits_is_judged_by_its_last() -> None:
    class TwoExits(nn.Module):
        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            mean = image.mean(dim=(1, 2, 3))[:, None]
            return mean, 2 * mean

    first, last = predict_exits(TwoExits(), pictures())
    np.testing.assert_allclose(2 * first, last)
    np.testing.assert_array_equal(predict(TwoExits(), pictures()), last)


def test_pixels_come_to_the_model_between_0_and_1() -> None:
    data = pictures()
    seen = predict(nn.Flatten(), data)
    np.testing.assert_allclose(seen, data.inputs[0].reshape(30, -1) / 255, atol=1e-7)


def subject(name: str, logits: np.ndarray) -> Subject:
    """A model that answers the first rows of ``logits``, whatever it is asked."""
    return Subject(name, "made up", lambda arrays: logits[: len(arrays[0])], 7, 100, lambda arrays: None)


def test_agreement_is_with_the_reference_even_if_that_is_not_one_of_the_models() -> None:
    data = pictures()
    right, wrong = np.eye(3)[data.labels], np.eye(3)[(data.labels + 1) % 3]
    found = evaluate(
        [subject("right", right), subject("wrong", wrong)], data,
        reference=subject("teacher", wrong), batch_sizes=(1,), bootstrap=Bootstrap(10),
    )  # fmt: skip
    figures = {each.name: (each.quality.accuracy.value, each.quality.agreement) for each in found}
    assert figures["right"][0] == 1.0
    assert figures["right"][1] is not None
    assert figures["right"][1].value == 0.0
    assert figures["wrong"][1] is not None
    assert figures["wrong"][1].value == 1.0


def test_a_reference_that_is_called_like_a_model_is_asked_itself() -> None:
    data = pictures()
    right, wrong = np.eye(3)[data.labels], np.eye(3)[(data.labels + 1) % 3]
    found = evaluate(
        [subject("network", right)], data,
        reference=subject("network", wrong), batch_sizes=(1,), bootstrap=Bootstrap(10),
    )  # fmt: skip
    assert found[0].quality.agreement is not None
    assert found[0].quality.agreement.value == 0.0


def test_a_model_of_the_same_classes_in_another_order_is_refused() -> None:
    backwards = replace(subject("backwards", np.zeros((30, 3))), class_names=NAMES[::-1])
    with pytest.raises(ModelError, match="the model has line, circle, square and the data square, circle, line"):
        evaluate([backwards], pictures())


def test_a_model_with_other_classes_than_the_data_is_refused() -> None:
    with pytest.raises(ModelError, match=r"answers with shape \[30, 4\]; 30 examples of 3 classes need \[30, 3\]"):
        evaluate([subject("other", np.zeros((30, 4)))], pictures())


def test_a_model_that_answers_nan_is_refused() -> None:
    with pytest.raises(ModelError, match="answers with NaN or infinity"):
        evaluate([subject("broken", np.full((30, 3), np.nan))], pictures())


@dataclass
class Files:
    data: Path
    pt2: Path
    onnx: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("evaluate")
    data = pictures()
    np.savez(folder / "data.npz", x=data.inputs[0], labels=data.labels, class_names=np.asarray(NAMES))
    pt2, onnx = exported(folder, network().module)
    return Files(folder / "data.npz", pt2, onnx)


def options(files: Files, *more: str) -> list[str]:
    return ["--data", str(files.data), "--resamples", "10", "--threads", "1", *more]


def test_the_command_prints_a_table_and_writes_a_report_that_needs_nothing_else(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, figures = tmp_path / "report.html", tmp_path / "figures.json"
    models = [f"teacher={files.pt2}", f"student={files.onnx}"]
    outputs = ["--html", str(page), "--json", str(figures)]
    assert main(["evaluate", *models, "--reference", str(files.pt2), *outputs, *options(files)]) == 0
    printed = capsys.readouterr().out
    assert "teacher" in printed
    assert "100.00%" in printed  # the student agrees: it is the same network
    html = page.read_text()
    # Frontiers of two batch sizes, and two pictures for each model.
    assert html.count("<img ") == html.count("data:image/svg+xml;base64,") == 6
    assert "http" not in html
    for name in NAMES:
        assert f"<td>{name}</td>" in html
    content = json.loads(figures.read_text())
    rows = {each["name"]: each for each in content["evaluations"]}
    assert rows["student"]["quality"]["agreement"]["value"] == 1.0
    assert rows["teacher"]["parameters"] == 4 * 9 + 4 + 400 * 3 + 3
    assert np.sum(rows["teacher"]["quality"]["confusion"]) == 30


def test_a_model_file_is_evaluated_too(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blueprint = Blueprint("tiny_cnn", {"num_classes": 3})
    made = Network(blueprint.build().eval(), blueprint, NAMES, ("image",), ("logits",), Provenance("test"))
    data = Dataset((np.zeros((6, 1, 28, 28), np.uint8),), np.arange(6) % 3, NAMES)
    np.savez(tmp_path / "data.npz", x=data.inputs[0], labels=data.labels, class_names=np.asarray(NAMES))
    save(made, tmp_path / "tiny.safetensors")
    command = ["evaluate", str(tmp_path / "tiny.safetensors"), "--data", str(tmp_path / "data.npz"), "--threads", "1"]
    assert main([*command, "--resamples", "5"]) == 0
    assert "torch eager" in capsys.readouterr().out


@pytest.fixture
def tiny(tmp_path: Path) -> Network:
    """Of the classes that `files` have, in another order."""
    names = NAMES[::-1]
    blueprint = Blueprint("tiny_cnn", {"channels": [4], "image_size": 12, "num_classes": len(names)})
    return Network(blueprint.build().eval(), blueprint, names, ("image",), ("logits",), Provenance("test"))


def test_labels_are_counted_in_the_order_of_the_models_classes(tiny: Network, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny.module.get_parameter("head.bias").copy_(torch.tensor([1e6, 0, 0]))  # always the line
    save(tiny, tmp_path / "tiny.safetensors")
    labels = np.repeat([0, 1, 2], (20, 7, 3))
    np.savez(tmp_path / "data.npz", x=pictures().inputs[0], labels=labels, class_names=np.asarray(NAMES))
    found = tmp_path / "figures.json"
    command = ["evaluate", str(tmp_path / "tiny.safetensors"), "--data", str(tmp_path / "data.npz"), "--threads", "1"]
    assert main([*command, "--json", str(found), "--resamples", "5"]) == 0
    (figures,) = json.loads(found.read_text())["evaluations"]
    assert figures["quality"]["accuracy"]["value"] == pytest.approx(3 / 30)


def test_models_of_different_classes_are_not_put_side_by_side(
    files: Files, tiny: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny, tmp_path / "tiny.safetensors")
    save(replace(tiny, class_names=NAMES), tmp_path / "other.safetensors")
    models = [str(tmp_path / f"{name}.safetensors") for name in ("tiny", "other")]
    assert main(["evaluate", *models, *options(files)]) == 2
    assert "other and tiny do not have the same classes in the same order" in capsys.readouterr().err


def test_a_models_folder_stands_for_its_highest_version(files: Files, tmp_path: Path) -> None:
    for version in ("2", "10"):
        (tmp_path / "model" / version).mkdir(parents=True)
    (tmp_path / "model" / "10" / "model.onnx").write_bytes(files.onnx.read_bytes())
    (tmp_path / "model" / "2" / "model.pt2").write_bytes(files.pt2.read_bytes())
    found = open_subject(tmp_path / "model")
    assert (found.name, found.engine) == ("model", "onnxruntime")


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"", "model.bin", "is not a model: expected .safetensors"),
        (b"zip", "model.pt2", "not a complete zip archive"),
        (b"onnx", "model.onnx", "cannot be opened by ONNX Runtime"),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_a_sentence(
    tmp_path: Path, content: bytes, name: str, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OfframpError, match=words):
        open_subject(tmp_path / name)


def test_a_path_that_does_not_exist_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "nowhere.pt2", *options(files)]) == 2
    assert "nowhere.pt2 does not exist" in capsys.readouterr().err


def test_a_path_may_hold_an_equals_sign(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rate=0.1" / "made.pt2"
    path.parent.mkdir()
    path.write_bytes(files.pt2.read_bytes())
    assert main(["evaluate", str(path), "--batch-sizes", "1", *options(files)]) == 0
    assert "\nmade " in capsys.readouterr().out


def test_two_models_of_one_name_are_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(files.pt2), str(files.onnx), *options(files)]) == 2
    assert "two models are called made" in capsys.readouterr().err


def test_operations_of_an_onnx_model_with_open_shapes_are_not_made_up(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save_model

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])], "open",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "b")],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)],
    )  # fmt: skip
    save_model(helper.make_model(graph), tmp_path / "open.onnx")
    assert flops.of_onnx(tmp_path / "open.onnx", ()) is None


def test_a_program_that_would_unpickle_something_is_refused(files: Files, tmp_path: Path) -> None:
    import zipfile

    hostile = tmp_path / "hostile.pt2"
    with zipfile.ZipFile(files.pt2) as source, zipfile.ZipFile(hostile, "w") as target:
        for entry in source.infolist():
            target.writestr(entry, source.read(entry))
        folder = source.namelist()[0].split("/")[0]
        target.writestr(f"{folder}/data/constants/payload.pt", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
    with pytest.raises(ModelError, match=r"hostile\.pt2"):
        open_subject(hostile)
