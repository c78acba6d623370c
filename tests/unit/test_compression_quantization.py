"""Networks in eight-bit integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from offramp_common.errors import ConfigurationError
from offramp_compression.blueprint import Blueprint
from offramp_compression.data.dataset import tensors
from offramp_compression.errors import ExportError, ModelError
from offramp_compression.export.answers import of_file, of_module
from offramp_compression.export.formats import Format
from offramp_compression.export.parity import INT8
from offramp_compression.export.publish import Target
from offramp_compression.network import Network
from offramp_compression.network_source import open_network
from offramp_compression.quantization.layers import Int8Model, Quantizer
from offramp_compression.quantization.processor import needs_reduced_range
from offramp_compression.quantization.quantize import Quantized, chosen_layers, open_quantizer, quantize
from offramp_compression.quantization.sensitivity import (
    Judge,
    Mode,
    choose_float_layers,
    logits,
    most_sensitive_first,
    scan,
    sqnr,
)
from offramp_compression.quantization.settings import CALIBRATIONS, QuantizationSettings
from offramp_server.repository.reader import read_model
from quantization_fakes import Outlier, bands, learn, network_of, tokens, trained
from torch import Tensor, nn

FORMATS: tuple[Format, ...] = ("onnx", "pt2")
Values = np.ndarray[Any, np.dtype[Any]]
LAYERS = ("features.0", "features.4", "head")
# Seconds of CPU, minutes on a machine that others keep busy.
pytestmark = pytest.mark.timeout(540)

UNSEEN = bands(60, seed=5)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def accuracy(model: Int8Model) -> float:
    return float((logits(model.answer, UNSEEN).argmax(1) == UNSEEN.labels).mean())


def written(made: Quantized, folder: Path) -> Path:
    path = folder / f"model.{made.format}"
    made.model.write(path)
    return path


def weights(path: Path) -> list[Values]:
    """Every constant of a file that has more than one dimension, but for those that normalise pixels."""
    if path.suffix == ".onnx":
        found = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    else:
        found = [tensor.detach().numpy() for tensor in torch.export.load(path).state_dict.values()]
    return [array for array in found if array.ndim > 1 and array.size > 4]


def counts(path: Path) -> tuple[int, int]:
    """How many weights are INT8, and how many FP32."""
    types = [array.dtype for array in weights(path)]
    return types.count(np.dtype(np.int8)), types.count(np.dtype(np.float32))


@pytest.fixture(scope="module")
def before() -> dict[str, Tensor]:
    """The float network's weights before anything was quantised."""
    return {name: tensor.clone() for name, tensor in trained().module.state_dict().items()}


@pytest.fixture(scope="module", params=FORMATS)
def made(request: pytest.FixtureRequest, before: dict[str, Tensor]) -> Quantized:
    return quantize(trained(), bands(), request.param)


def test_every_layer_is_in_integers_and_the_answers_stay(made: Quantized, tmp_path: Path) -> None:
    assert made.model.layers == LAYERS
    path = written(made, tmp_path)
    assert counts(path) == (3, 0)
    float_accuracy = float((logits(of_module(trained().module), UNSEEN).argmax(1) == UNSEEN.labels).mean())
    assert float_accuracy > 0.95
    assert accuracy(made.model) >= float_accuracy - 0.05


def test_the_written_file_answers_as_the_model_in_memory(made: Quantized, tmp_path: Path) -> None:
    np.testing.assert_allclose(
        logits(of_file(written(made, tmp_path)), UNSEEN), logits(made.model.answer, UNSEEN), atol=1e-5
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("reduced", "low", "high"), [(True, 60, 64), (False, 120, 128)])
def test_a_reduced_range_leaves_weights_seven_bits(
    format: Format, reduced: bool, low: int, high: int, tmp_path: Path
) -> None:
    made = quantize(trained(), bands(), format, QuantizationSettings(reduce_range=reduced))
    largest = max(np.abs(weight.astype(int)).max() for weight in weights(written(made, tmp_path)))
    assert low <= largest <= high
    assert made.network.provenance.settings["reduce_range"] is reduced


@pytest.mark.parametrize(
    ("flags", "machine", "needed"),
    [
        ("fpu avx2 avx512f", "x86_64", True),
        ("fpu avx2 avx512f avx512_vnni", "x86_64", False),
        ("fpu avx2 avx_vnni", "AMD64", False),
        ("fpu avx512f amx_tile amx_int8", "x86_64", False),
        ("asimd", "aarch64", False),
    ],
)
def test_the_range_is_reduced_where_the_processor_has_no_vnni(
    tmp_path: Path, flags: str, machine: str, needed: bool
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert needs_reduced_range(cpuinfo, machine) is needed


def test_a_processor_of_which_nothing_is_known_counts_as_one_without_vnni(tmp_path: Path) -> None:
    assert needs_reduced_range(tmp_path / "missing", "x86_64")


@pytest.mark.parametrize(
    ("format", "calibration"), [(format, name) for format in FORMATS for name in CALIBRATIONS[format][1:]]
)
def test_every_other_calibration_keeps_the_answers(format: Format, calibration: str) -> None:
    settings = QuantizationSettings(calibration=calibration)  # type: ignore[arg-type]
    made = quantize(trained(), bands(), format, settings)
    assert accuracy(made.model) > 0.9
    assert made.network.provenance.settings["calibration"] == calibration


def test_a_calibration_that_the_format_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r'"entropy" is not available for \.pt2; expected histogram or minmax'):
        quantize(trained(), bands(), "pt2", QuantizationSettings(calibration="entropy"))


@pytest.mark.parametrize("format", FORMATS)
def test_layers_that_are_named_stay_in_float(format: Format, tmp_path: Path) -> None:
    made = quantize(trained(), bands(), format, QuantizationSettings(keep_float=("features.4",)))
    assert made.model.layers == ("features.0", "head")
    assert counts(written(made, tmp_path)) == (2, 1)
    assert made.network.provenance.settings["in_float"] == ["features.4"]


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    return open_quantizer(trained(), bands(), "onnx", QuantizationSettings())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "features.1",
            r'"features.1" cannot be quantised: it is a BatchNorm2d, and only Conv1d, Conv2d and Linear can',
        ),
        ("feature.0", r'no module "feature.0"; did you mean "features.0"'),
    ],
)
def test_a_layer_that_cannot_be_quantised_is_an_error(quantizer: Quantizer, name: str, words: str) -> None:
    for settings in (QuantizationSettings(only=(name,)), QuantizationSettings(keep_float=(name,))):
        with pytest.raises(ModelError, match=words):
            chosen_layers(trained(), quantizer, settings)


def test_leaving_everything_in_float_is_an_error(quantizer: Quantizer) -> None:
    with pytest.raises(ModelError, match=r'no layer is left.*"features.0", "features.4", "head"'):
        chosen_layers(trained(), quantizer, QuantizationSettings(keep_float=("features", "head")))


def test_a_modules_name_stands_for_the_layers_in_it(quantizer: Quantizer) -> None:
    assert chosen_layers(trained(), quantizer, QuantizationSettings(only=("features",))) == {*LAYERS[:2]}


def test_a_convolution_that_torch_compile_gets_wrong_stays_in_float_and_says_why() -> None:
    network, data = trained(channels=1), bands(channels=1)
    assert quantize(network, data, "pt2").model.layers == LAYERS[1:]
    assert quantize(network, data, "onnx").model.layers == LAYERS
    with pytest.raises(ModelError, match=r"its input has one channel.* quantise it as \.onnx"):
        quantize(network, data, "pt2", QuantizationSettings(only=("features.0",)))


def test_a_network_without_such_layers_is_an_error() -> None:
    with pytest.raises(ModelError, match="those that can be are: none"):
        quantize(network_of(nn.Flatten()), bands(), "onnx")


def test_the_float_network_stays_as_it_is(made: Quantized, before: dict[str, Tensor]) -> None:
    state = made.network.module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.items())
    assert not made.network.module.training


@pytest.fixture(scope="module")
def text_network() -> Network:
    blueprint = Blueprint("text_cnn", {"vocabulary_size": 30, "dimension": 8, "channels": 6, "num_classes": 3})
    torch.manual_seed(0)
    network = network_of(blueprint.build(), blueprint, ("input_ids", "attention_mask"))
    return learn(network, tokens())


@pytest.mark.parametrize("format", FORMATS)
def test_texts_of_any_length_can_be_asked(format: Format, text_network: Network) -> None:
    variable = {"input_ids": (1,), "attention_mask": (1,)}
    made = quantize(text_network, tokens(), format, variable=variable)
    # torchao's quantiser for x86 knows no one-dimensional convolutions.
    convolutions = ("convolutions.0", "convolutions.1", "convolutions.2") if format == "onnx" else ()
    assert made.model.layers == (*convolutions, "head")
    other = tokens(30, length=12, seed=3)
    assert (logits(made.model.answer, other).argmax(1) == other.labels).mean() > 0.9


@pytest.mark.parametrize("format", FORMATS)
def test_all_products_of_a_transformer_are_quantised_and_its_mask_still_masks(format: Format) -> None:
    sizes = {"vocabulary": 30, "width": 16, "layers": 1, "heads": 2, "inner": 16, "positions": 16, "num_classes": 3}
    blueprint = Blueprint("minilm", sizes)
    torch.manual_seed(0)
    network = learn(network_of(blueprint.build(), blueprint, ("input_ids", "attention_mask")), tokens(), 30)
    made = quantize(network, tokens(), format, variable={"input_ids": (1,), "attention_mask": (1,)})
    attention = [f"encoder.layers.0.attention.{name}" for name in ("query", "key", "value", "output")]
    assert set(made.model.layers) == {*attention, "encoder.layers.0.expand", "encoder.layers.0.contract", "head"}
    ids, mask = tensors(tokens(30, length=12, seed=3))
    (logits,) = made.model.answer((ids, mask))
    assert (logits.argmax(1) == np.arange(30) % 3).mean() > 0.9
    # What is under the mask may be any token.
    (other,) = made.model.answer((torch.where(mask == 1, ids, 7), mask))
    np.testing.assert_allclose(other, logits, atol=0.2)


def test_sqnr_is_ten_for_each_power_of_ten() -> None:
    values = np.array([[3.0, 4.0]], dtype=np.float32)
    assert sqnr(values, values) == np.inf
    assert sqnr(values, values * np.float32(1.1)) == pytest.approx(20, abs=1e-3)
    assert sqnr(values, values * np.float32(1.01)) == pytest.approx(40, abs=1e-2)


@pytest.fixture(scope="module", params=FORMATS)
def outlier(request: pytest.FixtureRequest) -> Quantizer:
    return open_quantizer(network_of(Outlier()), bands(), request.param, QuantizationSettings())


def test_the_scan_finds_the_layer_that_loses_most_and_the_fallback_leaves_it_in_float(outlier: Quantizer) -> None:
    judge = Judge(network_of(Outlier()), UNSEEN)
    assert outlier.layers == ("robust", "sensitive")
    modes: tuple[Mode, ...] = ("alone", "without")
    for mode in modes:
        ranked = most_sensitive_first(scan(outlier, judge, outlier.layers, mode), mode)
        assert [each.layer for each in ranked] == ["sensitive", "robust"]
    trials: list[tuple[str, ...]] = []
    kept, model = choose_float_layers(
        outlier, judge, ["sensitive", "robust"], 0.02, lambda kept, quality: trials.append(tuple(kept))
    )
    assert trials == [(), ("sensitive",)]
    assert (kept, model.layers) == (("sensitive",), ("robust",))
    assert judge.accuracy - judge.quality(model).accuracy <= 0.02


def test_a_drop_that_no_choice_of_layers_keeps_is_an_error(outlier: Quantizer) -> None:
    judge = Judge(network_of(Outlier()), UNSEEN)
    with pytest.raises(ModelError, match=r"no layer can be quantised with at most 2\.00% of accuracy lost"):
        choose_float_layers(outlier, judge, ["sensitive"], 0.02)


def test_an_int8_model_goes_into_a_repository_with_where_it_comes_from(made: Quantized, repository: Path) -> None:
    described = made.described({"accuracy": 0.5})
    exported = described.publish(tensors(UNSEEN), Target(repository, "net", made.format))
    assert exported.parity.agreement is not None
    assert exported.parity.agreement >= INT8.agreement
    (spec,) = read_model(repository, "net")
    assert spec.metadata["provenance.method"] == "quantize"
    assert spec.metadata["provenance.parents"] == trained().digest()
    assert spec.metadata["provenance.data_digest"] == bands().digest()
    assert spec.metadata["provenance.metrics.accuracy"] == "0.5"
    assert spec.metadata["parity.reference"] == "the float network in torch eager"
    with pytest.raises(
        ModelError, match=r"net/1 has no network\.safetensors.*it is an INT8 model.*start from the model file"
    ):
        open_network(repository / "net")


def test_an_int8_model_that_answers_otherwise_than_the_float_network_is_not_written(repository: Path) -> None:
    network = network_of(Outlier())
    made = quantize(network, bands(), "onnx")
    with pytest.raises(ExportError, match=r"same arg-max for .* at least 95\.00% is wanted"):
        made.publish(tensors(UNSEEN), Target(repository, "net", "onnx"))
    assert list(repository.iterdir()) == []
