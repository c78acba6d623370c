"""Is a `torch.save` file nothing but tensors? Its pickle is read opcode by opcode and never executed.

`torch.export.save` always pickles the sample inputs. They are not needed to serve and are left out of what engines
load, but a file whose sample inputs are a trap is no file to trust with the rest.
"""

from __future__ import annotations

import io
import pickletools
import re

from offramp_common.errors import LoadError
from offramp_common.formats.zip_archive import ZipArchive

_MAX_PICKLE_BYTES = 64 * 2**20

# What torch needs to rebuild tensors, "module name": none of these takes code or a path.
_HARMLESS = re.compile(
    r"collections OrderedDict"
    r"|torch \w+Storage|torch\.storage (Untyped|Typed)Storage"
    r"|torch (Size|device|bool|bfloat16|u?int\d+|float\d+\w*|complex\d+)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
    r"|torch\._export\.serde\.serialize _reconstruct_fake_tensor"
    r"|(builtins|__builtin__) (complex|slice|set|frozenset)"
)
# Opcodes that fetch something to call by a name that is only known while executing.
_HIDDEN = frozenset({"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})


def check_only_tensors(data: bytes) -> None:
    """Raise LoadError if unpickling `data`, a torch.save file, would call anything but what rebuilds tensors."""
    archive = ZipArchive(io.BytesIO(data))
    for name in archive.names():
        if name.endswith(".pkl"):
            if archive.size(name) > _MAX_PICKLE_BYTES:
                raise LoadError(f'"{name}" has {archive.size(name)} bytes; at most {_MAX_PICKLE_BYTES} are read')
            _check_opcodes(archive.read(name))


def _check_opcodes(pickled: bytes) -> None:
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _HIDDEN:
                raise LoadError(f"its pickle uses {opcode.name}; save it with pickle protocol 2, torch's default")
            if opcode.name == "GLOBAL" and not _HARMLESS.fullmatch(str(argument)):
                called = str(argument).replace(" ", ".")
                raise LoadError(f'its pickle would call "{called}"; only tensors and plain numbers are accepted')
    except (ValueError, EOFError, IndexError, UnicodeDecodeError) as error:
        raise LoadError(f"its pickle cannot be read: {error}") from None
