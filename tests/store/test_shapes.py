"""What is read back is of the shape that was written, or refused by name; one bad file hides no other."""

import json
from pathlib import Path

import pytest

from factdpo.config.schema import ConfigError
from factdpo.results import sweep_status, tables
from factdpo.store import layout, sweep_file
from factdpo.store.result import digest, is_proven, read_record, read_result, write_result
from factdpo.store.shapes import DamagedFile
from tests.helpers.stored import finished, planned, store

WRONG = ["", "null", "[]", '"x"', "{}", '{"runs": []}', '{"runs": {"a": {}}}', "[" * 5000, "NaN", "\x00", '{"id": 1}']


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_a_file_of_another_shape_is_refused_with_its_name_what_was_found_and_what_to_do(tmp_path: Path, text: str):
    folder = finished(tmp_path, "a1")
    for file, read in (
        ("sweep.json", sweep_file.read),
        ("asked.json", layout.read_asked),
        ("result.json", read_record),
    ):
        (folder / file).write_text(text)
        with pytest.raises(DamagedFile, match=rf"^{folder / file}: .*; ") as refused:
            read(folder)
        assert len(str(refused.value)) < 1000
        (folder / file).unlink()
        (folder / file).mkdir()
        with pytest.raises(DamagedFile, match=rf"^{folder / file}: cannot be read \(Is a directory\); "):
            read(folder)
        (folder / file).rmdir()


@pytest.mark.parametrize("name", ["../../../etc", "..", "", "/etc", "a/b"])
def test_a_sweep_whose_run_lies_elsewhere_is_refused(tmp_path: Path, name: str):
    finished(tmp_path, "a1")
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": {"a1": {"folder": name, "label": "x"}}}))
    with pytest.raises(DamagedFile, match=r"runs.a1.folder: .*must be the name of a folder beside this file"):
        sweep_file.read(tmp_path)
    (group,) = sweep_status.look([tmp_path], {})
    assert [run.id for run in group.runs] == ["a1"] and group.problem and "runs.a1.folder" in group.problem


def test_a_record_that_names_a_file_elsewhere_is_refused(tmp_path: Path):
    folder = store(tmp_path, "a1")
    write_result(folder, read_record(folder) | {"files": {"../../secret": "ab"}})
    with pytest.raises(DamagedFile, match="must be the name of a file in this folder"):
        read_record(folder)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"config": {"dpo": {"loss": [{}]}}}, "config: .*must have lists of plain values only"),
        ({"training": {"steps": []}}, "training: .*must have no lists"),
        ({"trained": {"train": {"accuracy": 1.0, "n": {"x": [1]}}}}, "trained.train: .*must have no lists"),
    ],
)
def test_values_that_no_table_can_show_are_refused_and_hide_no_others(tmp_path: Path, changes: dict, found: str):
    finished(tmp_path, "a1")
    folder = finished(tmp_path, "b2")
    write_result(folder, read_record(folder) | changes)
    with pytest.raises(DamagedFile, match=found):
        read_record(folder)
    assert tables.load(tmp_path).table["state"].tolist() == ["FINISHED", "killed"]


def test_a_bad_sweep_and_a_bad_run_hide_no_others(tmp_path: Path):
    for sweep in ("good", "bad"):
        for id in ("a1", "b2"):
            finished(tmp_path / sweep, sweep[0] + id)
        planned(tmp_path / sweep)
    (tmp_path / "bad/sweep.json").write_text('"x"')
    (tmp_path / "bad/run-ba1/result.json").write_text("[]")
    groups = {group.folder.name: group for group in sweep_status.look([tmp_path], {})}
    assert [run.state for run in groups["good"].runs] == ["FINISHED"] * 2 and groups["good"].problem is None
    assert [run.state for run in groups["bad"].runs] == ["killed", "FINISHED"] and groups["bad"].problem
    assert "run-ba1/result.json: it: Input should be a valid dictionary" in (groups["bad"].runs[0].error or "")
    assert tables.load(tmp_path).table["state"].tolist() == ["killed", "FINISHED", "FINISHED", "FINISHED"]


# ----------------------------------------------------------------------------------------------- a record proves itself


def test_any_flipped_bit_of_a_record_is_noticed_by_every_reader(tmp_path: Path):
    folder = finished(tmp_path, "a1")
    path, whole = folder / "result.json", (folder / "result.json").read_bytes()
    shown = tables.load(tmp_path).table
    sound = read_record(folder)
    unnoticed = []
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            if read_record(folder) != sound:
                unnoticed.append(at)
        except DamagedFile:
            pass
    assert unnoticed == []
    digit = whole.index(b'"accuracy": 0.5') + len('"accuracy": 0.')
    path.write_bytes(whole[:digit] + b"9" + whole[digit + 1 :])
    row = tables.load(tmp_path).table.iloc[0]  # with an index that has the true number
    assert row["state"] == "killed" and "changed since the run wrote it" in row["error"]
    assert sweep_status.look([tmp_path], {})[0].runs[0].state == "killed"
    assert "changed since the run wrote it" in (read_result(folder).reason or "")
    path.write_bytes(whole)
    assert tables.load(tmp_path).table.equals(shown)


@pytest.mark.parametrize("swapped", ["records", "folders"])
def test_two_records_or_two_folders_that_were_swapped_are_noticed(tmp_path: Path, swapped: str):
    one, other = finished(tmp_path, "a1", 0.5), finished(tmp_path, "b2", 0.7)
    tables.load(tmp_path)  # an index that knows both
    left, right, aside = (one, other, tmp_path / "x") if swapped == "folders" else (
        one / "result.json", other / "result.json", tmp_path / "x.json")  # fmt: skip
    left.rename(aside)
    right.rename(left)
    aside.rename(right)
    for folder in (one, other):
        with pytest.raises(DamagedFile, match="which is not this folder's"):
            read_record(folder)
    assert tables.load(tmp_path).table["state"].tolist() == ["killed", "killed"]


def test_a_record_of_before_is_read_and_said_to_prove_nothing(tmp_path: Path):
    folder = store(tmp_path, "a1")
    record = read_record(folder)
    assert record["sha256"] == digest(record) and is_proven(record)
    old = {key: value for key, value in record.items() if key not in ("sha256", "record_version")}
    (folder / "result.json").write_text(json.dumps(old))
    assert read_record(folder) == old and not is_proven(old)
    results = tables.load(tmp_path)
    assert results.table["state"].tolist() == ["FINISHED"] and results.unproven == 1
    (folder / "result.json").write_text(json.dumps(record | {"record_version": 3}))
    with pytest.raises(ConfigError, match="written by a newer factdpo"):
        read_record(folder)
    for missing in ("sha256", "record_version"):  # a damaged key makes it no record of before
        (folder / "result.json").write_text(json.dumps({k: v for k, v in record.items() if k != missing}))
        with pytest.raises(DamagedFile, match="changed since the run wrote it"):
            read_record(folder)
