"""What a `.pt2` file is, read from the zip archive itself: nothing is unpickled and torch is not imported.

Engines load a model with

    torch.export.load(open_verified(spec.path))

`open_verified` inspects the archive and hands over a copy that holds only what was inspected.
"""

from __future__ import annotations

import io
from pathlib import Path


def open_verified(path: Path, digest: str = "") -> io.BytesIO:
    """Read a `.pt2` file once, refuse it if loading it could execute code, and return a clean archive of it.

    `digest` is `ModelSpec.digest`; where given, a file that has changed since is refused.
    Raises LoadError with a sentence that names the file and the entry of the archive.
    """
    raise NotImplementedError
