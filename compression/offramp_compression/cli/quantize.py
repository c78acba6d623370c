"""`offramp quantize`: a model file as INT8 in a repository, and what each layer loses by it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from offramp_common.errors import ConfigurationError
from offramp_common.extras import needs_extra
from offramp_common.tables import table

from offramp_compression.cli.learning import from_options
from offramp_compression.cli.options import (
    EXTRA,
    Commands,
    add_data_options,
    add_model_option,
    add_run_options,
    open_data,
    open_model,
    prepare,
    say,
)
from offramp_compression.cli.quantizing import add_range_option, reduce_range
from offramp_compression.cli.target import add_target_options, say_written, target

if TYPE_CHECKING:
    from offramp_compression.data.dataset import Dataset
    from offramp_compression.export.program import VariableDimensions
    from offramp_compression.export.publish import Target
    from offramp_compression.network import Network
    from offramp_compression.quantization.layers import Int8Model, Quantizer
    from offramp_compression.quantization.quantize import Quantized
    from offramp_compression.quantization.sensitivity import Judge, LayerQuality, Mode, Quality
    from offramp_compression.quantization.settings import QuantizationSettings

DESCRIPTION = """\
Quantise a model file to static INT8 and put it into a repository. Ranges are
calibrated on some examples of --part, and layers compared on others of it. An
.onnx is computed in integers by ONNX Runtime; a .pt2 by --engine torch-compile,
and with any other engine it is slower than the float model. --sensitivity shows
what every layer loses; --max-drop leaves the most sensitive layers in float until
no more accuracy is lost than that.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "quantize",
        help="make INT8 of a model file, in a repository",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser)
    _add_quantization_options(parser)
    add_target_options(parser, required=False)
    add_data_options(parser)
    parser.add_argument("--test-part", metavar="PART", help="measure on this part of the data in the end, such as test")
    add_run_options(parser)
    parser.set_defaults(run=run)


def _add_quantization_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantisation")
    group.add_argument(
        "--calibration", default="", metavar="NAME",
        help="minmax, entropy or percentile for .onnx (minmax); histogram or minmax for .pt2 (histogram)",
    )  # fmt: skip
    group.add_argument("--percentile", type=float, default=99.99, metavar="P", help="of that calibration (%(default)s)")
    group.add_argument(
        "--calibration-examples", type=int, default=256, metavar="N", help="to calibrate on (%(default)s)"
    )
    group.add_argument(
        "--tuning-examples", type=int, default=1000, metavar="N", help="others, to compare layers on (%(default)s)"
    )
    add_range_option(group)
    group.add_argument("--only", action="append", default=[], metavar="MODULE", help="quantise this; may be repeated")
    group.add_argument(
        "--keep-float", action="append", default=[], metavar="MODULE", help="leave this in float; may be repeated"
    )
    group.add_argument("--sensitivity", choices=("alone", "without"), help="show each layer alone, or all but it")
    group.add_argument("--max-drop", type=float, metavar="POINTS", help="of accuracy, that may be lost")
    group.add_argument(
        "--min-agreement", type=float, default=0.95, metavar="SHARE",
        help="of the parity examples on which both have to agree (%(default)s)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    with needs_extra(EXTRA, "offramp quantize"):
        from offramp_compression.quantization.quantize import chosen_layers, open_quantizer, quantized
        from offramp_compression.quantization.sensitivity import Judge
    wanted = _target(options)
    prepare(options)
    settings = _settings(options)
    network = open_model(options)
    calibration, tuning = _examples(options, network)
    quantizer = open_quantizer(network, calibration, options.to, settings, _variable(network, calibration))
    layers = chosen_layers(network, quantizer, settings)
    judge = Judge(network, tuning)
    model = _model(options, quantizer, judge, layers)
    if wanted is not None:
        made = quantized(network, quantizer, model, calibration, options.to, settings)
        judge = _final_judge(options, network, judge)
        quality = judge.quality(model)
        _publish(options, made.described(_metrics(judge, quality)), tuning, wanted)
        _show(judge, quality, model, quantizer)
    return 0


def _target(options: argparse.Namespace) -> Target | None:
    if options.repository and options.name:
        return target(options)
    if options.repository or options.name or not options.sensitivity:
        raise ConfigurationError(
            "give --repository and --name to write a model, or --sensitivity without them to compare its layers"
        )
    return None


def _settings(options: argparse.Namespace) -> QuantizationSettings:
    from offramp_compression.quantization.settings import QuantizationSettings

    given = {name: getattr(options, name) for name in ("calibration", "percentile", "only", "keep_float")}
    return from_options(QuantizationSettings, {**given, "reduce_range": reduce_range(options)})


def _examples(options: argparse.Namespace, network: Network) -> tuple[Dataset, Dataset]:
    from offramp_compression.data.dataset import aligned
    from offramp_compression.data.sample import two_samples

    data = aligned(open_data(options), network.class_names, str(options.data))
    return two_samples(data, options.calibration_examples, options.tuning_examples, options.seed)


def _variable(network: Network, examples: Dataset) -> VariableDimensions:
    from offramp_compression.data.dataset import tensors
    from offramp_compression.export.program import text_lengths

    return text_lengths(network.input_names, tensors(examples))


def _model(options: argparse.Namespace, quantizer: Quantizer, judge: Judge, layers: frozenset[str]) -> Int8Model:
    from offramp_compression.quantization.sensitivity import choose_float_layers, most_sensitive_first

    scanned = _scan(quantizer, judge, layers, options.sensitivity) if options.sensitivity else []
    if options.max_drop is None:
        return quantizer.quantize(layers)
    mode: Mode = options.sensitivity or "alone"
    scanned = scanned or _scan(quantizer, judge, layers, mode)
    ranked = [each.layer for each in most_sensitive_first(scanned, mode)]
    kept, model = choose_float_layers(quantizer, judge, ranked, options.max_drop / 100)
    say(f"left in float to lose at most {options.max_drop:g} points: {', '.join(kept) or 'nothing'}\n")
    return model


def _scan(quantizer: Quantizer, judge: Judge, layers: frozenset[str], mode: Mode) -> list[LayerQuality]:
    from offramp_compression.quantization.sensitivity import most_sensitive_first, scan

    scanned = list(scan(quantizer, judge, layers, mode))
    header = ("quantised alone" if mode == "alone" else "left in float", "accuracy", "points lost", "SQNR dB")
    rows = [(each.layer, *_cells(judge, each.quality)) for each in most_sensitive_first(scanned, mode)]
    say(table(header, rows, right=(1, 2, 3)) + "\n")
    return scanned


def _final_judge(options: argparse.Namespace, network: Network, judge: Judge) -> Judge:
    from offramp_compression.quantization.sensitivity import Judge

    return Judge(network, open_data(options, options.test_part, network.class_names)) if options.test_part else judge


def _publish(options: argparse.Namespace, made: Quantized, tuning: Dataset, wanted: Target) -> None:
    from offramp_compression.data.dataset import tensors
    from offramp_compression.data.sample import sample
    from offramp_compression.export.parity import INT8, Tolerance
    from offramp_compression.export.preparing import preparing

    inputs = tensors(sample(tuning, options.parity_rows, options.seed))
    tokenizer = options.tokenizer.read_bytes() if options.tokenizer else None
    additions = preparing(inputs, tokenizer, options.max_length)
    say_written(made.publish(inputs, wanted, Tolerance(INT8.difference, options.min_agreement), additions))


def _metrics(judge: Judge, quality: Quality) -> dict[str, float]:
    return {"accuracy": quality.accuracy, "float_accuracy": judge.accuracy, "sqnr_db": quality.sqnr}


def _show(judge: Judge, quality: Quality, model: Int8Model, quantizer: Quantizer) -> None:
    every = [*quantizer.layers, *quantizer.refusals]
    header = ("model", "layers in int8", "accuracy", "points lost", "SQNR dB")
    rows = [
        ("float", "0", f"{judge.accuracy:.4f}", "", ""),
        ("int8", f"{len(model.layers)} of {len(every)}", *_cells(judge, quality)),
    ]
    say("\n" + table(header, rows, right=range(1, len(header))))
    for layer in every:
        if layer not in model.layers:
            reason = quantizer.refusals.get(layer)
            say(f"in float: {layer}" + (f": {reason}" if reason else ""))


def _cells(judge: Judge, quality: Quality) -> Iterable[str]:
    sqnr = "exact" if math.isinf(quality.sqnr) else f"{quality.sqnr:.1f}"
    return f"{quality.accuracy:.4f}", f"{100 * (judge.accuracy - quality.accuracy):.2f}", sqnr
