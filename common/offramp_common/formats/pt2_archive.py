"""What a `.pt2` file is, read from the zip archive itself: nothing is unpickled and torch is not imported.

Engines load a model with

    torch.export.load(open_verified(spec.path, spec.digest))

`open_verified` inspects the archive and hands over a copy that holds only what was inspected: the cleaned program, raw
tensor data, and neither sample inputs nor extra files. torch has its own zip reader; as the copy is written here, what
it loads is nevertheless what was looked at.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from offramp_common.errors import LoadError
from offramp_common.formats.pt2_pickles import check_only_tensors
from offramp_common.formats.pt2_program import Json, check_plain, clean_program, is_quantized, parse_json
from offramp_common.formats.pt2_signature import read_signature
from offramp_common.formats.source_model import SourceModel
from offramp_common.formats.zip_archive import ZipArchive

PROGRAM = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"

_MARKERS = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_EXPECTED = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/.+"
)
_REASONS = (
    (re.compile(r"models/.*"), "only one program, named model, can be served"),
    (re.compile(r"data/(weights|constants)/.*\.pt"), "it is a pickle, written by torch before 2.8; export it again"),
    (re.compile(r"data/constants/custom_obj_.*"), "it is a pickled TorchBind object, and loading it executes code"),
    (re.compile(r"data/constants/opaque_obj_.*"), "it is a pickled Python object, and loading it executes code"),
    (re.compile(r"data/(aotinductor|executorch|mtia)/.*"), "it is compiled code; export with torch.export.save alone"),
)

# Bytes of one element by torch._export.serde.schema.ScalarType.
_ITEM_SIZES = {
    **dict.fromkeys((1, 2, 12, 29, 30, 31, 32, 33), 1),
    **dict.fromkeys((3, 6, 13, 28), 2),
    **dict.fromkeys((4, 7, 9, 34), 4),
    **dict.fromkeys((5, 8, 10, 35), 8),
    11: 16,
}


def open_verified(path: Path, digest: str = "") -> io.BytesIO:
    """Read a `.pt2` file once, refuse it if loading it could execute code, and return a clean archive of it.

    `digest` is `ModelSpec.digest`; where given, a file that has changed since is refused.
    Raises LoadError with a sentence that names the file and the entry of the archive.
    """
    with _named(path):
        data = path.read_bytes()
        if digest and hashlib.sha256(data).hexdigest() != digest:
            raise LoadError("it has changed since it was checked; load the model again")
        return _rewrite(_inspect(io.BytesIO(data)))


def read_pt2(path: Path) -> SourceModel:
    """What the file says about itself, without reading its weights. Raises LoadError as `open_verified` does."""
    with _named(path), path.open("rb") as file:
        inspected = _inspect(file)
        with _named(PROGRAM):
            inputs, outputs = read_signature(inspected.program)
        written_by = str(inspected.program["torch_version"])
        quantized = is_quantized(inspected.program)
        return SourceModel(path, "pt2", inputs, outputs, quantized=quantized, provenance={"torch_version": written_by})


@dataclass(frozen=True, slots=True)
class _Inspected:
    archive: ZipArchive
    program: Json
    # Entry name -> parsed content.
    tables: dict[str, Json]
    # Entries of raw tensor data that the tables refer to.
    payloads: tuple[str, ...]


@contextmanager
def _named(what: Path | str) -> Iterator[None]:
    try:
        yield
    except LoadError as error:
        raise LoadError(f"{what}: {error}") from None
    except OSError as error:
        raise LoadError(f"{what}: cannot be read: {error.strerror or error}") from None
    # A document of torch's own shape never gets here; a hand-made one may lack any key anywhere.
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
        raise LoadError(f"{what}: not as torch.export.save writes it ({type(error).__name__}: {error})") from None


def _inspect(file: IO[bytes]) -> _Inspected:
    archive = ZipArchive(file)
    _check_entries(archive)
    with _named(PROGRAM):
        program = clean_program(archive.read(PROGRAM))
    if SAMPLE_INPUTS in archive.names() and archive.size(SAMPLE_INPUTS):
        with _named(SAMPLE_INPUTS):
            check_only_tensors(archive.read(SAMPLE_INPUTS))
    tables: dict[str, Json] = {}
    payloads: list[str] = []
    for kind, prefix in (("weights", "weight_"), ("constants", "tensor_")):
        name = f"data/{kind}/model_{kind}_config.json"
        raw = archive.read(name)
        with _named(name):
            tables[name] = parse_json(raw)
            payloads += _payloads(tables[name], archive, f"data/{kind}/", prefix)
    return _Inspected(archive, program, tables, tuple(dict.fromkeys(payloads)))


def _check_entries(archive: ZipArchive) -> None:
    names = archive.names()
    if "archive_format" not in names:
        raise LoadError("it was not written by torch.export.save of torch 2.8 or later; export the model again")
    for name in names:
        if not _EXPECTED.fullmatch(name):
            reasons = [reason for pattern, reason in _REASONS if pattern.fullmatch(name)]
            raise LoadError(f'entry "{name}": {(*reasons, "torch.export.save does not write such an entry")[0]}')
    for name, expected in _MARKERS.items():
        if name in names and archive.read(name) != expected:
            raise LoadError(f'entry "{name}": expected "{expected.decode()}", got {archive.read(name)[:20]!r}')


def _payloads(table: Json, archive: ZipArchive, folder: str, prefix: str) -> Iterator[str]:
    """The entries that hold the tensors of one table."""
    check_plain(table)
    for name, payload in table["config"].items():
        if payload["use_pickle"] is not False or payload["tensor_meta"] is None:
            raise LoadError(f'"{name}" is pickled, and loading it executes code; use plain tensors')
        entry = folder + payload["path_name"]
        if not payload["path_name"].startswith(prefix) or entry not in archive.names():
            raise LoadError(f'"{name}" points to "{entry}", which is not in the archive')
        _check_extent(name, payload["tensor_meta"], archive.size(entry))
        yield entry


def _check_extent(name: str, meta: Json, available: int) -> None:
    """A tensor lies within its data: an empty entry would have torch make up zeros, of any size."""
    sizes = [_whole(size) for size in meta["sizes"]]
    strides = [_whole(stride) for stride in meta["strides"]]
    offset = _whole(meta["storage_offset"])
    if len(sizes) != len(strides) or min([0, offset, *sizes, *strides]) < 0:
        raise LoadError(f'"{name}" has a negative size, stride or offset')
    span = 0
    if 0 not in sizes:
        span = offset + 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    needed = span * _ITEM_SIZES[meta["dtype"]]
    if needed > available:
        raise LoadError(f'"{name}" needs {needed} bytes, the archive has {available} for it')


def _whole(size: Json) -> int:
    value: Any = size["as_int"]
    if type(value) is not int:
        raise LoadError(f"{value!r} is not a whole number")
    return value


def _rewrite(inspected: _Inspected) -> io.BytesIO:
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as target:

        def write(name: str, content: bytes) -> None:
            target.writestr(zipfile.ZipInfo(f"model/{name}"), content)

        for name, content in _MARKERS.items():
            write(name, content)
        # The version of torch's zip layout, which its reader wants to see.
        write(".data/version", b"6\n")
        write(PROGRAM, json.dumps(inspected.program).encode())
        for name, table in inspected.tables.items():
            write(name, json.dumps(table).encode())
        for name in inspected.payloads:
            write(name, inspected.archive.read(name))
        write(SAMPLE_INPUTS, b"")
    clean.seek(0)
    return clean
