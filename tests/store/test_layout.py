from pathlib import Path

from factdpo.store.layout import has_record, homes, is_run, run_names
from tests.helpers.stored import store


def test_a_foreign_result_json_makes_no_folder_a_run(tmp_path: Path) -> None:
    store(tmp_path / "sweep", "a")
    (tmp_path / "result.json").write_text("{}")
    assert has_record(tmp_path) and not is_run(tmp_path) and is_run(tmp_path / "sweep" / "run-a")
    assert homes(tmp_path) == [(tmp_path / "sweep", ["run-a"])]


def test_homes_of_a_run_a_sweep_and_a_sweep_of_which_nothing_was_opened(tmp_path: Path) -> None:
    run = store(tmp_path / "sweeps" / "beta", "a")
    store(run.parent, "b", state="killed")
    (tmp_path / "sweeps" / "rank").mkdir()
    (tmp_path / "sweeps" / "rank" / "sweep.json").write_text("{}")
    assert homes(run) == [(run.parent, ["run-a"])]
    assert homes(tmp_path) == [(run.parent, ["run-a", "run-b"]), (tmp_path / "sweeps" / "rank", [])]
    assert run_names(run.parent) == ["run-a", "run-b"] and run_names(tmp_path) == []
