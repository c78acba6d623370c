"""What a recipe may say. Each kind of step adds fields of its own, in `steps/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from offramp_common.toml_schema import Rule, between, matches

Name = Annotated[
    str, matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of letters, digits, dots, dashes and underscores")
]
FileFormat = Literal["pt2", "onnx"]
_SHARE = Rule("a number above 0 and below 1", lambda value: 0 < value < 1)


@dataclass(frozen=True, slots=True)
class DataTable:
    """`[data]`. Paths are relative to the recipe."""

    # A folder or file that `open_dataset` or `open_texts` reads.
    path: str = ""
    # Where there is no path: a Python program beside the recipe whose last line of output is the path.
    fetch: str = ""
    # idx, cifar10, image-folder, npz, csv or tsv; left out: by what is there.
    format: str = ""
    # What the classes are called, in the order of their labels, where the data do not say so themselves.
    class_names: tuple[str, ...] = ()
    train: str = "train"
    # What the models are judged by, and no step learns from.
    test: str = "test"
    # The share of the training part that is held out to choose epochs, ratios and layers by.
    validation: Annotated[float, _SHARE] = 0.1
    # Training examples that quantisation is calibrated on.
    calibration: Annotated[int, between(1)] = 256
    # For text: tokenizer.json, or "minilm" for that of the pretrained encoder.
    tokenizer: str = ""
    max_length: Annotated[int, between(1)] = 128
    # For image folders: scale and crop the pictures; 0: they have one size already.
    image_size: Annotated[int, between(0)] = 0
    # Take this many examples of each part at most, to see whether a recipe runs; 0: all.
    limit: Annotated[int, between(0)] = 0


@dataclass(frozen=True, slots=True)
class BudgetTable:
    """`[budget]`."""

    # No step begins after so many minutes; what was made is kept, and another run goes on. 0: no bound.
    minutes: Annotated[float, between(0)] = 0


@dataclass(frozen=True, slots=True)
class EvaluationTable:
    """`[evaluation]`."""

    # The step whose model the others are compared with; left out: the first step.
    reference: str = ""
    batch_sizes: Annotated[tuple[int, ...], Rule("numbers of at least 1", lambda sizes: all(n >= 1 for n in sizes))] = (
        1,
        16,
    )
    resamples: Annotated[int, between(0)] = 1000


@dataclass(frozen=True, slots=True)
class Requirement:
    """`require` of a step: what its model has to reach on the test part for the recipe to have succeeded."""

    accuracy: Annotated[float, between(0, 1)] | None = None
    # Percentage points of accuracy below the reference.
    points_lost: Annotated[float, between(0)] | None = None
    # Items a second at the largest batch size, over the reference in torch eager.
    speedup: Annotated[float, between(0)] | None = None
    parameters: Annotated[int, between(1)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """What every `[[steps]]` has."""

    name: Name
    kind: str
    # The step whose model this one starts from.
    of: str = ""
    # The formats in which the model goes to the repository; left out: it stays in the work folder.
    serve: tuple[FileFormat, ...] = ()
    # Its name there; left out: RECIPE-STEP. Where there are several formats, all but the first add theirs to it.
    serve_as: str = ""
    # Left out: what its model.toml says already, or 16.
    max_batch_size: Annotated[int, between(1, 65536)] | None = None
    # Keep the network beside what is served, so that it can be fine-tuned from there; it takes as much room again.
    keep_network: bool = True
    require: Requirement = field(default_factory=Requirement)


@dataclass(frozen=True, slots=True)
class RecipeTable:
    """The file but for its steps."""

    name: Name
    seed: Annotated[int, between(0)] = 0
    # Of the processor; 0: all.
    threads: Annotated[int, between(0)] = 0
    device: str = "cpu"
    # Folders, relative to the recipe, each with a route.toml that goes to the repository under the folder's name.
    routes: tuple[str, ...] = ()
    data: DataTable = field(default_factory=DataTable)
    budget: BudgetTable = field(default_factory=BudgetTable)
    evaluation: EvaluationTable = field(default_factory=EvaluationTable)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a recipe reads and writes."""

    # What relative paths of the recipe are relative to.
    base: Path
    # Checkpoints, networks and reports; what is there and still fits is not made again.
    work: Path
    repository: Path
