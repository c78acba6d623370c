"""What the commands that train have in common: their options, what is held out, and what they show and write."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from offramp_common.errors import ConfigurationError
from offramp_common.tables import table
from offramp_common.toml_schema import bind

from offramp_compression.cli.options import open_data, say, warn

if TYPE_CHECKING:
    from offramp_compression.data.batches import Augment
    from offramp_compression.data.dataset import Dataset
    from offramp_compression.network import Network
    from offramp_compression.training.learn import Learnt, Watching
    from offramp_compression.training.settings import TrainingSettings

S = TypeVar("S")

_SETTINGS = {
    "epochs": (int, "N", "passes over the data (10)"),
    "batch_size": (int, "N", "examples in a step (128)"),
    "optimizer": (str, "NAME", "sgd or adamw"),
    "learning_rate": (float, "RATE", "the highest one"),
    "schedule": (str, "NAME", "one_cycle, cosine, step or constant (one_cycle)"),
    "warmup": (float, "SHARE", "of the steps, in which the rate rises (0.1)"),
    "weight_decay": (float, "X", "of weights, not of norms and biases (0.0005)"),
    "momentum": (float, "X", "of sgd, or adamw's first beta (0.9)"),
    "max_grad_norm": (float, "X", "clip gradients to this norm; 0: do not (0)"),
    "mixed_precision": (str, "NAME", "auto, off, bf16 or fp16; auto is off on a CPU (auto)"),
    "patience": (int, "N", "stop after so many epochs without gain and keep the best; 0: do not (0)"),
    "checkpoint_every": (int, "N", "steps; there is one after each epoch too (200)"),
}
# How text is told from pictures without opening a model: token ids and a mask.
_TEXT_INPUTS = 2


@dataclass(frozen=True, slots=True)
class Rates:
    """The optimiser of a command where none is given, and the learning rate of each."""

    optimizer: str
    sgd: float
    adamw: float


@dataclass(frozen=True, slots=True)
class Examples:
    """What to learn from, what to choose epochs by, and what to measure on in the end, under a name to show."""

    train: Dataset
    validation: Dataset | None
    measured: Dataset | None
    name: str


def add_training_options(parser: argparse.ArgumentParser, rates: Rates) -> None:
    group = parser.add_argument_group("training")
    for name, (kind, metavar, words) in _SETTINGS.items():
        group.add_argument(_flag(name), type=kind, metavar=metavar, help=words + _default(name, rates))
    group.add_argument("--label-smoothing", type=float, default=0.0, metavar="X", help="of the labels (%(default)s)")
    group.add_argument(
        "--hold-out", type=float, default=0.1, metavar="SHARE",
        help="of the examples to validate on, the same share of every class; 0: none (%(default)s)",
    )  # fmt: skip
    group.add_argument("--test-part", metavar="PART", help="measure on this part of the data in the end, such as test")
    group.add_argument("--flip", action="store_true", help="mirror half of the pictures")
    group.add_argument("--shift", type=int, default=0, metavar="PIXELS", help="move pictures by up to so many (0)")
    group.add_argument(
        "--erase", type=float, default=0.0, metavar="P", help="blank a square of a picture this often (0)"
    )
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="go on from here if it exists (OUT.checkpoint)")
    group.add_argument("--tensorboard", type=Path, metavar="DIR", help="write event files here")
    group.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, default=sys.stderr.isatty(),
        help="show a bar instead of a line for each epoch (if stderr is a terminal)",
    )  # fmt: skip
    parser.set_defaults(rates=rates)


def training_settings(options: argparse.Namespace) -> TrainingSettings:
    """Raises ConfigurationError for a value that is out of bounds."""
    from offramp_compression.training.settings import TrainingSettings

    rates: Rates = options.rates
    given = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    optimizer = given.setdefault("optimizer", rates.optimizer)
    given.setdefault("learning_rate", rates.adamw if optimizer == "adamw" else rates.sgd)
    where = {"seed": options.seed, "threads": options.threads, "device": options.device}
    return from_options(TrainingSettings, {**given, **where})


def from_options(settings: type[S], given: Mapping[str, Any]) -> S:
    """Raises ConfigurationError for a value that is out of bounds, under the name of its option."""
    try:
        return bind(settings, given, lambda key: "option " + _flag(key))
    except ConfigurationError as error:
        # The field has the name of the option; once is enough.
        raise ConfigurationError(re.sub(r"^(option --\S+): \w+: ", r"\1: ", str(error))) from error


def open_examples(options: argparse.Namespace, networks: Sequence[Network] = (), *, others: bool = False) -> Examples:
    """The data of the options, with what is held out taken away from what is learnt.

    With `networks`, labels count in the order of the first one's classes. Raises DataError if the data have others,
    unless `others` are welcome, and ModelError for a network that does not take such examples.
    """
    from offramp_compression.data.dataset import aligned
    from offramp_compression.inputs import try_out

    data = open_data(options)
    if networks and not (others and _differ(data.class_names, networks[0].class_names)):
        data = aligned(data, networks[0].class_names, str(options.data))
    for network in networks:
        try_out(network.module, data)
    train, validation = data.split(options.hold_out, options.seed) if options.hold_out else (data, None)
    if options.test_part:
        return Examples(
            train, validation, open_data(options, options.test_part, data.class_names), f"part {options.test_part}"
        )
    return Examples(train, validation, validation, "held out")


def augmentation(options: argparse.Namespace, data: Dataset) -> Augment | None:
    """Raises ConfigurationError if what is no picture is to be changed like one."""
    from offramp_compression.data.augment import ImageAugment, trim_padding

    changed = bool(options.flip or options.shift or options.erase)
    if data.inputs[0].ndim == 4:
        return ImageAugment(options.flip, options.shift, options.erase) if changed else None
    if changed:
        raise ConfigurationError("--flip, --shift and --erase are for pictures, and the data are none; leave them out")
    return trim_padding if len(data.inputs) == _TEXT_INPUTS else None


def split_pairs(pairs: Sequence[str], flag: str) -> dict[str, str]:
    """Raises ConfigurationError for what is not KEY=VALUE."""
    found = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if not key or not value:
            raise ConfigurationError(f"{flag} {pair}: expected KEY=VALUE")
        found[key] = value
    return found


def as_json(text: str, where: str) -> Any:
    """What `text` says in JSON, or itself if it is a plain word.

    Raises ConfigurationError, naming `where`, for what begins like a list, an object or a string and is none.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if text.startswith(("[", "{", '"', "'")):
            raise ConfigurationError(
                f"{where}: {text} is not JSON ({error.msg} at character {error.pos}); expected something such as 16, "
                f'[8, 16], true, or a word; text within a list is in double quotes: ["a", "b"]'
            ) from error
        return text


def vocabulary(options: argparse.Namespace) -> int | None:
    """The number of tokens that a text model has to know."""
    from offramp_compression.data.sources import open_tokenizer

    return open_tokenizer(options.tokenizer).get_vocab_size() if options.tokenizer else None


def watching(options: argparse.Namespace, name: str) -> Watching:
    from offramp_compression.progress import line

    return {
        "checkpoint": checkpoint(options),
        "tensorboard": options.tensorboard,
        "progress": options.progress,
        "name": name,
        "on_epoch": None if options.progress else lambda epoch: say(line(epoch)),
    }


def checkpoint(options: argparse.Namespace) -> Path:
    path: Path = options.checkpoint or options.out.with_name(options.out.name + ".checkpoint")
    return path


@contextmanager
def stoppable(options: argparse.Namespace) -> Iterator[None]:
    """Say how to go on where Ctrl-C ends a run."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint(options).exists():
            print(f"stopped; the same command goes on from {checkpoint(options)}", file=sys.stderr)
        raise


def write(learnt: Learnt, examples: Examples, options: argparse.Namespace) -> None:
    """Write the model file, with what was measured of it and the version it started from; then its checkpoint has
    served."""
    from offramp_compression.model_file import save

    settings = {"started_from": version} if (version := _served_version(options)) else {}
    metrics = {} if examples.measured is None else _judged(learnt, examples.measured, options)
    save(learnt.network.described(settings=settings, metrics=metrics), options.out)
    checkpoint(options).unlink(missing_ok=True)
    if learnt.history.stopped_early:
        say(f"stopped early; the weights are those of epoch {learnt.history.best_epoch}")


def _judged(learnt: Learnt, measured: Dataset, options: argparse.Namespace) -> dict[str, float]:
    """Figures for the provenance, among them whether the network has learnt anything; if not, the user hears of it."""
    from offramp_compression.evaluation.guessing import guessing
    from offramp_compression.evaluation.predict import accuracy

    validated = learnt.history.epochs[learnt.history.best_epoch - 1].figures.get("validation_accuracy")
    if options.test_part:
        validated = None
    reached = accuracy(learnt.network.module, measured) if validated is None else validated
    found = guessing(reached, measured.labels)
    if not found.beaten:
        warn(found.warning(options.out.name))
    return {**({"test_accuracy": reached} if options.test_part else {}), **found.metrics()}


def show(networks: Mapping[str, tuple[Network, Path | None]], examples: Examples) -> None:
    """A table of what each network is worth; those that are in a file are shown with its size."""
    rows = [_row(name, network, path, examples) for name, (network, path) in networks.items()]
    header = ("model", f"accuracy ({examples.name})", "parameters", "MFLOPs", "kB")
    say(table(header, rows, right=range(1, len(header))))


def _row(name: str, network: Network, path: Path | None, examples: Examples) -> tuple[str, ...]:
    import numpy as np

    from offramp_compression.data.dataset import tensors
    from offramp_compression.evaluation import flops
    from offramp_compression.evaluation.predict import accuracy
    from offramp_compression.modules import parameter_count
    from offramp_compression.network_source import network_file

    measured = "-" if examples.measured is None else f"{accuracy(network.module, examples.measured):.4f}"
    one = tensors(examples.train, np.arange(1))
    operations = flops.of_module(network.module, one) / 1e6
    size = "-" if path is None else f"{network_file(path).stat().st_size / 1000:.1f}"
    return name, measured, f"{parameter_count(network.module):,}", f"{operations:.2f}", size


def _served_version(options: argparse.Namespace) -> str:
    """The version that MODEL is, where the command has one and it is no file."""
    from offramp_compression.network_source import version_name

    return version_name(options.model) if "model" in options else ""


def _differ(found: tuple[str, ...], known: tuple[str, ...]) -> bool:
    """Whether these are other classes, and not the same ones in another order or under mere numbers."""
    return set(found) != set(known) and found != tuple(str(number) for number in range(len(known)))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _default(name: str, rates: Rates) -> str:
    if name == "optimizer":
        return f" ({rates.optimizer})"
    return f" ({rates.sgd:g}, with adamw {rates.adamw:g})" if name == "learning_rate" else ""
