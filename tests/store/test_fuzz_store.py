"""Whatever lies in a folder of runs, its readers show what they can and refuse the rest by name."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factdpo.config import overrides
from factdpo.config.schema import ConfigError
from factdpo.results import sweep_status, tables
from factdpo.results.sweep_status import plain
from factdpo.store import layout, sweep_file
from factdpo.store.history import read_history
from factdpo.store.result import read_record, read_result
from tests.helpers.stored import answers, finished, planned

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))  # `make faults` looks longer
quick = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("../../etc")
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
KEYS = [
    "id",
    "state",
    "config",
    "trained",
    "base",
    "timing",
    "warnings",
    "files",
    "training",
    "runs",
    "metrics",
    "steps",
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for id in ("a1", "b2"):
        answers(finished(tmp_path / "s", id), "+-")
    planned(tmp_path / "s")
    return tmp_path / "s"


def shown(home: Path) -> list[str]:
    """The states of its runs, by every reader of many; nothing is hidden by what is wrong with another."""
    (group,) = sweep_status.look([home], {})
    json.dumps(plain(group))
    return sorted(tables.load(home).table["state"])


@settings(quick, max_examples=12 * TIMES)
@given(changes=st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3))
def test_a_record_with_other_values_is_read_or_refused(home: Path, changes: dict[str, Any]):
    path = home / "run-a1" / "result.json"
    whole = path.read_bytes()
    record = {k: v for k, v in json.loads(whole).items() if k not in ("sha256", "record_version")}  # of before
    path.write_text(json.dumps(record | changes))
    try:
        assert "FINISHED" in shown(home), "the other run is shown"
        read_result(home / "run-a1")
    finally:
        path.write_bytes(whole)


@settings(quick, max_examples=8 * TIMES)
@given(value=values | st.dictionaries(st.sampled_from(KEYS), values, max_size=4))
@pytest.mark.parametrize("file", ["sweep.json", "run-a1/result.json", "run-a1/asked.json", "run-a1/plan.json"])
def test_any_json_in_place_of_a_file_is_read_or_refused(home: Path, file: str, value: Any):
    whole = (home / file).read_bytes() if (home / file).exists() else None
    (home / file).write_text(json.dumps(value))
    try:
        assert "FINISHED" in shown(home)
        for read, folder in (
            (sweep_file.read, home),
            (layout.read_asked, home / "run-a1"),
            (read_record, home / "run-a1"),
        ):
            try:
                read(folder)
            except ConfigError as error:
                assert str(home) in str(error) and len(str(error)) < 1500
    finally:
        (home / file).unlink() if whole is None else (home / file).write_bytes(whole)


@settings(quick, max_examples=12 * TIMES)
@given(share=st.floats(0, 1), gone=st.integers(0, 30), piece=st.binary(max_size=8))
def test_a_damaged_index_or_history_changes_no_number(home: Path, share: float, gone: int, piece: bytes):
    table = tables.load(home).table
    path = home / "results.parquet"
    data = path.read_bytes()
    at = int(share * len(data))
    path.write_bytes(data[:at] + piece + data[at + gone :])
    assert tables.load(home).table.equals(table)
    history = home / "run-a1" / "history.jsonl"
    shutil.copyfile(history, home / "kept")
    data = history.read_bytes()
    at = int(share * len(data))
    history.write_bytes(data[:at] + piece + data[at + gone :])
    try:
        sweep_status.look([home], {})
        read_history(history)
    except ValueError as error:
        assert str(history) in str(error)
    finally:
        shutil.move(home / "kept", history)


@settings(quick, max_examples=100 * TIMES)
@given(words=st.lists(st.text(max_size=12) | st.sampled_from(["-m", "seed=", "=", "${oc.env:HOME}", "a=b=c", "~x"])))
def test_any_words_are_taken_or_refused(words: list[str]):
    try:
        overrides.for_hydra(words)
    except ConfigError as error:
        assert str(error)
