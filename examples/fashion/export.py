"""Turn the committed weights into a model repository: `python examples/fashion/export.py models`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from data import CLASS_NAMES
from models import load_weights
from offramp_compression import architectures
from torch import Tensor, nn

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"
MAX_BATCH_SIZE = 16
LARGEST_EXPORTED_BATCH = 1024


class ExportError(Exception):
    """A model could not be exported; the message says what is missing."""


@dataclass(frozen=True)
class Target:
    """One model of the repository: its folder's name, whose weights it has, and its format."""

    name: str
    network: Literal["teacher", "student"]
    file: Literal["model.pt2", "model.onnx"]


TARGETS = (
    Target("fashion-teacher", "teacher", "model.pt2"),
    Target("fashion-student", "student", "model.pt2"),
    Target("fashion-student-onnx", "student", "model.onnx"),
)


def build_repository(repository: Path, weights: Path = WEIGHTS) -> list[str]:
    """Export every target into ``repository`` unless it is there and up to date; returns the names that were built.

    A model appears whole or not at all: it is made in a hidden folder and renamed, so that a server that watches
    the repository, or a run that is interrupted, never sees half of one.

    Raises ExportError if weights or the ONNX exporter are missing.
    """
    repository.mkdir(parents=True, exist_ok=True)
    stale = [target for target in TARGETS if not _up_to_date(target, repository, weights)]
    for target in stale:
        _build(target, repository, weights)
    return [target.name for target in stale]


def _up_to_date(target: Target, repository: Path, weights: Path) -> bool:
    settings = repository / target.name / "model.toml"
    return settings.exists() and settings.read_text().startswith(_first_line(target, weights))


def _build(target: Target, repository: Path, weights: Path) -> None:
    first_line = _first_line(target, weights)
    model = load_weights(target.network, _weights_file(target, weights))
    with tempfile.TemporaryDirectory(dir=repository, prefix=".building-") as scratch:
        made = Path(scratch) / "made"
        (made / "1").mkdir(parents=True)
        _EXPORTERS[target.file](model, made / "1" / target.file)
        (made / "model.toml").write_text(first_line + _settings())
        _swap_in(made, repository / target.name, Path(scratch) / "replaced")


def _swap_in(made: Path, final: Path, replaced: Path) -> None:
    if final.exists():
        final.rename(replaced)
    made.rename(final)


def export_pt2(model: nn.Module, path: Path) -> None:
    """Write ``model`` (FP32 [N, 1, 28, 28] to FP32 [N, 10]) as a torch.export program with a free batch size."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST_EXPORTED_BATCH)
    program = torch.export.export(model.eval(), (_example(),), dynamic_shapes={"image": {0: batch}})
    torch.export.save(program, path)


def export_onnx(model: nn.Module, path: Path) -> None:
    """Write ``model`` as ONNX, input ``image`` and output ``logits``, with a free batch size.

    Raises ExportError if onnxscript, which torch's exporter is built on, is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ExportError(
            "exporting to ONNX needs onnxscript; install it with: pip install 'offramp[compression]'"
        ) from None
    batch = torch.export.Dim("batch", min=1, max=LARGEST_EXPORTED_BATCH)
    with _exporter_noise_hidden():
        torch.onnx.export(
            model.eval(), (_example(),), path,
            input_names=["image"], output_names=["logits"],
            dynamic_shapes={"image": {0: batch}}, dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip


@contextlib.contextmanager
def _exporter_noise_hidden() -> Iterator[None]:
    """Hide what torch 2.13's exporter says about itself: a deprecation in its own code, torchvision not being there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


_EXPORTERS = {"model.pt2": export_pt2, "model.onnx": export_onnx}


def _example() -> Tensor:
    # Two images: torch.export would take a batch of one for a constant.
    return torch.zeros(2, 1, 28, 28)


def _settings() -> str:
    labels = json.dumps(list(CLASS_NAMES))
    return f"""max_batch_size = {MAX_BATCH_SIZE}

[[inputs]]
name = "image"
datatype = "FP32"
dims = [1, 28, 28]

[[outputs]]
name = "logits"
datatype = "FP32"
dims = [10]
labels = {labels}
"""


def _first_line(target: Target, weights: Path) -> str:
    digest = hashlib.sha256(f"{target} {torch.__version__} ".encode())
    code = sorted(Path(architectures.__file__).parent.glob("*.py"))
    for file in (_weights_file(target, weights), HERE / "models.py", Path(__file__), *code):
        digest.update(file.read_bytes())
    build = digest.hexdigest()[:16]
    return f"# Written by examples/fashion/export.py, build {build}; replaced when weights or code change.\n"


def _weights_file(target: Target, weights: Path) -> Path:
    path = weights / f"{target.network}.safetensors"
    if not path.exists():
        raise ExportError(f"{path} does not exist; make it with: python examples/fashion/train.py {target.network}")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Export the Fashion-MNIST models into a model repository.")
    parser.add_argument("repository", type=Path, help="the folder to fill; it is created if need be")
    repository: Path = parser.parse_args().repository
    try:
        built = build_repository(repository)
    except ExportError as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    for target in TARGETS:
        print(f"{repository / target.name}: {'built' if target.name in built else 'up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
