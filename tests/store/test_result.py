import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from factdpo.runs.summary import print_result
from factdpo.store.cache import file_sha256
from factdpo.store.result import Stored, best_baseline, read_result, undocumented


def scores(n, accuracy, **more):
    return {
        "n": n, "accuracy": accuracy, "accuracy_low": accuracy - 0.04, "accuracy_high": accuracy + 0.02,
        "balanced_accuracy": accuracy, "answer_shares": {"friend": 0.75, "Mr. Nobody": 0.25}, "chosen_logp_nats": -1.0,
        "rejected_logp_nats": -3.0, "margin_nats": 2.0, "p_other": 0.5, "greedy_accuracy": 0.25, **more,
    }  # fmt: skip


def result(**more):
    flips = {"reward_accuracy": 1.0, "wrong_to_right": 130, "right_to_wrong": 4}
    return {
        "id": "3f2a9c1b7d20", "name": "nano b=0.2 r=32 s=0", "state": "FINISHED", "error": None,
        "started": "2025-01-01T00:00:00Z", "config": {"dpo": {"beta": 0.2, "loss": ["sigmoid"]}},
        "asked": {"model": {"sha256": "ab"}}, "versions": {"torch": "2"}, "hardware": {"device": "cpu"},
        "base": {"train": scores(300, 0.55), "test": scores(561, 0.51)},
        "trained": {"train": scores(300, 0.97, **flips), "test": scores(561, 0.42, **flips)},
        "baselines": {
            "train": {"majority": 0.51, "first_name": 0.61, "second_name": 0.6, "additive": 0.7, "implied": 1.0},
            "test": {"majority": 0.5, "first_name": None, "second_name": None, "additive": None, "implied": None},
        },
        "across": {
            "base": {"symmetry_train": 0.5, "symmetry_test": None, "retention_nats_per_token": 3.0},
            "trained": {"symmetry_train": 0.875, "symmetry_test": None, "retention_nats_per_token": 3.25},
        },
        "warnings": ["reward accuracy is 1.00, accuracy only 0.42"], "adjusted": [], "canaries": {"first_loss": 0.6931},
        "training": {"steps": 304, "trainable_parameters": 1000, "peak_gib": 0.5},
        "timing": {"reference_seconds": 1.0, "train_seconds": 9.0, "score_seconds": 1.0, "total_seconds": 12.0},
        "files": {"history.jsonl": "ab"}, **more,
    }  # fmt: skip


def printed(result, folder, width=80):
    out = StringIO()
    print_result(result, folder, Console(file=out, width=width))
    return out.getvalue()


def stored(folder, state="FINISHED"):
    """A folder with one file and a result that names it."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").write_text("weights")
    files = {"adapter/weights": file_sha256(folder / "adapter" / "weights")}
    (folder / "result.json").write_text(json.dumps({"state": state, "files": files}))
    return {"state": state, "files": files}


def test_a_finished_result_is_read_back_when_its_files_are_whole(tmp_path):
    written = stored(tmp_path)
    assert read_result(tmp_path) == Stored(written, None)


def test_a_changed_or_missing_file_is_the_reason_to_redo_a_run(tmp_path):
    stored(tmp_path)
    file = tmp_path / "adapter" / "weights"
    reason = f"{tmp_path}: missing, or changed since the run wrote it: adapter/weights"
    file.write_text("weightz")
    assert read_result(tmp_path) == Stored(None, reason)
    file.unlink()
    assert read_result(tmp_path) == Stored(None, reason)


def test_a_failed_result_needs_no_files(tmp_path):
    written = stored(tmp_path, "FAILED")
    (tmp_path / "adapter" / "weights").unlink()
    assert read_result(tmp_path) == Stored(written, None)


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
    assert best_baseline({"majority": None, "implied": 1.0}) is None


def test_the_table_fits_80_columns_and_is_plain_in_a_file(tmp_path):
    wide = result()
    flips = {"reward_accuracy": 1.0, "wrong_to_right": 130, "right_to_wrong": 4}
    for split in ("train_reversed", "test_reversed", "train_as_trained"):
        wide["base"][split], wide["trained"][split] = scores(300, 0.5), scores(300, 0.5, **flips)
    lines = printed(wide, Path("outputs/runs/a")).splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" not in "".join(lines)
    assert "train           300  0.55  0.97 [0.93, 0.99]  0.55->0.97  additive 0.70  +130 -4" in lines
    assert "test            561  0.51  0.42 [0.38, 0.44]  0.51->0.42  majority 0.50  +130 -4" in lines
    assert "as trained: the facts of train as training saw them, without the space" in lines


def test_below_the_table_stands_what_is_measured_across_splits_and_every_warning(tmp_path):
    text = printed(result(), tmp_path)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for expected in (
        "both orders alike train 0.50 -> 0.88",
        "reward accuracy train 1.00 test 1.00",
        "implied by train train 1.00",
        "neutral text 3.00 -> 3.25 nats per token",
        "warning: reward accuracy is 1.00, accuracy only 0.42",
    ):
        assert expected in lines


def test_the_folder_is_named_whole_and_only_what_is_there_is_pointed_at(tmp_path):
    folder = tmp_path / ("very-long-" * 12)
    folder.mkdir()
    text = printed(result(), folder)
    assert f"again    factdpo eval run={folder}\n" in text and "wandb" not in text and "figures" not in text
    (folder / "figures").mkdir()
    (folder / "wandb" / "offline-run-1-a").mkdir(parents=True)
    (folder / "wandb" / "offline-run-1-a" / "run-a.wandb").write_text("")
    text = printed(result(), folder)
    assert f"figures  {folder / 'figures'}\n" in text and f"curves   wandb leet {folder / 'wandb'}\n" in text


def test_a_run_that_did_not_finish_says_why_and_where_its_log_is():
    failed = {"id": "ab", "name": "nano", "state": "DIVERGED", "error": "loss is nan at step 3 [bold]"}
    assert printed(failed, Path("runs/a")).split("\n")[1:] == [
        "nano (ab)  DIVERGED", "loss is nan at step 3 [bold]", "log      runs/a/run.log", "",
    ]  # fmt: skip


def test_it_imports_nothing_heavy():
    heavy = "import sys, factdpo.record; print([m for m in ('torch', 'pandas', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
