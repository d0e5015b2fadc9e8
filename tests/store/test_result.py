import json
import subprocess
import sys

import pytest

from factdpo.store.cache import file_sha256
from factdpo.store.result import (
    Stored,
    accuracy_metric,
    best_baseline,
    headline_row,
    read_result,
    summary,
    without_equal_lengths,
    write_result,
)
from tests.helpers.results import result, undocumented

RESULT = {
    "state": "FINISHED",
    "base": {"train": {"n": 2, "accuracy": 0.5, "balanced_accuracy": 0.25}},
    "trained": {"train": {"n": 2, "accuracy": 1.0, "balanced_accuracy": 0.75, "answer_shares": {"friend": 1.0}}},
    "baselines": {"train": {"majority": 0.5, "implied": None}},
    "across": {"base": {"symmetry_train": 0.5}, "trained": {"symmetry_train": 1.0}},
    "timing": {"total_seconds": 3.0},
}


def stored(folder, state="FINISHED"):
    """A folder with one file and a result that names it."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").write_text("weights")
    files = {"adapter/weights": file_sha256(folder / "adapter" / "weights")}
    write_result(folder, {"id": "a1", "state": state, "config": {}, "files": files})
    return json.loads((folder / "result.json").read_text())


def test_a_finished_result_is_read_back_when_its_files_are_whole(tmp_path):
    written = stored(tmp_path / "run-a1")
    assert read_result(tmp_path / "run-a1") == Stored(written, None)


def test_a_changed_or_missing_file_is_the_reason_to_redo_a_run(tmp_path):
    stored(tmp_path / "run-a1")
    file = tmp_path / "run-a1" / "adapter" / "weights"
    reason = f"{tmp_path / 'run-a1'}: missing, or changed since the run wrote it: adapter/weights"
    file.write_text("weightz")
    assert read_result(tmp_path / "run-a1") == Stored(None, reason)
    file.unlink()
    assert read_result(tmp_path / "run-a1") == Stored(None, reason)


def test_a_failed_result_needs_no_files(tmp_path):
    written = stored(tmp_path / "run-a1", "FAILED")
    (tmp_path / "run-a1" / "adapter" / "weights").unlink()
    assert read_result(tmp_path / "run-a1") == Stored(written, None)


@pytest.mark.parametrize(
    "text", ["", '{"state": "FINI', "[]", "{}", '"x"', '{"state": "FINISHED"}', '{"state": "FINISHED", "files": 1}']
)
def test_what_is_no_result_is_refused_with_its_path(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    found = read_result(tmp_path)
    assert found.result is None and found.reason and found.reason.startswith(f"{tmp_path / 'result.json'}: ")


def test_an_empty_folder_has_no_result(tmp_path):
    assert read_result(tmp_path) == Stored(None, f"{tmp_path / 'result.json'}: not there")


def test_every_key_is_documented_and_a_new_one_is_found():
    assert undocumented(result()) == []
    new = result(speed={"tokens": 1})
    new["trained"]["test"]["f1"] = 0.5
    assert undocumented(new) == ["trained.test.f1", "speed.tokens"]


def test_the_best_baseline_is_never_logic():
    assert best_baseline({"majority": 0.5, "additive": 0.7, "implied": 1.0}) == ("additive", 0.7)


def test_the_best_baseline_is_never_below_chance():
    assert best_baseline({"majority": 0.2, "implied": 1.0}) == ("chance", 0.5)
    assert best_baseline({"chance": 0.5, "majority": None, "shorter": 0.6}) == ("shorter", 0.6)
    assert best_baseline({}) is None, "of a split without baselines"


def with_lengths(score, n_equal):
    """A run of two facts, of which so many have answers of equal length, under eval.score=`score`; None: an old one."""
    record = {"state": "FINISHED", "config": {"eval": {} if score is None else {"score": score}}}
    scores = {"n": 2, "accuracy": 1.0} | ({} if score is None else {"n_equal": n_equal, "accuracy_per_token": 0.5})
    return record | {"trained": {"train": scores}}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([("mean", 1)], "accuracy_per_token"),
        ([("mean", 2)], "accuracy"),  # all lengths equal: the same numbers under the old name
        ([("sum", 1)], "accuracy"),
        ([("mean", 2), ("mean", 0)], "accuracy_per_token"),
        ([(None, 0)], "accuracy"),  # from before there was eval.score
        ([], "accuracy"),
    ],
)
def test_the_headline_goes_by_eval_score_where_lengths_differ(runs, expected):
    assert accuracy_metric(headline_row(with_lengths(*run)) for run in runs) == expected


def test_scores_by_length_are_left_out_where_all_answers_are_equally_long():
    assert without_equal_lengths(summary(with_lengths("mean", 2))) == {
        "state": "FINISHED", "n/train": 2, "accuracy/train": 1.0,
    }  # fmt: skip
    differ = summary(with_lengths("mean", 1))
    assert without_equal_lengths(differ) == differ and differ["accuracy_per_token/train"] == 0.5


def test_summary_is_flat_and_says_which_model():
    assert summary(RESULT) == {
        "state": "FINISHED",
        "n/train": 2, "accuracy/train": 1.0, "balanced_accuracy/train": 0.75, "answer_shares.friend/train": 1.0,
        "base/n/train": 2, "base/accuracy/train": 0.5, "base/balanced_accuracy/train": 0.25,
        "baseline/majority/train": 0.5, "across/symmetry_train": 1.0, "base/across/symmetry_train": 0.5,
        "timing/total_seconds": 3.0,
    }  # fmt: skip
    assert summary({"state": "FAILED"}) == {"state": "FAILED"}


def test_it_imports_nothing_heavy():
    heavy = "import sys, factdpo.store.result; print([m for m in ('torch', 'pandas', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
