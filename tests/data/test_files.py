"""Folders, shards and globs: which files they stand for, and whose splits they are."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from factdpo.config.schema import DataConfig, DataSource
from factdpo.data.facts import FactError
from factdpo.data.files import data_files, has_own_splits
from factdpo.data.load import load_facts


def facts(name: str, count: int = 2) -> list[dict[str, str]]:
    return [{"prompt": f"{name} {i} is", "chosen": "red", "rejected": "blue"} for i in range(count)]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def own(path: Path | str, **changes: str) -> DataConfig:
    return DataConfig(source=DataSource.pairs, path=str(path), **changes)


def test_shards_in_a_folder_are_the_splits_in_their_names(tmp_path: Path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(facts(name)), tmp_path / f"{name}.parquet")
    (tmp_path / "README.txt").write_text("About the data")
    loaded = load_facts(own(tmp_path)).facts
    assert [fact.split for fact in loaded] == ["test"] * 2 + ["train"] * 4 and has_own_splits(own(tmp_path))


def test_a_glob_and_packed_lines_are_read(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines(facts(name))))
    (tmp_path / "c.jsonl").write_bytes(lines(facts("c")))
    loaded = load_facts(own(tmp_path / "*.jsonl.gz")).facts
    assert [fact.prompt for fact in loaded] == ["a 0 is", "a 1 is", "b 0 is", "b 1 is"]
    assert not has_own_splits(own(tmp_path / "*.jsonl.gz"))


def test_what_datasets_saved_is_read_with_its_splits(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    saved = {name: datasets.Dataset.from_list(facts(name)) for name in ("train", "test")}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    loaded = load_facts(own(tmp_path / "saved")).facts
    assert {fact.split for fact in loaded} == {"train", "test"} and len(loaded) == 4
    (tmp_path / "saved" / "train" / "cache-0123.arrow").write_bytes(b"of a map that ran once")
    assert len(data_files(own(tmp_path / "saved"))) == 2
    assert [fact.split for fact in load_facts(own(tmp_path / "saved" / "train")).facts] == [None] * 2


def test_a_folder_without_tables_is_a_folder_and_not_a_missing_file(tmp_path: Path):
    (tmp_path / "README.md").write_text("nothing else")
    with pytest.raises(FactError, match="the folder holds no table"):
        load_facts(own(tmp_path))
    with pytest.raises(FactError, match="no such file"):
        load_facts(own(tmp_path / "none.csv"))


@pytest.mark.parametrize("key", ["data", "rows"])
def test_rows_in_the_one_list_of_an_object_are_read(tmp_path: Path, key: str):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"version": "1.0", key: facts("a")}, indent=1))
    loaded = load_facts(own(path)).facts
    assert [fact.where for fact in loaded] == [f"{path}: element 1", f"{path}: element 2"]
    path.write_text(json.dumps(facts("a")[0], indent=1))
    assert len(load_facts(own(path)).facts) == 1
    path.write_text('{\n "prompt": "p",\n "chosen"\n}')
    with pytest.raises(FactError, match=r"own.json:\d: not JSON"):
        load_facts(own(path))


def test_other_names_of_the_validation_split_are_it(tmp_path: Path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(facts(name)[0]) + "\n")
    assert [fact.split for fact in load_facts(own(tmp_path)).facts] == ["validation", "train"]
    (tmp_path / "notes.csv").write_text("prompt,chosen,rejected\np,a,b\n")
    with pytest.raises(FactError, match=r"notes\.csv, which is not; name the files"):
        load_facts(own(tmp_path))


def test_words_that_pandas_takes_for_missing_are_answers_in_a_sheet(tmp_path: Path):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("openpyxl")
    rows = [{"prompt": "The code of Namibia is", "chosen": "NA", "rejected": "None"}]
    pandas.DataFrame(rows).to_excel(tmp_path / "codes.xlsx", index=False)
    assert [(fact.chosen, fact.rejected) for fact in load_facts(own(tmp_path / "codes.xlsx")).facts] == [("NA", "None")]
