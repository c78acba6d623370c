"""Networks written as versions of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from export_fakes import CLASS_NAMES, images, network_of, tiny_network
from offramp_compression.errors import ExportError
from offramp_compression.export.answers import of_file
from offramp_compression.export.formats import Format
from offramp_compression.export.parity import FLOAT
from offramp_compression.export.program import Signature
from offramp_compression.export.publish import Target, check, export_network, publish
from offramp_server.repository.reader import read_model
from torch import Tensor, nn

FORMATS: tuple[Format, ...] = ("pt2", "onnx")


@pytest.mark.parametrize("format", FORMATS)
def test_a_written_model_answers_as_the_network_and_the_server_can_read_it(repository: Path, format: Format) -> None:
    network, rows = tiny_network(), images()
    exported = export_network(network, [rows], Target(repository, "net", format, max_batch_size=8, manifest=True))
    assert exported.folder == repository / "net" / "1"
    assert exported.parity.agreement == 1.0
    assert exported.parity.rows == len(rows)
    with torch.inference_mode():
        expected = network.module(rows).numpy()
    (answer,) = of_file(exported.file)([rows])
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    (spec,) = read_model(repository, "net")
    assert (spec.version, spec.max_batch_size, spec.format) == (1, 8, format)
    assert [(tensor.name, tensor.datatype, tensor.dims) for tensor in spec.inputs] == [("image", "FP32", (1, 12, 12))]
    assert [(tensor.name, tensor.dims, tensor.labels) for tensor in spec.outputs] == [("logits", (3,), CLASS_NAMES)]
    assert spec.metadata["provenance.method"] == "train"
    assert spec.metadata["provenance.data_digest"] == "d1g35t"
    assert spec.metadata["provenance.metrics.accuracy"] == "0.75"
    assert spec.metadata["parity.reference"] == "torch eager"
    assert float(spec.metadata["parity.largest_difference"]) == pytest.approx(exported.parity.difference, rel=0.01)


def test_a_model_gets_its_next_version(repository: Path) -> None:
    for expected in ("1", "2"):
        exported = export_network(tiny_network(), [images()], Target(repository, "net", "pt2"))
        assert exported.folder.name == expected
    assert [spec.version for spec in read_model(repository, "net")] == [2]


def test_no_example_of_the_data_gets_into_the_file(repository: Path) -> None:
    marked = torch.full_like(images(4), 0.123456789)
    exported = export_network(tiny_network(), [marked], Target(repository, "net", "pt2"))
    assert marked[0, 0, 0].numpy().tobytes() not in exported.file.read_bytes()


class Inner(nn.Module):
    """Its graph has a value that is called like its output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)

    def forward(self, ids: Tensor) -> Tensor:
        vectors: Tensor = self.embedding(ids).mean(1)
        return vectors


@pytest.mark.parametrize(("given", "returned"), [("ids", "embedding"), ("embedding", "mean")])
def test_inputs_and_outputs_may_be_called_like_values_inside_the_graph(
    repository: Path, given: str, returned: str
) -> None:
    ids = torch.randint(0, 5, (6, 3))
    network = network_of(Inner(), inputs=(given,), outputs=(returned,))
    exported = export_network(network, [ids], Target(repository, "net", "onnx"))
    (spec,) = read_model(repository, "net")
    assert [tensor.name for tensor in (*spec.inputs, *spec.outputs)] == [given, returned]
    assert exported.parity.difference < 1e-6


class Bag(nn.Module):
    """Ids and a mask, [N, L] each, to scores [N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(ids) * mask.unsqueeze(-1)
        return hidden.sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize("format", FORMATS)
def test_the_length_of_a_text_may_vary(repository: Path, format: Format) -> None:
    network = network_of(Bag(), inputs=("input_ids", "attention_mask"))
    ids = torch.randint(0, 10, (6, 7))
    variable = {"input_ids": (1,), "attention_mask": (1,)}
    exported = export_network(
        network, [ids, torch.ones_like(ids)], Target(repository, "net", format), variable=variable
    )
    (spec,) = read_model(repository, "net")
    assert [(tensor.name, tensor.datatype, tensor.dims) for tensor in spec.inputs] == [
        ("input_ids", "INT64", (-1,)),
        ("attention_mask", "INT64", (-1,)),
    ]
    assert of_file(exported.file)([ids[:3, :4], torch.ones_like(ids[:3, :4])])[0].shape == (3, 3)


class Several(nn.Module):
    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[0] + inputs[1], inputs[0].sum(1, keepdim=True)


@pytest.mark.parametrize("format", FORMATS)
def test_several_inputs_and_outputs_keep_their_names(repository: Path, format: Format) -> None:
    network = network_of(Several(), inputs=("left", "right"), outputs=("both", "total"))
    export_network(network, [torch.rand(5, 2), torch.rand(5, 2)], Target(repository, "net", format))
    (spec,) = read_model(repository, "net")
    assert [tensor.name for tensor in spec.inputs] == ["left", "right"]
    assert [tensor.name for tensor in spec.outputs] == ["both", "total"]


class Random(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.dropout(image.flatten(1), 0.5, training=True)


class LooksAtValues(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1) if image.sum() > 0 else -image.flatten(1)


class LooksAtRows(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1) * (2 if image.shape[0] > 4 else 1)


class Mean(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean(0)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Random(), "differs by"),
        (LooksAtValues(), "cannot be exported"),
        (LooksAtRows(), "cannot be exported"),
        (Mean(), "does not follow the batch"),
    ],
)
def test_a_network_that_cannot_be_served_is_refused_and_nothing_is_written(
    repository: Path, module: nn.Module, words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        export_network(network_of(module), [images()], Target(repository, "net", "pt2"))
    assert list(repository.iterdir()) == []


@pytest.mark.parametrize(
    ("outputs", "inputs", "words"),
    [(("a", "b"), ("image",), "returns 1 tensors and 2 outputs are named"), (("a",), ("x", "y"), "1 inputs are given")],
)
def test_names_have_to_fit_the_network(
    repository: Path, outputs: tuple[str, ...], inputs: tuple[str, ...], words: str
) -> None:
    network = network_of(tiny_network().module, inputs=inputs, outputs=outputs)
    with pytest.raises(ExportError, match=words):
        export_network(network, [images()], Target(repository, "net", "pt2"))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"format": "h5"}, 'no format "h5"; expected pt2 or onnx'),
        ({"backend": "torch-eager", "format": "onnx"}, 'engine "torch-eager" cannot run a .onnx file; one of "auto"'),
        ({"max_batch_size": 5000}, "max_batch_size = 5000: expected 1 to 1024"),
        ({"name": "../out"}, "cannot be the name"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_any_work(
    repository: Path, target: dict[str, object], words: str
) -> None:
    fields = {"repository": repository, "name": "net", "format": "pt2", **target}
    with pytest.raises(ExportError, match=words):
        check(Target(**fields))  # type: ignore[arg-type]


def test_a_damaged_file_is_never_installed(repository: Path) -> None:
    target = Target(repository, "net", "onnx")
    export_network(tiny_network(), [images()], target)
    before = sorted(repository.rglob("*"))

    def write(path: Path) -> None:
        path.write_bytes(b"not a model")

    with pytest.raises(ExportError, match="cannot be loaded"):
        publish(tiny_network(), Signature((), ()), write, [images()], target, FLOAT)
    assert sorted(repository.rglob("*")) == before
