"""`offramp infer`: one request from files."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from offramp_server.cli import answers, declared
from offramp_server.cli.commands import Commands
from offramp_server.cli.connection import connect, server_options
from offramp_server.cli.failures import UsageError, usage_errors
from offramp_server.cli.input_files import NamedFile, read_request

DESCRIPTION = """\
Send one request to a model or route and print the answer. A FILE may be

  .json          the values as nested lists; without NAME also
                 {"inputs": {NAME: VALUES, ...}}, or a whole request in the Open
                 Inference Protocol's JSON form
  .npy           an array
  a picture      made greyscale or RGB, resized and scaled as far as the input's
                 dimensions and datatype tell (needs the extra "image"); as it
                 is for a BYTES input
  anything else  text, one element of a BYTES input

Values become the declared datatype where nothing but rounding is lost. A single
item becomes a batch of one.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "infer",
        parents=[server_options()],
        help="send one request to a running server",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a model or a route")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the whole request, or the only input")
    parser.add_argument("--input", action="append", default=[], type=_named_file, metavar="NAME=FILE")
    parser.add_argument("--model-version", default="", metavar="VERSION", help="default: the server chooses")
    parser.add_argument("--output", action="append", default=[], metavar="NAME", help="only this; may be repeated")
    _add_path_options(parser)
    parser.add_argument("--parameter", action="append", default=[], type=_parameter, metavar="KEY=TEXT",
                        help="a request parameter, sent as a string")  # fmt: skip
    parser.add_argument(
        "--top", type=int, default=5, metavar="K", help="classes to name if there are labels (default 5)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def _add_path_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which way a route answers")
    group.add_argument("--route", metavar="WAY", help='another than its own: "model:NAME" for one of its models')
    group.add_argument("--unit", help="whom the answer is for, a user id for example: a split keeps him at one arm")
    group.add_argument("--max-exit", metavar="EXIT", help="go no deeper than this exit, by its name or number")
    group.add_argument("--min-confidence", type=float, metavar="SURE", help="exits have to be so sure, from 0 to 1")


def run(options: argparse.Namespace) -> int:
    files = [*([NamedFile("", options.file)] if options.file else []), *options.input]
    if not files:
        raise UsageError("infer: nothing to send; give FILE or --input NAME=FILE")
    with connect(options) as client:
        model = declared.ask(client, options.model, options.model_version)
        request = read_request(files, model)
        started = time.perf_counter()
        with usage_errors():
            result = client.infer(
                options.model,
                request.inputs,
                version=options.model_version,
                outputs=[*request.outputs, *options.output],
                parameters={**request.parameters, **dict(options.parameter)},
                request_id=request.id,
                route=options.route,
                unit=options.unit,
                max_exit=options.max_exit,
                min_confidence=options.min_confidence,
            )
        seconds = time.perf_counter() - started
    for remark in request.remarks:
        print(remark, file=sys.stderr)
    show = answers.as_json if options.json else answers.as_text
    print(show(result, seconds, declared.labels_of(model, result), options.top))
    return 0


def _named_file(text: str) -> NamedFile:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f'expected NAME=FILE, got "{text}"')
    return NamedFile(name, Path(path))


def _parameter(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f'expected KEY=TEXT, got "{text}"')
    return key, value
