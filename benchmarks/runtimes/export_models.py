"""Export a model of the benchmark: `python -m benchmarks.runtimes.export_models DIRECTORY NAME[.onnx | =FILE]`.

NAME, one of MODELS: writes NAME.pt2 and NAME.npz (sixteen inputs and the outputs that eager batch-1 inference gives).
NAME=FILE: the same for a program that was exported already, or for an ONNX file, which stays one. NAME.onnx: writes
that from the NAME.pt2 there is.
Weights are random but seeded: time per call does not depend on their values.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.runtimes.program import load_program

SEED = 20261122
SAMPLES = 16
CLASSES = 10


class Identity(nn.Module):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input.clone()


def conv_block(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]


def student() -> nn.Module:
    """Build a plain CNN of five blocks for 32x32x3 images, 2.15 M parameters."""
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((64, 1), (128, 2), (256, 2), (256, 2), (512, 2)):
        layers += conv_block(channels, width, stride)
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        first = conv_block(channels_in, channels_out, stride)
        second = conv_block(channels_out, channels_out, 1)[:-1]
        self.residual = nn.Sequential(*first, *second)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def teacher() -> nn.Module:
    """Build ResNet-18 (He et al., 2016) with the 3x3 stem for 32x32x3 images, 11.2 M parameters."""
    layers = conv_block(3, 64, 1)
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(channels, width, stride), BasicBlock(width, width, 1)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def mlp(width: int) -> nn.Module:
    """Build a perceptron with four hidden layers for 64 numbers, about 3 width^2 parameters."""
    layers: list[nn.Module] = []
    inputs = 64
    for _ in range(4):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


@dataclass(frozen=True)
class Model:
    """How to build a model, the shape of one item, and its largest batch."""

    build: Callable[[], nn.Module]
    item_shape: tuple[int, ...]
    max_batch: int = 16
    # Whether the last dimension of an item may have any length.
    any_width: bool = False


IMAGE = (3, 32, 32)
MODELS: Mapping[str, Model] = {
    "identity": Model(Identity, (64,)),
    "student": Model(student, IMAGE),
    "teacher": Model(teacher, IMAGE),
    "student-64": Model(student, IMAGE, max_batch=64),
    "any-width": Model(Identity, (64,), any_width=True),
    "mlp-100K": Model(lambda: mlp(172), (64,)),
    "mlp-1M": Model(lambda: mlp(566), (64,)),
    "mlp-10M": Model(lambda: mlp(1814), (64,)),
    "mlp-100M": Model(lambda: mlp(5762), (64,)),
}


def make(name: str, directory: Path) -> None:
    model = MODELS[name]
    torch.manual_seed(SEED)
    module = model.build().eval()
    inputs = torch.randn(SAMPLES, *model.item_shape)
    dynamic = {0: torch.export.Dim("batch", min=1, max=model.max_batch)}
    if model.any_width:
        dynamic[len(model.item_shape)] = torch.export.Dim("width", min=2)
    program = torch.export.export(module, (inputs,), dynamic_shapes=(dynamic,), strict=False)
    torch.export.save(program, directory / f"{name}.pt2")
    save_examples(program, inputs, directory / f"{name}.npz")


def take_over(name: str, file: Path, directory: Path) -> None:
    """Use a program as it is, with inputs drawn from [0, 1)."""
    torch.manual_seed(SEED)
    if file.suffix == ".onnx":
        take_over_onnx(file, directory / f"{name}.onnx")
        return
    shutil.copyfile(file, directory / f"{name}.pt2")
    program = torch.export.load(file)
    save_examples(program, torch.rand(SAMPLES, *item_shape(program)), directory / f"{name}.npz")


def take_over_onnx(file: Path, copy: Path) -> None:
    """With the names that all servers know it by."""
    import onnx

    model = onnx.load(file)
    [taken], [given] = model.graph.input, model.graph.output
    names = {taken.name: "input", given.name: "output"}
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    taken.name, given.name = "input", "output"
    onnx.save(model, copy)
    program = load_program(copy)
    inputs = torch.rand(SAMPLES, *(size.dim_value for size in taken.type.tensor_type.shape.dim[1:])).numpy()
    outputs = np.concatenate([program(inputs[index : index + 1]) for index in range(SAMPLES)])
    np.savez(copy.with_suffix(".npz"), inputs=inputs, outputs=outputs)


def item_shape(program: torch.export.ExportedProgram) -> tuple[int, ...]:
    [name] = program.graph_signature.user_inputs
    [node] = [node for node in program.graph.nodes if node.name == name]
    return tuple(int(size) for size in node.meta["val"].shape[1:])


def save_examples(program: torch.export.ExportedProgram, inputs: torch.Tensor, path: Path) -> None:
    module = program.module()
    with torch.inference_mode():
        outputs = torch.cat([module(item) for item in torch.split(inputs, 1)])
    np.savez(path, inputs=inputs.numpy(), outputs=outputs.numpy())


def convert(name: str, directory: Path) -> None:
    from offramp_compression.export.formats import write_onnx
    from offramp_compression.export.program import Names

    program = torch.export.load(directory / f"{name}.pt2")
    write_onnx(program, Names(("input",), ("output",)), directory / f"{name}.onnx")


def main(directory: Path, wanted: str) -> int:
    torch.set_num_threads(1)
    name, _, file = wanted.partition("=")
    if file:
        take_over(name, Path(file), directory)
    elif wanted.endswith(".onnx"):
        convert(wanted.removesuffix(".onnx"), directory)
    else:
        make(name, directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
