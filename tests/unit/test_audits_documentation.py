"""docs/audits.md has the tables as they are, and its example can be run."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest
from offramp_server.store.audits import SCHEMA
from offramp_server.store.schema import connect, prepare

DOCUMENT = (Path(__file__).parents[2] / "docs" / "audits.md").read_text()
TABLES, EXAMPLE = re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL)


def documented() -> dict[str, list[str]]:
    without_comments = re.sub(r"--.*", "", TABLES)
    found = re.findall(r"(\w+) \(([^)]*)\)", without_comments)
    return {name: [column.strip() for column in columns.split(",")] for name, columns in found}


def test_the_tables_are_those_of_the_document() -> None:
    with closing(connect(None)) as connection:
        prepare(connection, None, [SCHEMA])
        for table, columns in documented().items():
            assert [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] == columns
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert tables == documented().keys() | {"schema_versions"}


def test_the_example_runs() -> None:
    with closing(connect(None)) as connection:
        prepare(connection, None, [SCHEMA])
        if connection.execute("SELECT sqlite_version() < '3.38'").fetchone() == (1,):
            pytest.skip("this SQLite has no unixepoch()")
        connection.execute("INSERT INTO epochs VALUES (1, 'r', 1, '', '', 0, 0, 1, 0, 1)")
        row = "(1, 1, 0, 0, 0, unixepoch(), 0, 2, '[0.9]', '[0.8]', 0.1, '', '[0]', 3, 4)"
        connection.execute(f"INSERT INTO exits VALUES {row}")
        [found] = connection.execute(EXAMPLE).fetchall()
        assert found[1:] == (0, "[0.9]", "[0.8]", 3, 4)
