"""Exported programs (`.pt2`), read as the server reads them: inspected first, so that nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import torch

# Registers the operators of quantised programs (torch.ops.quantized_decomposed), which torch does only on demand.
import torch.ao.quantization.fx._decomposed
from offramp_common.errors import LoadError
from offramp_common.formats.pt2_archive import open_verified

from offramp_compression.errors import ModelError


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Raises ModelError for a file that could run code when it is loaded, or that is no exported program."""
    try:
        return torch.export.load(open_verified(path))
    except LoadError as error:
        raise ModelError(str(error)) from error
    except Exception as error:
        # torch has no type for it, and a user should read one sentence.
        raise ModelError(f"{path} is not a program that this torch can load: {error}") from error
