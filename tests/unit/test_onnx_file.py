"""An `.onnx` file says what it takes and returns, and which files beside it belong to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from model_files import (
    ONNX_TYPES,
    write_add_sub_onnx,
    write_identity_onnx,
    write_linear_onnx,
    write_sequence_onnx,
)
from offramp_common.formats.onnx_file import read_onnx
from offramp_server.errors import LoadError
from onnx import helper


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def edit(path: Path, change: Any) -> None:
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def test_inputs_and_outputs_keep_the_names_of_the_file(path: Path) -> None:
    source = read_onnx(write_add_sub_onnx(path))

    assert source.named
    assert [(tensor.name, tensor.datatype) for tensor in source.inputs] == [("INPUT0", "INT32"), ("INPUT1", "INT32")]
    assert [tensor.name for tensor in source.outputs] == ["OUTPUT0", "OUTPUT1"]


def test_named_dimensions_become_symbols_and_nameless_ones_vary_freely(path: Path) -> None:
    dimensions = read_onnx(write_identity_onnx(path, "FP32", ["batch", None, 4])).inputs[0].dimensions

    assert dimensions is not None
    assert [(dimension.size, dimension.symbol) for dimension in dimensions] == [
        (None, "batch"),
        (None, None),
        (4, None),
    ]


@pytest.mark.parametrize("datatype", ONNX_TYPES)
def test_every_datatype_of_the_protocol_is_read_strings_as_bytes(datatype: str, path: Path) -> None:
    assert read_onnx(write_identity_onnx(path, datatype)).inputs[0].datatype == datatype


def test_weights_that_old_exporters_list_among_the_inputs_are_not_asked_of_clients(path: Path) -> None:
    write_linear_onnx(path)
    weight = helper.make_tensor_value_info("weight", onnx.TensorProto.FLOAT, [4, 3])
    edit(path, lambda model: model.graph.input.append(weight))

    assert [tensor.name for tensor in read_onnx(path).inputs] == ["x"]


def test_an_output_without_a_shape_is_left_for_model_toml_to_declare(path: Path) -> None:
    write_sequence_onnx(path)
    edit(path, lambda model: model.graph.output[0].type.tensor_type.ClearField("shape"))
    assert read_onnx(path).outputs[0].dimensions is None


def test_opset_and_producer_are_kept_for_people(path: Path) -> None:
    write_linear_onnx(path)

    def name_producer(model: Any) -> None:
        model.producer_name, model.producer_version = "pytorch", "2.13.0"

    edit(path, name_producer)
    assert read_onnx(path).provenance == {"onnx_opset": "ai.onnx 18", "producer": "pytorch 2.13.0"}


def test_external_data_is_found(path: Path) -> None:
    source = read_onnx(write_linear_onnx(path, external="model.onnx.data"))
    assert source.external == (path.parent / "model.onnx.data",)


def test_external_data_of_a_branch_is_found_too(path: Path) -> None:
    write_linear_onnx(path, external="model.onnx.data")

    def move_into_branch(model: Any) -> None:
        weight = model.graph.initializer[0]
        branch = helper.make_graph([], "then", [], [], [weight])
        node = helper.make_node("If", ["c"], ["z"], then_branch=branch)
        model.graph.node.append(node)
        del model.graph.initializer[0]

    edit(path, move_into_branch)
    assert read_onnx(path).external == (path.parent / "model.onnx.data",)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", ".", ""])
def test_external_data_outside_the_versions_folder_is_refused(location: str, tmp_path: Path) -> None:
    path = write_linear_onnx(tmp_path / "1" / "model.onnx", external="data")
    (tmp_path / "secret").write_bytes(bytes(100))
    edit(path, lambda model: relocate(model, "location", location))
    with pytest.raises(LoadError, match=r'model\.onnx: tensor "weight" has its data in ".*"; expected a file in'):
        read_onnx(path)


def relocate(model: Any, key: str, value: str) -> None:
    for entry in model.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = value


def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = write_linear_onnx(tmp_path / "1" / "model.onnx", external="data")
    (tmp_path / "1" / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "1" / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LoadError, match="expected a file in"):
        read_onnx(path)


def test_external_data_that_is_missing_or_too_short_is_refused(path: Path) -> None:
    write_linear_onnx(path, external="model.onnx.data")
    data = path.parent / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(LoadError, match=r'tensor "weight" ends at byte 48 of "model.onnx.data", which has 47'):
        read_onnx(path)
    data.unlink()
    with pytest.raises(LoadError, match=r'has its data in "model.onnx.data", which is missing'):
        read_onnx(path)
    data.write_bytes(bytes(48))
    edit(path, lambda model: relocate(model, "offset", "-8"))
    with pytest.raises(LoadError, match="starts at byte -8"):
        read_onnx(path)
    edit(path, lambda model: relocate(model, "offset", "many"))
    with pytest.raises(LoadError, match="an offset or a length that is not a number"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("onnx_type", "name"), [(onnx.TensorProto.COMPLEX64, "COMPLEX64"), (onnx.TensorProto.FLOAT8E4M3FN, "FLOAT8E4M3FN")]
)
def test_a_datatype_that_does_not_travel_is_refused_by_name(onnx_type: int, name: str, path: Path) -> None:
    write_identity_onnx(path)
    edit(path, lambda model: model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx_type, [1])))
    with pytest.raises(LoadError, match=f'input "x" is {name}, which the protocol cannot carry; expected one of FP32'):
        read_onnx(path)


def test_sequences_and_maps_are_refused(path: Path) -> None:
    write_identity_onnx(path)
    sequence = helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, [1])
    edit(path, lambda model: model.graph.output[0].CopyFrom(sequence))
    with pytest.raises(LoadError, match='output "y" is a sequence_type; only tensors can be served'):
        read_onnx(path)


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"\x08\x09", b"\xff" * 64])
def test_a_file_that_is_not_a_model_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(LoadError, match=r"model\.onnx: not an ONNX model"):
        read_onnx(path)


def test_a_truncated_model_is_refused(path: Path) -> None:
    write_linear_onnx(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(LoadError, match=r"model\.onnx: not an ONNX model, or truncated"):
        read_onnx(path)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(LoadError, match=r"model\.onnx: cannot be read: No such file"):
        read_onnx(path)


@pytest.mark.parametrize("operator", ["QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger"])
def test_a_file_that_computes_in_integers_says_so(path: Path, operator: str) -> None:
    write_identity_onnx(path)
    assert not read_onnx(path).quantized

    def insert(model: Any) -> None:
        model.graph.node.append(helper.make_node(operator, ["a"], ["b"]))

    edit(path, insert)
    assert read_onnx(path).quantized
