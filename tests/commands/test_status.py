"""factdpo status, and what it reads: results/run_status.py and results/sweep_status.py."""

import json
import math
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from factdpo.commands import status
from factdpo.config.schema import ConfigError
from factdpo.results import run_status, sweep_status
from factdpo.store.result import write_result
from factdpo.store.run_lock import lock_file
from tests.helpers.stored import store


def finished(home: Path, id: str, accuracy: float = 0.5) -> Path:
    """A run of 20 steps that took 12 seconds; its accuracy on held-out facts is half of that on the others."""
    folder = store(home, id, accuracy=accuracy, dpo_epochs=None, dpo_max_steps=20)
    result = json.loads((folder / "result.json").read_text())
    result["training"] = {"steps": 20}
    result["timing"] = {"reference_seconds": 1.0, "train_seconds": 8.0, "score_seconds": 3.0, "total_seconds": 12.5}
    write_result(folder, result)
    return folder


def opened(home: Path, id: str, *losses: float | str, steps: int = 20) -> Path:
    """A run without a result that made a step, half a second each, for every loss."""
    folder = store(home, id, state="killed", dpo_epochs=None, dpo_max_steps=steps)
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": loss, "time_seconds": step / 2} for step, loss in enumerate(losses, start=1)
    ]
    if losses:
        rows.append({"step": len(losses), "eval/train/accuracy": 0.75, "eval/test/accuracy": 0.25})
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outputs/sweeps/beta where one stands: a run in each state, in this order in its sweep.json."""
    monkeypatch.chdir(tmp_path)
    home = Path("outputs/sweeps/beta")
    finished(home, "aa")
    for id, name in (("bb", "FAILED"), ("cc", "DIVERGED"), ("dd", "PREEMPTED")):
        store(home, id, state=name, dpo_epochs=None, dpo_max_steps=20)
    opened(home, "ee", 0.7, 0.6, 0.5, 0.4)
    runs = {id: {"folder": f"run-{id}", "label": f"label {id}"} for id in ("aa", "bb", "cc", "dd", "ee", "ff")}
    (home / "sweep.json").write_text(json.dumps({"question": "Does it help?", "runs": runs}))
    return home


def looked_at(*folders: Path) -> list[sweep_status.Runs]:
    return sweep_status.look(list(folders), {})


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    status.main([*arguments])
    return capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------ what is read


def test_each_run_is_in_its_state_and_a_run_is_running_while_its_lock_is_held(home: Path) -> None:
    ended = {"FINISHED": 1, "FAILED": 1, "DIVERGED": 1, "PREEMPTED": 1}
    (one,) = looked_at(home)
    assert one.counts() == ended | {"killed": 1, "to do": 1} and not one.is_running()
    assert [run.label for run in one.runs] == [f"label {id}" for id in ("aa", "bb", "cc", "dd", "ee", "ff")]
    with FileLock(lock_file(home / "run-ee")):
        (one,) = looked_at(home)
    assert one.counts() == ended | {"running": 1, "to do": 1} and one.is_running()


def test_a_run_that_is_under_way_has_the_numbers_of_its_last_rows(home: Path) -> None:
    with FileLock(lock_file(home / "run-ee")):
        run = run_status.look(home / "run-ee", None, {})
    assert (run.id, run.state, run.step, run.steps, run.loss) == ("ee", "running", 4, 20, 0.4)
    assert run.accuracies == {"train": 0.75, "test": 0.25} and run.steps_per_second == 2.0
    with (home / "run-ee/history.jsonl").open("a") as history:
        history.write('{"step": 5, "loss": "NaN", "time_seconds": 2.5}\n{"step": 6, "lo')
    run = run_status.look(home / "run-ee", None, {})
    assert run.step == 5 and run.loss is not None and math.isnan(run.loss)


def test_what_is_left_counts_the_steps_and_the_scoring_of_runs_that_have_not_ended(home: Path) -> None:
    with FileLock(lock_file(home / "run-ee")):
        (one,) = looked_at(home)
    # 16 steps of this run and 20 of the one to do, two a second, and 3 s of scoring for each
    assert one.steps() == (24, 120) and one.left_seconds() == 36 / 2 + 2 * 3.0
    assert looked_at(home)[0].left_seconds() is None, "nothing runs"


def test_a_damaged_result_is_none_and_a_run_without_a_readable_plan_has_no_steps(home: Path) -> None:
    (home / "run-aa/result.json").write_text('{"state": "FINISHED"')
    (home / "run-bb/result.json").write_text('{"state": "FAILED"}')
    (home / "run-ee/config.yaml").write_text("dpo: [")
    (home / "run-ee/plan.json").write_text('{"steps": 2')
    (one,) = looked_at(home)
    assert [run.state for run in one.runs] == ["killed", "killed", "DIVERGED", "PREEMPTED", "killed", "to do"]
    assert one.runs[4].steps is None and one.runs[4].step == 4


@pytest.mark.parametrize("changes", [
    {"id": 3}, {"state": None}, {"config": []}, {"trained": {"test": {}}}, {"trained": {"test": 1}}, {"timing": "1 s"},
])  # fmt: skip
def test_a_result_with_other_types_is_none_and_a_fault_of_ours_is_no_damage(
    home: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "run-aa/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert run_status.look(home / "run-aa", None, {}).state == "killed"
    monkeypatch.setattr(run_status, "_accuracies", lambda result: result + 1)
    with pytest.raises(TypeError):
        run_status.look(home / "run-dd", None, {})


def test_a_result_of_another_version_has_the_state_that_it_says(home: Path) -> None:
    config = {"label": "old"}
    write_result(home / "run-aa", {"id": "aa", "state": "FINISHED", "config": config})
    (home / "run-aa/plan.json").unlink()
    run = run_status.look(home / "run-aa", None, {})
    assert (run.state, run.label, run.steps, run.accuracies, run.error) == ("FINISHED", "old", None, {}, None)


def test_the_planned_steps_are_those_that_the_run_wrote_down_and_of_a_finished_run_those_of_its_result(
    home: Path,
) -> None:
    def steps() -> list[int | None]:
        return [run.steps for run in looked_at(home)[0].runs]

    for name in ("aa", "bb", "ee"):
        (home / f"run-{name}/plan.json").write_text('{"steps": 7}')
    assert steps() == [20, 7, 20, 20, 7, None]
    for name in ("aa", "bb", "ee"):  # as older versions left them
        (home / f"run-{name}/plan.json").unlink()
    assert steps() == [20, None, 20, 20, None, None]


def test_a_result_is_read_again_only_when_it_was_written_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: run_status.Cache = {}
    before = [run.state for one in sweep_status.look([home], known) for run in one.runs]
    read, parse = [], run_status.read_record
    monkeypatch.setattr(run_status, "read_record", lambda folder: read.append(folder.name) or parse(folder))
    assert [run.state for one in sweep_status.look([home], known) for run in one.runs] == before
    assert read == []
    write_result(home / "run-dd", {"id": "dd", "state": "FINISHED", "config": {}})
    assert sweep_status.look([home], known)[0].runs[3].state == "FINISHED" and read == ["run-dd"]


def test_settings_are_ranked_by_their_means_on_what_the_sweep_asks_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for id, accuracy in {"a0": 0.9, "a1": 0.1, "b0": 0.6, "b1": 0.5}.items():
        store(tmp_path, id, accuracy=accuracy)
    runs = {id: {"folder": f"run-{id}", "label": f"seed={id[1]} beta={id[0]}"} for id in ("a0", "a1", "b0", "b1")}
    plan: dict[str, Any] = {"question": None, "runs": runs}
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    assert looked_at(tmp_path)[0].best() == ("beta=b", "accuracy/test", 0.275, 2, True)
    asked = [
        {"name": "across/retention_nats_per_token", "lower_is_better": True},
        {"name": "accuracy/train", "lower_is_better": False},
    ]
    (tmp_path / "sweep.json").write_text(json.dumps(plan | {"metrics": asked}))
    assert looked_at(tmp_path)[0].best() == ("beta=b", "accuracy/train", 0.55, 2, True)
    assert "best train 0.55  beta=b (mean of 2 runs)" in told(capsys, str(tmp_path))
    for id in runs:  # asked first, and better lower
        path = tmp_path / f"run-{id}/result.json"
        result = json.loads(path.read_text())
        result["across"]["trained"]["retention_nats_per_token"] = {"a": 3.0, "b": 4.0}[id[0]]
        write_result(path.parent, result)
    assert looked_at(tmp_path)[0].best() == ("beta=a", "across/retention_nats_per_token", 3.0, 2, True)
    assert "best across/retention_nats_per_token 3.00  beta=a" in told(capsys, str(tmp_path))


def test_the_best_run_is_that_of_the_highest_held_out_accuracy_among_the_finished(home: Path) -> None:
    (one,) = looked_at(home)
    best = one.best()
    assert best is not None and best == ("label aa", "accuracy/test", 0.25, 1, True)
    (home / "run-aa/result.json").unlink()
    best = looked_at(home)[0].best()
    assert best is not None and (best.label, best.final) == ("label ee", False), "none is finished: of those under way"


def test_any_folder_above_sweeps_will_do_and_one_without_any_is_refused(home: Path) -> None:
    store(Path("outputs/runs"), "gg")
    assert {str(one.folder) for one in looked_at(Path("outputs"))} == {"outputs/sweeps/beta", "outputs/runs"}
    (one,) = looked_at(home / "run-aa")
    assert [run.id for run in one.runs] == ["aa"]
    Path("empty").mkdir()
    for folder, why in ((Path("empty"), "holds no run and no sweep"), (Path("nowhere"), "no such folder")):
        with pytest.raises(ConfigError, match=f"{folder}: {why}"):
            looked_at(folder)


def test_a_sweep_of_which_nothing_was_opened_is_to_do(tmp_path: Path) -> None:
    plan = {"question": None, "runs": {"aa": {"folder": "seed=0-aa", "label": "seed=0"}}}
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    (one,) = looked_at(tmp_path)
    assert [(run.id, run.state, run.label) for run in one.runs] == [("aa", "to do", "seed=0")]


# ----------------------------------------------------------------------------------------------------- what is shown


def test_a_sweep_is_told_run_by_run_with_why_some_did_not_finish(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(capsys, str(home))
    head, table = said.split("\n\n")[:2]
    assert head.splitlines() == [
        "outputs/sweeps/beta",
        "Does it help?",
        "6 runs: 1 FINISHED, 1 FAILED, 1 DIVERGED, 1 PREEMPTED, 1 killed, 1 to do",
        "best test 0.25  label aa",
    ]
    assert [line.split() for line in table.splitlines()[1:]][1:] == [
        ["FINISHED", "label", "aa", "20/20", "0.50", "0.25", "12", "s"],
        ["FAILED", "label", "bb", "0/20", "0", "s"],
        ["DIVERGED", "label", "cc", "0/20", "0", "s"],
        ["PREEMPTED", "label", "dd", "0/20", "0", "s"],
        ["killed", "label", "ee", "4/20", "0.400", "0.75", "0.25", "0", "s"],
        ["to", "do", "label", "ff"],
    ]
    assert "FAILED  label bb: loss is nan at step 3\n  outputs/sweeps/beta/run-bb/run.log\n" in said
    assert "killed: its process is gone; rerun the command to redo it" in said


def test_what_many_runs_died_of_is_said_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for id in ("ba", "bc", "bd"):
        store(home, id, state="FAILED")
    assert told(capsys, str(home)).count("loss is nan at step 3") == 3, "once for each of FAILED, DIVERGED, PREEMPTED"
    assert "and 3 others: loss is nan at step 3" in told(capsys, str(home))


def test_several_folders_are_a_line_each(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(Path("outputs/sweeps/facts"), "gg")
    rows = [line.split() for line in told(capsys, "outputs").splitlines()]
    assert rows[0] == ["runs", "FINISHED", "FAILED", "DIVERGED", "PREEMPTED", "killed", "to", "do", "left", "best"]
    assert sorted(rows[1:]) == [
        ["outputs/sweeps/beta", "6", "1", "1", "1", "1", "1", "1", "test", "0.25"],
        ["outputs/sweeps/facts", "1", "1", "test", "0.25"],
    ]


def test_of_many_runs_some_of_each_kind_are_shown_and_the_rest_is_counted(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(60):
        finished(home, f"{number:02}")
    said = told(capsys, str(home))
    assert said.count("\nFINISHED") == status.ROWS - 4 and "\nand 26 more: 25 FINISHED, 1 to do; --all shows" in said
    assert all(f"  label {id}  " in said for id in ("bb", "cc", "dd", "ee"))
    assert told(capsys, str(home), "--all").count("FINISHED  ") == 61
    drawn = status.view(looked_at(home), Console(width=80, height=20, force_terminal=True))
    screen = Console(width=80, height=20, force_terminal=True)
    assert len(screen.render_lines(drawn, pad=False)) <= 19, "as many as the screen has room for"


def test_json_has_every_run_and_a_loss_that_is_no_number_as_a_word(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(home, "hh", 0.5, "NaN")
    (one,) = json.loads(told(capsys, str(home), "--json"))
    assert one["counts"]["killed"] == 2 and one["metrics"] == []
    assert one["best"] == {"label": "label aa", "metric": "accuracy/test", "mean": 0.25, "runs": 1, "final": True}
    runs = {run["id"]: run for run in one["runs"]}
    assert len(runs) == 7 and runs["hh"]["loss"] == "nan" and runs["ee"]["folder"] == "outputs/sweeps/beta/run-ee"


def test_on_a_terminal_it_is_live_until_no_run_is_being_done(home: Path) -> None:
    """The run ends while it watches; the last picture says so, and the command ends by itself."""
    held = FileLock(lock_file(home / "run-ee")).acquire()
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "factdpo", "status", str(home)]
    env = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    watching = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=env)
    os.close(slave)
    said = ""
    while "1 running" not in said.replace("\x1b[0m", "").replace("\x1b[1;36m", ""):
        said += os.read(master, 10_000).decode()
    write_result(home / "run-ee", {"id": "ee", "state": "FINISHED", "config": {}})
    held.lock.release()
    end = time.monotonic() + 60
    try:
        while time.monotonic() < end and (more := os.read(master, 10_000).decode()):
            said += more
    except OSError:  # it has closed its end
        pass
    assert watching.wait(timeout=60) == 0
    assert "2 FINISHED" in said and "Traceback" not in said
