"""A model's folder becomes what is served: read from the file, narrowed by model.toml, refused where they disagree."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from model_files import (
    export_add_sub,
    export_linear,
    export_module,
    export_sequence,
    write_add_sub_onnx,
    write_identity_onnx,
    write_linear_onnx,
    write_sequence_onnx,
)
from offramp_server.errors import ConfigurationError, LoadError, NotFound, OfframpError
from offramp_server.model_spec import ModelSpec
from offramp_server.repository.reader import check_repository, folder_names, read_model


def read_one(repository: Path, name: str = "m") -> ModelSpec:
    (spec,) = read_model(repository, name)
    return spec


def write_toml(repository: Path, text: str, name: str = "m") -> None:
    (repository / name).mkdir(exist_ok=True, parents=True)
    (repository / name / "model.toml").write_text(text)


def refusal(repository: Path, kind: type[OfframpError], name: str = "m") -> str:
    with pytest.raises(kind) as caught:
        read_model(repository, name)
    return str(caught.value)


# Without a model.toml


def test_a_pt2_alone_is_served_with_what_its_file_says(tmp_path: Path) -> None:
    path = export_linear(tmp_path / "m" / "3" / "model.pt2")

    spec = read_one(tmp_path)

    assert (spec.name, spec.version, spec.format, spec.path) == ("m", 3, "pt2", path)
    assert [(tensor.name, tensor.datatype, tensor.dims) for tensor in spec.inputs] == [("x", "FP32", (4,))]
    assert [(tensor.name, tensor.datatype, tensor.dims) for tensor in spec.outputs] == [("output0", "FP32", (3,))]
    assert spec.max_batch_size == 16
    assert spec.size_bytes == path.stat().st_size
    assert spec.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert spec.metadata["torch_version"].startswith("2.")


def test_an_onnx_alone_is_served_with_what_its_file_says(tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")

    spec = read_one(tmp_path)

    assert (spec.format, spec.max_batch_size) == ("onnx", 16)
    assert [(tensor.name, tensor.dims, tensor.source) for tensor in (*spec.inputs, *spec.outputs)] == [
        ("x", (4,), ""),
        ("y", (3,), ""),
    ]


def test_the_strings_of_an_onnx_have_to_be_utf8(tmp_path: Path) -> None:
    for datatype in ("BYTES", "FP32"):
        write_identity_onnx(tmp_path / datatype / "1" / "model.onnx", datatype)
        [spec] = read_model(tmp_path, datatype)
        assert [tensor.utf8 for tensor in (*spec.inputs, *spec.outputs)] == [datatype == "BYTES"] * 2


def test_external_data_belongs_to_the_digest_and_the_size(tmp_path: Path) -> None:
    path = write_linear_onnx(tmp_path / "m" / "1" / "model.onnx", external="model.onnx.data")
    before = read_one(tmp_path)
    data = path.parent / "model.onnx.data"
    data.write_bytes(bytes(len(data.read_bytes())))

    after = read_one(tmp_path)

    assert before.digest != after.digest
    assert after.size_bytes == path.stat().st_size + data.stat().st_size


# Batching


def test_a_smaller_bound_of_the_file_limits_the_batch(tmp_path: Path) -> None:
    export_linear(tmp_path / "m" / "1" / "model.pt2", max_batch=8)
    assert read_one(tmp_path).max_batch_size == 8


@pytest.mark.parametrize("file", ["model.pt2", "model.onnx"])
def test_a_static_first_dimension_means_one_request_at_a_time(file: str, tmp_path: Path) -> None:
    path = tmp_path / "m" / "1" / file
    if file == "model.pt2":
        export_add_sub(path, max_batch=None)
    else:
        write_add_sub_onnx(path, batch=1)

    spec = read_one(tmp_path)

    assert spec.max_batch_size == 0
    assert spec.inputs[0].dims == (1, 16)


def test_max_batch_size_may_be_raised_to_what_the_file_allows(tmp_path: Path) -> None:
    export_linear(tmp_path / "m" / "1" / "model.pt2", max_batch=32)
    write_toml(tmp_path, "max_batch_size = 32")
    assert read_one(tmp_path).max_batch_size == 32

    write_toml(tmp_path, "max_batch_size = 33")
    assert "max_batch_size = 33, but" in (sentence := refusal(tmp_path, ConfigurationError))
    assert "takes batches of at most 32" in sentence


def test_max_batch_size_0_serves_a_model_with_a_variable_first_dimension_unbatched(tmp_path: Path) -> None:
    export_linear(tmp_path / "m" / "1" / "model.pt2", max_batch=32)
    write_toml(tmp_path, "max_batch_size = 0")

    spec = read_one(tmp_path)

    assert not spec.batches
    assert spec.inputs[0].dims == (-1, 4)
    assert spec.inputs[0].ranges[0] == (1, 32)


def test_batching_a_static_pt2_is_refused_with_the_export_that_would_work(tmp_path: Path) -> None:
    export_linear(tmp_path / "m" / "1" / "model.pt2", max_batch=None)
    write_toml(tmp_path, "max_batch_size = 8")

    sentence = refusal(tmp_path, ConfigurationError)

    assert 'the first dimension of input "x" FP32[1,4] does not vary' in sentence
    assert 'batch = torch.export.Dim("batch", min=1, max=8) and dynamic_shapes={"x": {0: batch}}' in sentence


def test_batching_a_static_onnx_is_refused(tmp_path: Path) -> None:
    write_add_sub_onnx(tmp_path / "m" / "1" / "model.onnx", batch=1)
    write_toml(tmp_path, "max_batch_size = 8")
    assert "Export it again with a first dimension that varies" in refusal(tmp_path, ConfigurationError)


def test_a_model_that_needs_two_items_at_least_is_not_batched(tmp_path: Path) -> None:
    import torch
    from model_files import Linear

    dims = ({0: torch.export.Dim("batch", min=4, max=8)},)
    path = tmp_path / "m" / "1" / "model.pt2"
    path.parent.mkdir(parents=True)
    path.write_bytes(export_module(Linear(4, 3), (torch.ones(4, 4),), dynamic_shapes=dims))

    assert not read_one(tmp_path).batches
    write_toml(tmp_path, "max_batch_size = 8")
    assert "takes 4 items or more, and a batch of one must be possible" in refusal(tmp_path, ConfigurationError)


def test_a_model_whose_items_depend_on_each_other_is_not_batched(tmp_path: Path) -> None:
    import torch

    class Similarity(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x.T

    dims = ({0: torch.export.Dim("batch", min=1, max=8)},)
    path = tmp_path / "m" / "1" / "model.pt2"
    path.parent.mkdir(parents=True)
    path.write_bytes(export_module(Similarity(), (torch.ones(3, 4),), dynamic_shapes=dims))

    assert not read_one(tmp_path).batches
    write_toml(tmp_path, "max_batch_size = 8")
    assert "the first dimension also decides another one of output" in refusal(tmp_path, ConfigurationError)


def test_inputs_whose_first_dimensions_vary_independently_are_not_batched(tmp_path: Path) -> None:
    import torch

    class Outer(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a[:, None] * b.sum()

    dims = ({0: torch.export.Dim("n", min=1, max=8)}, {0: torch.export.Dim("m", min=1, max=8)})
    path = tmp_path / "m" / "1" / "model.pt2"
    path.parent.mkdir(parents=True)
    path.write_bytes(export_module(Outer(), (torch.ones(3), torch.ones(5)), dynamic_shapes=dims))

    assert not read_one(tmp_path).batches
    write_toml(tmp_path, "max_batch_size = 8")
    assert "the first dimensions vary independently" in refusal(tmp_path, ConfigurationError)


# Names and shapes


def test_in_a_pt2_tables_name_arguments_and_results_by_position(tmp_path: Path) -> None:
    export_add_sub(tmp_path / "m" / "1" / "model.pt2")

    spec = read_one(tmp_path)

    assert [(tensor.name, tensor.source) for tensor in spec.inputs] == [("INPUT0", "input0"), ("INPUT1", "input1")]
    assert [tensor.name for tensor in spec.outputs] == ["OUTPUT0", "OUTPUT1"]


def test_in_a_pt2_every_argument_has_to_be_named_if_one_is(tmp_path: Path) -> None:
    export_add_sub(tmp_path / "m" / "1" / "model.pt2", toml=False)
    write_toml(tmp_path, '[[inputs]]\nname = "a"')
    assert 'inputs: 1 are declared, but the file has 2 ("input0", "input1")' in refusal(tmp_path, ConfigurationError)


def test_in_an_onnx_tables_are_matched_by_name_and_may_rename(tmp_path: Path) -> None:
    write_add_sub_onnx(tmp_path / "m" / "1" / "model.onnx")
    write_toml(
        tmp_path,
        '[[inputs]]\nname = "INPUT1"\n[[inputs]]\nname = "left"\nsource = "INPUT0"\n[[outputs]]\nname = "OUTPUT1"',
    )

    spec = read_one(tmp_path)

    assert [(tensor.name, tensor.source) for tensor in spec.inputs] == [("INPUT1", ""), ("left", "INPUT0")]
    assert [tensor.name for tensor in spec.outputs] == ["OUTPUT1"], "outputs that are not declared are not served"


def test_in_an_onnx_a_name_that_is_not_there_or_an_input_left_out_is_refused(tmp_path: Path) -> None:
    write_add_sub_onnx(tmp_path / "m" / "1" / "model.onnx")
    write_toml(tmp_path, '[[inputs]]\nname = "INPUT7"')
    assert '"INPUT7" is not in the file, which has "INPUT0", "INPUT1"' in refusal(tmp_path, ConfigurationError)
    write_toml(tmp_path, '[[inputs]]\nname = "INPUT0"')
    assert '"INPUT1" of the file is not declared' in refusal(tmp_path, ConfigurationError)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('datatype = "FP16"', 'inputs: "x": declared FP16[4], the file has FP32[4] (the batch dimension left out)'),
        ("dims = [5]", 'inputs: "x": declared FP32[5], the file has FP32[4] (the batch dimension left out)'),
        ("dims = [-1, 4]", 'inputs: "x": declared FP32[-1,4], the file has FP32[4]'),
        ("dims = [-1]", 'inputs: "x": declared FP32[-1], the file has FP32[4]'),
        ("dims = [0]", "inputs[0].dims: expected a list, each element at least 1, or -1 where it varies"),
        ('datatype = "FLOAT"', 'inputs[0].datatype: expected "BOOL", "UINT8"'),
    ],
)
@pytest.mark.parametrize("file", ["model.pt2", "model.onnx"])
def test_a_declaration_that_disagrees_with_the_file_shows_both(
    file: str, table: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "m" / "1" / file
    export_linear(path) if file == "model.pt2" else write_linear_onnx(path)
    write_toml(tmp_path, f'[[inputs]]\nname = "x"\n{table}')
    assert sentence in refusal(tmp_path, ConfigurationError)


def test_a_declaration_that_agrees_with_the_file_is_fine(tmp_path: Path) -> None:
    export_linear(tmp_path / "m" / "1" / "model.pt2")
    write_toml(tmp_path, '[[inputs]]\nname = "features"\ndatatype = "FP32"\ndims = [4]')
    assert read_one(tmp_path).inputs[0].name == "features"


def test_variable_dimensions_that_belong_together_share_a_symbol_and_have_bounds(tmp_path: Path) -> None:
    export_sequence(tmp_path / "m" / "1" / "model.pt2", max_length=64)

    tokens, mask = read_one(tmp_path).inputs

    assert (tokens.dims, mask.dims) == ((-1, 4), (-1,))
    assert tokens.symbols[0] is not None
    assert tokens.symbols[0] == mask.symbols[0]
    assert (tokens.ranges[0], mask.ranges[0]) == ((1, 64), (1, 64))


def test_names_of_onnx_dimensions_become_symbols(tmp_path: Path) -> None:
    write_sequence_onnx(tmp_path / "m" / "1" / "model.onnx")
    assert read_one(tmp_path).inputs[0].symbols == ("length", None)


def test_a_variable_dimension_may_be_narrowed_within_its_bounds(tmp_path: Path) -> None:
    export_sequence(tmp_path / "m" / "1" / "model.pt2", max_length=64)
    tables = '[[inputs]]\nname = "tokens"\ndims = [{0}, 4]\n[[inputs]]\nname = "mask"\ndims = [{0}]'
    write_toml(tmp_path, tables.format(32))
    assert read_one(tmp_path).inputs[0].dims == (32, 4)

    write_toml(tmp_path, tables.format(65))
    assert 'inputs: "tokens": declared FP32[65,4], the file has' in refusal(tmp_path, ConfigurationError)


def test_an_output_whose_shape_the_file_does_not_say_has_to_be_declared(tmp_path: Path) -> None:
    import onnx

    path = write_identity_onnx(tmp_path / "m" / "1" / "model.onnx")
    model = onnx.load(str(path))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())

    assert 'the file does not say the shape of "y"; declare its dims' in refusal(tmp_path, ConfigurationError)
    write_toml(tmp_path, '[[outputs]]\nname = "y"\ndims = [-1, 4]')
    assert read_one(tmp_path).outputs[0].dims == (-1, 4)


# model.toml


def test_all_settings_of_a_model_reach_its_spec(tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")
    write_toml(
        tmp_path,
        """
max_batch_size = 4
[engine]
backend = "onnxruntime"
device = "cpu"
instances = 2
threads = 1
[batching]
max_queue_items = 7
default_timeout = 0.5
[warmup]
batch_sizes = [1, 4]
variable_dim = 3
iterations = 2
[metadata]
trained_on = "Tuesday"
""",
    )

    spec = read_one(tmp_path)

    assert spec.max_batch_size == 4
    assert (spec.engine.backend, spec.engine.instances, spec.engine.threads) == ("onnxruntime", 2, 1)
    assert (spec.batching.max_queue_items, spec.batching.default_timeout) == (7, 0.5)
    assert (spec.warmup.batch_sizes, spec.warmup.variable_dim, spec.warmup.iterations) == ((1, 4), 3, 2)
    assert spec.metadata["trained_on"] == "Tuesday"
    assert spec.metadata["onnx_opset"] == "ai.onnx 18"


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("max_batchsize = 1", 'model.toml: unknown key "max_batchsize"; did you mean "max_batch_size"?'),
        ("max_batch_size = -1", "max_batch_size: expected a number from 0 to 65536, got -1"),
        (
            '[engine]\nbackend = "tensorrt"',
            'engine.backend: expected "auto", "torch-eager", "torch-compile", "aot-inductor", ',
        ),
        ('[engine]\ndevice = "gpu"', 'engine.device: expected "auto", "cpu", "cuda" or "cuda:N", got "gpu"'),
        ("[engine]\ninstances = -1", "engine.instances: expected a number from 0 to 256, got -1"),
        ("[batching]\nmax_queue_items = 0", "batching.max_queue_items: expected a number of at least 1, got 0"),
        ("[warmup]\nbatch_sizes = [0]", "warmup.batch_sizes: expected a list, each element a number of at least 1"),
        ("[warmup]\nbatch_sizes = [64]", "warmup.batch_sizes: 64 is more than max_batch_size = 16"),
        ('[[inputs]]\nname = "x"\n[[inputs]]\nname = "x"', 'inputs: two are named "x"; give each its own name'),
        ('[[inputs]]\nname = "x y"', "inputs[0].name: expected a name of at most 256 characters without spaces"),
        ('[[inputs]]\nname = "x"\nlabels = ["a"]', 'inputs: "x" has labels; only outputs can have them'),
        ("versions = []", 'versions: expected "latest", "all" or at least one version, got an empty list'),
        ('versions = "newest"', 'versions: expected "latest" or "all" or'),
        ("versions = [1, 9]", "versions: there is no version 9; there are: 1"),
    ],
)
def test_a_mistake_in_model_toml_is_one_clear_sentence(toml: str, sentence: str, tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")
    write_toml(tmp_path, toml)
    assert sentence in refusal(tmp_path, ConfigurationError)


def test_labels_come_from_the_table_or_from_a_file(tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")
    write_toml(tmp_path, '[[outputs]]\nname = "y"\nlabels = ["cat", "dog", "bird"]')
    assert read_one(tmp_path).outputs[0].labels == ("cat", "dog", "bird")

    (tmp_path / "m" / "labels.txt").write_text("Katze\nHund\nVögel\n", encoding="utf-8")
    write_toml(tmp_path, '[[outputs]]\nname = "y"\nlabels_file = "labels.txt"')
    assert read_one(tmp_path).outputs[0].labels == ("Katze", "Hund", "Vögel")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('labels = ["cat"]', '"y" has 1 labels for 3 values'),
        ('labels_file = "no.txt"', "cannot be read as text"),
        ('labels_file = "../secret.txt"', '"../secret.txt" is outside the model\'s folder'),
        ('labels = ["a"]\nlabels_file = "b"', '"y" has both labels and labels_file; keep one'),
    ],
)
def test_labels_that_do_not_fit_are_refused(table: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a\nb\nc\n")
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")
    write_toml(tmp_path, f'[[outputs]]\nname = "y"\n{table}')
    assert sentence in refusal(tmp_path, ConfigurationError)


# Versions and folders


def test_the_highest_version_is_served_by_number_unless_the_toml_says_otherwise(tmp_path: Path) -> None:
    for version in (2, 9, 10):
        write_linear_onnx(tmp_path / "m" / str(version) / "model.onnx")
    (tmp_path / "m" / "assets").mkdir()
    assert [spec.version for spec in read_model(tmp_path, "m")] == [10]

    write_toml(tmp_path, 'versions = "all"')
    assert [spec.version for spec in read_model(tmp_path, "m")] == [2, 9, 10]
    write_toml(tmp_path, "versions = [9, 2]")
    assert [spec.version for spec in read_model(tmp_path, "m")] == [2, 9]


def test_a_version_that_is_not_asked_for_may_be_broken(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    write_linear_onnx(tmp_path / "m" / "2" / "model.onnx")
    assert read_one(tmp_path).version == 2


def test_two_model_files_in_one_version_are_refused_naming_both(tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")
    (tmp_path / "m" / "1" / "model.pt2").write_bytes(b"")
    assert "there are both model.pt2 and model.onnx; keep one" in refusal(tmp_path, LoadError)


@pytest.mark.parametrize(
    ("files", "kind", "sentence"),
    [
        (["m/model.toml"], LoadError, "there is no version; expected a file like"),
        (["m/model.pt2"], LoadError, "there is no version; expected a file like"),
        (["m/1/readme"], LoadError, "there is no model; expected model.pt2 or model.onnx"),
        (["m/01/model.pt2"], ConfigurationError, '"01" is not a version; expected 1, 2, 3'),
        (["m/0/model.pt2"], ConfigurationError, '"0" is not a version; expected 1, 2, 3'),
    ],
)
def test_a_folder_without_what_it_needs_says_so(
    files: list[str], kind: type[OfframpError], sentence: str, tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    assert folder_names(tmp_path) == ["m"]
    assert sentence in refusal(tmp_path, kind)


def test_hidden_and_unrelated_folders_are_no_models(tmp_path: Path) -> None:
    for folder in (".git/1", "notes", "..data/1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "README.md").write_text("hello")
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")
    assert folder_names(tmp_path) == ["m"]


@pytest.mark.parametrize("name", ["../m", "/etc", ".", "..", "", "m/1", "m\0", "é", "a" * 129, "absent"])
def test_a_name_from_outside_never_leaves_the_repository(name: str, tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "models" / "m" / "1" / "model.onnx")
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")
    with pytest.raises(NotFound, match=r"the repository has no model or route .*; it has: m$"):
        read_model(tmp_path / "models", name)


def test_a_folder_whose_name_cannot_be_served_is_explained(tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "my model" / "1" / "model.onnx")
    assert folder_names(tmp_path) == ["my model"]
    sentence = refusal(tmp_path, ConfigurationError, "my model")
    assert '"my model" cannot be the name of a model or a route; expected at most 128 letters' in sentence


def test_a_broken_model_does_not_hide_the_others(tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "good" / "1" / "model.onnx")
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "model.pt2").write_bytes(b"rubbish")

    assert folder_names(tmp_path) == ["bad", "good"]
    assert "bad/1/model.pt2: not a complete zip archive" in refusal(tmp_path, LoadError, "bad")
    assert read_one(tmp_path, "good").name == "good"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")
    path.parent.chmod(0)
    try:
        assert "cannot be read: Permission denied" in refusal(tmp_path, LoadError)
    finally:
        path.parent.chmod(0o755)


def test_a_repository_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist; expected a folder with one folder per model"):
        check_repository(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="is not a folder"):
        check_repository(tmp_path / "file")
    check_repository(tmp_path)
