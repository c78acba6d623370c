"""`offramp zero-shot`: a text classifier out of words for its classes."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_common.errors import ConfigurationError
from offramp_common.extras import needs_extra
from offramp_common.tables import table

from offramp_compression.cli.limit import add_limit_option, limited
from offramp_compression.cli.options import EXTRA, Commands, add_run_options, prepare, say, warn
from offramp_compression.cli.target import add_target_options, say_written, target

if TYPE_CHECKING:
    from offramp_compression.data.text import TextData
    from offramp_compression.evaluation.bootstrap import Estimate
    from offramp_compression.zero_shot.classifier import ZeroShotClassifier
    from offramp_compression.zero_shot.settings import ZeroShotSettings

DESCRIPTION = """\
Put a classifier of texts into a repository that needs no training: a text's class
is the one whose description is nearest to it, as a pretrained encoder (MiniLM)
sees the two. Clients may replace the labels with every request. Labelled examples
(--data) serve to set how sure it is, and to measure it.
"""


# Texts to fit a temperature to.
_ENOUGH = 50


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "zero-shot",
        help="put a text classifier into a repository that knows its classes by description",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    classes = parser.add_argument_group("classes")
    classes.add_argument(
        "--label", action="append", default=[], metavar="NAME[=DESCRIPTION]", help="a class; repeated for each"
    )
    classes.add_argument(
        "--labels", type=Path, metavar="FILE", help="classes, one a line: NAME, or NAME, a tab and DESCRIPTION"
    )
    classes.add_argument(
        "--template", action="append", default=[], metavar="TEXT",
        help="what the encoder reads of a class, with {} for its description; repeated, the mean of all counts ({})",
    )  # fmt: skip
    classes.add_argument("--temperature", type=float, help="what cosines are divided by (fitted to --data, or 0.05)")
    classes.add_argument("--max-length", type=int, default=128, help="tokens of a text that count (%(default)s)")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, metavar="PATH", help="labelled texts: a .csv or .tsv, or a folder with parts"
    )
    data.add_argument("--format", help="csv or tsv; otherwise by what is there")
    data.add_argument("--part", default="test", help="the part of a folder to measure on (%(default)s)")
    data.add_argument(
        "--calibrate", type=int, default=100, metavar="N",
        help="examples that the temperature is fitted to: of part train, or taken from a single file (%(default)s)",
    )  # fmt: skip
    add_limit_option(data)
    add_target_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp zero-shot"):
        from offramp_compression.zero_shot.classifier import ZeroShotClassifier, calibrated
        from offramp_compression.zero_shot.encoder import minilm_text_encoder
        from offramp_compression.zero_shot.export import export_zero_shot
    prepare(options)
    wanted = target(options)
    few, measured = _examples(options)
    settings = _settings(options, measured)
    classifier = ZeroShotClassifier(minilm_text_encoder(options.max_length), settings)
    if few is not None and options.temperature is None:
        _warn_of_few(few)
        classifier = calibrated(classifier, few)
    if measured is not None:
        _show(classifier, measured)
    texts = settings.prompts() if measured is None else measured.texts
    say_written(export_zero_shot(classifier, texts[: options.parity_rows], wanted))
    return 0


def _settings(options: argparse.Namespace, examples: TextData | None) -> ZeroShotSettings:
    from offramp_compression.zero_shot.describe import described, read_labels
    from offramp_compression.zero_shot.settings import DEFAULT_TEMPERATURE, PLACEHOLDER, ZeroShotSettings

    classes = read_labels(options.labels) if options.labels else {}
    classes |= described(options.label, "=", "option --label")
    if not classes and examples is not None:
        classes = {name: name for name in examples.class_names}
    if not classes:
        raise ConfigurationError("there are no classes; give --label for each, --labels FILE, or --data")
    temperature = DEFAULT_TEMPERATURE if options.temperature is None else options.temperature
    return ZeroShotSettings(
        tuple(classes), tuple(classes.values()), tuple(options.template) or (PLACEHOLDER,), temperature
    )


def _examples(options: argparse.Namespace) -> tuple[TextData | None, TextData | None]:
    """A few to fit the temperature to, and those to measure on."""
    if options.data is None:
        return None, None
    from offramp_compression.zero_shot.examples import apart, some

    if options.data.is_file():
        return apart(_texts(options, options.part), options.calibrate, options.seed)
    measured = _texts(options, options.part)
    if not options.calibrate:
        return None, measured
    return some(_texts(options, "train"), options.calibrate, options.seed), measured


def _texts(options: argparse.Namespace, part: str) -> TextData:
    from offramp_compression.data.sources import open_texts
    from offramp_compression.zero_shot.examples import take

    texts = open_texts(options.data, part, options.format)
    return take(texts, limited(texts.labels, options.limit, options.seed))


def _warn_of_few(examples: TextData) -> None:
    if len(examples) < _ENOUGH:
        warn(
            f"{len(examples)} examples say little about how sure the classifier should be: the temperature stays near "
            f"its default; fit it to {_ENOUGH} or more (--calibrate), or set it (--temperature)"
        )


def _show(classifier: ZeroShotClassifier, examples: TextData) -> None:
    from offramp_compression.evaluation.metrics import quality
    from offramp_compression.zero_shot.classifier import aligned

    labels = classifier.settings.labels
    known = aligned(examples, labels)
    found = quality(classifier.logits(known.texts), known.labels, labels)
    majority = max(Counter(known.labels.tolist()).values()) / len(known)
    rows = [
        ("accuracy", _interval(found.accuracy)),
        ("accuracy of the largest class", f"{majority:.4f}"),
        ("macro-F1", _interval(found.f1_macro)),
        ("calibration error", _interval(found.calibration_error)),
        ("temperature", f"{classifier.settings.temperature:g}"),
    ]
    say(table(("measured", f"on {len(known)} texts"), rows))


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ({estimate.low:.4f} to {estimate.high:.4f})"
