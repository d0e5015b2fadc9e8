import json
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet
import pytest
from filelock import FileLock

import factdpo
from factdpo.config.schema import ConfigError
from factdpo.results.best import choosing
from factdpo.results.tables import load, or_none
from factdpo.store import index
from factdpo.store.result import write_result
from factdpo.store.run_lock import lock_file
from tests.helpers.stored import answers, store


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """outputs/sweeps/beta: two betas, two seeds."""
    home = tmp_path / "outputs" / "sweeps" / "beta"
    for number, (beta, seed) in enumerate([(0.1, 0), (0.1, 1), (0.5, 0), (0.5, 1)]):
        store(home, f"{number}a", accuracy=0.5 + number / 10, dpo_beta=beta, seed=seed)
    return home


# ----------------------------------------------------------------------------------------------------------- the tables


def test_a_run_is_a_row_with_the_keys_that_differ_and_the_metrics_of_wandb(sweep: Path):
    runs = factdpo.load(sweep).runs
    assert list(runs.columns) == [
        "id", "name", "kind", "folder", "state", "error", "started", "warnings", "dpo.beta", "seed", "n/train",
        "accuracy/train", "answer_shares.friend/train", "answer_shares.and/or/train", "p_other/train", "n/test",
        "accuracy/test", "answer_shares.friend/test", "answer_shares.and/or/test", "p_other/test",
        "across/symmetry_train", "base/n/train", "base/accuracy/train", "base/n/test", "base/accuracy/test",
        "baseline/additive/train", "baseline/additive/test", "timing/total_seconds",
    ]  # fmt: skip
    assert runs[["id", "state", "dpo.beta", "seed", "accuracy/train"]].to_numpy().tolist() == [
        ["0a", "FINISHED", 0.1, 0, 0.5], ["1a", "FINISHED", 0.1, 1, 0.6],
        ["2a", "FINISHED", 0.5, 0, 0.7], ["3a", "FINISHED", 0.5, 1, 0.8],
    ]  # fmt: skip
    assert runs["folder"].tolist() == [str(sweep / f"run-{number}a") for number in range(4)]


def test_what_all_runs_share_is_not_a_column_and_can_be_had(sweep: Path):
    results = load(sweep)
    assert results.shared["dpo.loss"] == "[sigmoid]" and results.shared["lora.rank"] == 32
    assert results.shared["split.test"] is None and "dpo.beta" not in results.shared


def test_places_and_trackers_are_no_settings(tmp_path: Path):
    store(tmp_path, "a", track_log_every=3, engine_max_runs=3)
    store(tmp_path, "b", track_log_every=5)
    assert load(tmp_path).keys == []


def test_seed_is_one_column_where_it_is_the_seed_of_everything(tmp_path: Path):
    store(tmp_path, "a", seed=0)
    store(tmp_path, "b", seed=1)
    assert load(tmp_path).keys == ["seed"] and load(tmp_path).settings == []
    store(tmp_path, "c", seed=1, split_seed=5)
    assert load(tmp_path).keys == ["split.seed", "dpo.seed"] and load(tmp_path).settings == []


def test_what_follows_from_the_model_makes_no_groups_of_its_own(tmp_path: Path):
    store(tmp_path, "a")
    store(tmp_path, "b", model_name="pythia", model_source="pretrained", model_id="EleutherAI/pythia-14m")
    assert load(tmp_path).settings == ["model.name"]
    store(tmp_path, "c", model_name="pythia", model_source="pretrained", model_id="EleutherAI/pythia-70m")
    assert load(tmp_path).settings == ["model.name", "model.id"]


def test_any_folder_above_runs_will_do_and_no_run_counts_twice(sweep: Path):
    outputs = sweep.parents[1]
    store(outputs / "runs", "9a", dpo_beta=0.2)
    store(outputs / "runs", "0a", accuracy=0.9, state="FAILED", dpo_beta=0.1)  # also in the sweep, finished
    assert sorted(load(outputs).table["id"]) == ["0a", "1a", "2a", "3a", "9a"]
    results = load(sweep, outputs / "runs", sweep / "run-0a")
    assert len(results.table) == 5 and results.repeated == 1 and set(results.table["state"]) == {"FINISHED"}
    assert load(sweep / "run-1a").table["id"].tolist() == ["1a"]


def test_folders_are_named_as_one_would_type_them(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(sweep.parents[2])
    assert load().table["folder"][0] == "outputs/sweeps/beta/run-0a"
    monkeypatch.chdir(sweep / "run-0a")
    assert load(".").table["id"].tolist() == ["0a"]


def test_folders_without_runs_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere: no such folder; give a run's"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=f"{tmp_path}: no run in it"):
        load(tmp_path)


def test_a_run_without_a_readable_result_is_shown_as_killed_while_nobody_does_it(sweep: Path):
    store(sweep, "4a", state="killed", dpo_beta=0.9)
    (store(sweep, "5a", dpo_beta=0.9) / "result.json").write_text('{"state": "FINI')
    store(sweep, "6a", state="DIVERGED", dpo_beta=0.9)
    (sweep / "run-7a").mkdir()
    (sweep / "run-7a" / "asked.json").write_text("{}")  # killed before its config was written
    for _ in range(2):  # without and with an index
        results = load(sweep)
        late = results.runs.iloc[4:]
        assert late[["id", "state", "dpo.beta"]].iloc[:3].to_numpy().tolist() == [
            ["4a", "killed", 0.9], ["5a", "killed", 0.9], ["6a", "DIVERGED", 0.9],
        ]  # fmt: skip
        assert late["error"].tolist()[:2] == [
            "no result, and no process is at work on it",
            f"{sweep / 'run-5a/result.json'}: not JSON (Unterminated string starting at: line 1 column 11 (char 10)); "
            "move the folder away, or put a sound copy there; the run's command redoes it",
        ]
        assert late["id"].tolist()[3] == "7a" and results.keys == ["dpo.beta", "seed"]
        assert len(results.finished) == 4


def test_a_run_that_a_process_is_doing_is_running_and_one_that_ends_meanwhile_has_its_result(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
):
    run = store(sweep, "4a", state="killed")
    with FileLock(lock_file(run)):
        row = load(sweep).table.iloc[4]
    assert (row["state"], or_none(row["error"])) == ("running", None)
    assert load(sweep).table["state"].iloc[4] == "killed"

    def ends(folder: Path) -> str:
        shutil.rmtree(folder)
        store(sweep, "4a", accuracy=1.0)
        return "killed"

    monkeypatch.setattr(index, "running_or_killed", ends)
    assert load(sweep).table[["state", "accuracy/train"]].iloc[4].tolist() == ["FINISHED", 1.0]


def test_splits_have_a_row_per_run_split_and_model(sweep: Path):
    splits = load(sweep).splits
    assert len(splits) == 4 * 2 * 2
    row = splits[(splits["id"] == "3a") & (splits["split"] == "test") & (splits["model"] == "trained")].iloc[0]
    assert (row["n"], row["accuracy"], row["baseline/additive"], row["dpo.beta"]) == (561, 0.4, 0.5, 0.5)
    assert row["answer_shares.and/or"] == 0.5
    base = splits[(splits["model"] == "base") & (splits["split"] == "train")]
    assert base["accuracy"].tolist() == [0.25] * 4 and base["baseline/additive"].tolist() == [0.75] * 4


def test_items_and_history_come_with_the_run_they_are_of(tmp_path: Path):
    for number, seed in enumerate((0, 1)):
        folder = answers(store(tmp_path, f"{number}a", seed=seed), "+-")
        (folder / "history.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": "nan"}\n')
    store(tmp_path, "2a", state="FAILED")
    results = load(tmp_path)
    assert results.items.columns.tolist()[:4] == ["id", "seed", "model", "split"] and len(results.items) == 8
    assert results.history["id"].tolist() == ["0a", "0a", "1a", "1a"]
    assert results.history["loss"].isna().tolist() == [False, True, False, True]
    (tmp_path / "run-1a" / "items.parquet").unlink()
    with pytest.raises(ConfigError, match=r"run-1a/items.parquet: cannot be read .*; run it again, or leave it out"):
        load(tmp_path).items  # noqa: B018


def test_the_meaning_of_names_is_forgiving_and_what_has_none_is_refused_with_the_closest(sweep: Path):
    results = load(sweep)
    assert results.key("model") == "model.name" and results.key("dpo.beta") == "dpo.beta" and results.key("id") == "id"
    assert results.metrics_of("accuracy") == ["accuracy/train", "accuracy/test"]
    assert results.metrics_of("accuracy/test") == ["accuracy/test"]
    assert results.metrics_of("baseline/additive") == ["baseline/additive/train", "baseline/additive/test"]
    with pytest.raises(ConfigError, match=r"^dpo.bta: no such key \(did you mean dpo.beta\?\); differing are dpo.beta"):
        results.key("dpo.bta")
    with pytest.raises(ConfigError, match=r"^acuracy/test: no such metric \(did you mean accuracy/test or "):
        results.metrics_of("acuracy/test")


def test_importing_factdpo_stays_light():
    light = "import sys, factdpo; print([m for m in ('pandas', 'pyarrow', 'torch', 'hydra') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", light], capture_output=True, text=True).stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------------ the index


def test_only_new_and_changed_results_are_read_again(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    original = index._read
    monkeypatch.setattr(index, "_read", lambda folder: read.append(folder.name) or original(folder))
    first = load(sweep).table
    assert len(read) == 4 and (sweep / "results.parquet").is_file()
    assert load(sweep).table.equals(first) and len(read) == 4
    store(sweep, "4a")
    changed = json.loads((sweep / "run-0a" / "result.json").read_text())
    changed["trained"]["train"]["accuracy"] = 0.125
    write_result(sweep / "run-0a", changed)
    assert load(sweep).table["accuracy/train"].tolist() == [0.125, 0.6, 0.7, 0.8, 0.5]
    assert sorted(read[4:]) == ["run-0a", "run-4a"]


def test_a_run_that_is_gone_or_begun_anew_leaves_the_index(sweep: Path):
    index.update_index(sweep)
    (sweep / "run-1a" / "result.json").unlink()
    for file in (sweep / "run-2a").iterdir():
        file.unlink()
    (sweep / "run-2a").rmdir()
    index.update_index(sweep)
    assert pyarrow.parquet.read_table(sweep / "results.parquet")["folder"].to_pylist() == ["run-0a", "run-3a"]
    assert load(sweep).table["state"].tolist() == ["FINISHED", "killed", "FINISHED"]


def test_a_damaged_or_older_index_is_made_again(sweep: Path):
    whole = load(sweep).table
    path = sweep / "results.parquet"
    good = path.read_bytes()
    table = pyarrow.parquet.read_table(path)
    flipped = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in (0, 100, 1000, 3000)]  # checksums tell
    for damaged in (b"", good[:1000], good[:-10], *flipped):
        path.write_bytes(damaged)
        assert load(sweep).table.equals(whole)
        assert pyarrow.parquet.read_table(path).equals(table)
    pyarrow.parquet.write_table(table.select(["folder"]).replace_schema_metadata({"factdpo_index": "0"}), path)
    assert load(sweep).table.equals(whole)


def test_the_index_of_a_folder_moved_elsewhere_still_holds(sweep: Path, tmp_path: Path):
    index.update_index(sweep)
    sweep.rename(tmp_path / "paper")
    assert load(tmp_path / "paper").table["folder"][0] == str(tmp_path / "paper" / "run-0a")


def test_many_may_write_the_index_at_once(sweep: Path):
    def add(number: int) -> None:
        store(sweep, f"{number}b")
        index.update_index(sweep)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(12)))
    assert len(load(sweep).table) == 16
    assert len(pyarrow.parquet.read_table(sweep / "results.parquet")) == 16
    assert [path.name for path in sweep.glob(".*")] == [".results.parquet.sha256"]


def test_an_index_that_cannot_be_written_costs_one_warning(sweep: Path, caplog: pytest.LogCaptureFixture):
    (sweep / "results.parquet").mkdir()  # also stops root, whom no read-only folder stops
    with caplog.at_level(logging.WARNING, "factdpo"):
        for _ in range(3):
            index.update_index(sweep)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{sweep / 'results.parquet'} cannot be written (")
    assert len(load(sweep).table) == 4
    index.update_index(sweep / "nowhere")  # never raises into the run that calls it
    assert not list(sweep.glob(".*"))


def test_a_value_that_is_text_in_one_run_and_a_number_in_another_is_text(sweep: Path):
    load(sweep)
    folder = store(sweep, "4a")
    result = json.loads((folder / "result.json").read_text())
    result["config"]["dpo"]["beta"] = "warm"
    write_result(folder, result)
    assert load(sweep).table["dpo.beta"].tolist() == ["0.1", "0.1", "0.5", "0.5", "warm"]
    os.remove(sweep / "results.parquet")
    assert load(sweep).table["dpo.beta"].tolist() == ["0.1", "0.1", "0.5", "0.5", "warm"]


def test_the_headline_is_per_token_where_lengths_differ_and_the_run_asks_for_it(tmp_path: Path):
    for id, asked in (("mean", "mean"), ("sum", "sum")):
        folder = store(tmp_path / id, "a")
        result = json.loads((folder / "result.json").read_text())
        result["config"]["eval"]["score"] = asked
        for model in ("base", "trained"):
            result[model]["test"] |= {"accuracy_per_token": 0.75, "n_equal": 100}
        write_result(folder, result)
    mean, summed = load(tmp_path / "mean"), load(tmp_path / "sum")
    assert (mean.accuracy, summed.accuracy) == ("accuracy_per_token", "accuracy")
    assert mean.default_metrics == ["accuracy/train", "accuracy_per_token/test", "accuracy/test"]
    assert summed.default_metrics == ["accuracy/train", "accuracy/test", "accuracy_per_token/test"]
    assert choosing(mean.metrics, mean.accuracy)[0].name == "accuracy_per_token/test"


def test_a_key_that_came_after_a_record_is_at_its_default_there(tmp_path: Path):
    older = store(tmp_path, "a", dpo_beta=0.1)
    store(tmp_path, "b", dpo_beta=0.2)
    result = json.loads((older / "result.json").read_text())
    del result["config"]["dpo"]["retain_weight"]
    write_result(older, result)
    results = load(tmp_path)
    assert results.keys == ["dpo.beta"] and set(results.table["dpo.retain_weight"]) == {0.0}
