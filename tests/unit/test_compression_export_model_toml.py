"""`model.toml` as it is written, read back by the server."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_common.errors import ConfigurationError
from offramp_compression.export.model_toml import Description, render
from offramp_compression.export.program import Signature, TensorInfo
from offramp_compression.export.toml_text import toml_text
from offramp_server.repository.model_toml import ModelToml, TensorToml, read_model_toml

SIGNATURE = Signature(
    (TensorInfo("ids", "INT64", (-1,)),), (TensorInfo("logits", "FP32", (2,)), TensorInfo("hidden", "FP32", (4,)))
)
DESCRIPTION = Description("pt2", SIGNATURE, ('a "quoted" one', "ü\n"), {"provenance.method": "distill"})


def written(tmp_path: Path, description: Description = DESCRIPTION, existing: str = "") -> ModelToml:
    path = tmp_path / "model.toml"
    path.write_text(existing)
    text = render(description, path if existing else None)
    path.write_text(text)
    return read_model_toml(path)


def test_the_server_reads_what_is_written(tmp_path: Path) -> None:
    settings = written(tmp_path)
    assert settings.max_batch_size == 16
    assert settings.inputs == (TensorToml("ids", "INT64", (-1,)),)
    assert settings.outputs[0] == TensorToml("logits", "FP32", (2,), labels=('a "quoted" one', "ü\n"))
    assert settings.outputs[1].labels == ()
    assert settings.metadata == {"provenance.method": "distill"}
    assert settings.engine.backend == "auto"


def test_what_an_operator_has_set_stays_with_a_new_version(tmp_path: Path) -> None:
    settings = written(
        tmp_path,
        existing="""
        max_batch_size = 64
        versions = "all"
        [batching]
        max_queue_items = 7
        [engine]
        backend = "torch-compile"
        instances = 2
        [metadata]
        owner = "team"
        "provenance.method" = "prune"
        "provenance.metrics.accuracy" = "0.9"
        """,
    )
    assert (settings.max_batch_size, settings.versions, settings.batching.max_queue_items) == (64, "all", 7)
    assert (settings.engine.backend, settings.engine.instances) == ("torch-compile", 2)
    assert settings.metadata == {"owner": "team", "provenance.method": "distill"}


def test_a_backend_that_cannot_run_the_new_file_does_not_stay(tmp_path: Path) -> None:
    before = "[engine]\nbackend = 'torch-compile'\nthreads = 3\n"
    settings = written(tmp_path, replace(DESCRIPTION, format="onnx"), before)
    assert (settings.engine.backend, settings.engine.threads) == ("auto", 3)


def test_what_is_asked_for_goes_before_what_is_there(tmp_path: Path) -> None:
    asked = replace(DESCRIPTION, max_batch_size=2, backend="torch-eager")
    settings = written(tmp_path, asked, "max_batch_size = 64\n[engine]\nbackend = 'torch-compile'\n")
    assert (settings.max_batch_size, settings.engine.backend) == (2, "torch-eager")


def test_a_date_that_an_operator_has_noted_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    path.write_text("reviewed = 2024-02-29\n[review]\nat = 2024-02-29T12:30:00+01:00\n")
    text = render(DESCRIPTION, path)
    assert "reviewed = 2024-02-29\n" in text
    assert "at = 2024-02-29T12:30:00+01:00\n" in text


def test_settings_that_cannot_be_read_are_not_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        written(tmp_path, existing="max_batch_size = ")


MOMENTS = st.dates() | st.times() | st.datetimes() | st.datetimes(timezones=st.just(UTC))
SCALARS = st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(allow_nan=False) | MOMENTS
KEYS = st.text(max_size=5)
TABLES = st.recursive(
    st.dictionaries(KEYS, SCALARS | st.lists(SCALARS), max_size=3),
    lambda inner: st.dictionaries(KEYS, SCALARS | inner | st.lists(inner, min_size=1, max_size=2), max_size=3),
    max_leaves=10,
)


@given(TABLES)
def test_any_table_comes_back_as_it_was(table: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(table)) == table


def test_a_value_without_a_form_in_toml_is_refused() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        toml_text({"a": None})


def test_further_tables_replace_those_of_the_same_name_and_leave_the_others(tmp_path: Path) -> None:
    description = replace(DESCRIPTION, tables={"batching": {"max_queue_items": 9}})
    existing = "[batching]\nmax_queue_items = 7\ndefault_timeout = 3\n[warmup]\niterations = 4\n"
    settings = written(tmp_path, description, existing)
    assert (settings.batching.max_queue_items, settings.batching.default_timeout) == (9, 0)
    assert settings.warmup.iterations == 4
