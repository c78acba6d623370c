"""Labels and what they mean, as a file says it."""

from __future__ import annotations

from pathlib import Path

from offramp_compression.errors import DataError


def read_labels(path: Path) -> dict[str, str]:
    """A label and its description a line, a tab between the two; without a tab the label describes itself.

    Raises DataError for a file that cannot be read and for a label that comes twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}; expected LABEL<tab>DESCRIPTION lines") from error
    return described([line for line in lines if line.strip()], "\t", str(path))


def described(lines: list[str], separator: str, where: str) -> dict[str, str]:
    """Descriptions by label, of texts "label" or "label SEPARATOR description". Raises DataError for a label twice."""
    found: dict[str, str] = {}
    for line in lines:
        label, _, description = (part.strip() for part in line.partition(separator))
        if not label or label in found:
            raise DataError(f"{where}: {line.strip()!r}: expected labels that are not empty and all different")
        found[label] = description or label
    return found
