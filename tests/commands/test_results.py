import csv
import json
import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from factdpo.commands.results import main
from factdpo.config.schema import ConfigError
from factdpo.results import views
from factdpo.results.tables import load
from factdpo.store.result import write_result
from tests.helpers.stored import answers, store


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sweeps/beta where one stands: two betas, two seeds, one run that diverged."""
    monkeypatch.chdir(tmp_path)
    home = Path("sweeps/beta")
    for number, (beta, seed) in enumerate([(0.1, 0), (0.1, 1), (0.5, 0)]):
        store(home, f"{number}a", 0.5 + number / 10, dpo_beta=beta, seed=seed, dpo_epochs=2.0, warnings=["odd [x]"])
    store(home, "3a", state="DIVERGED", dpo_beta=0.5, seed=1, dpo_epochs=2.0)
    return home


@pytest.fixture
def results(capsys: pytest.CaptureFixture[str]):
    """results("sweeps/beta --by seed"): what `factdpo results sweeps/beta --by seed` prints."""

    def run(line: str) -> str:
        main(shlex.split(line))
        return capsys.readouterr().out

    return run


def test_a_warning_of_one_run_names_the_run(sweep: Path, results):
    store(sweep, "4a", 0.5, dpo_beta=0.7, seed=0, dpo_epochs=2.0, warnings=["odd [x]", "only here"])
    said = results("sweeps/beta")
    assert "warning: odd [x] (4 runs)\nwarning: only here (run 4a)\n" in said, said


def test_seeds_are_collapsed_and_nothing_is_lost_silently(sweep: Path, results):
    assert results("sweeps/beta") == (
        "4 runs (1 DIVERGED)\n"
        "the same in all: dpo.epochs=2\n"
        "\n"
        "dpo.                          accuracy/          accuracy/\n"
        "beta  runs                        train               test\n"
        "0.1   2               0.55 [0.13, 0.91]  0.28 [0.08, 0.62]\n"
        "0.5   2 (1 DIVERGED)  0.70 [0.65, 0.75]  0.35 [0.31, 0.39]\n"
        "\n"
        "[95 %] by counts alone, for other facts and other seeds, as if all runs gave the same answers: wider\n"
        "[95 %] of a single run: Wilson's, for other facts; how far seeds differ is unknown\n"
        "DIVERGED  sweeps/beta/run-3a: loss is nan at step 3\n"
        "warning: odd [x] (3 runs)\n"
        "\n"
        "best accuracy/test 0.35 [0.31, 0.39] (worst 0.275, dpo.beta=0.1): dpo.beta=0.5\n"
        "  factdpo dpo.beta=0.5 dpo.epochs=2\n"
        "\n"
        "by accuracy/test: chosen on the test facts, so it flatters itself; split.validation=N sets facts aside to "
        "choose on\n"
    )


def test_what_a_sweep_asks_about_comes_first(sweep: Path, results):
    names = ["timing/total_seconds", "accuracy/test", "accuracy/portability"]
    asked = [{"name": name, "lower_is_better": False} for name in names]
    Path("sweeps/beta/sweep.json").write_text(json.dumps({"runs": {}, "metrics": asked}))
    headings = results("sweeps/beta").splitlines()[4].split()
    assert headings == ["beta", "runs", "total_seconds", "test", "train"]


def test_the_best_is_the_setting_with_the_best_mean_and_not_its_luckiest_run(tmp_path: Path, results):
    for id, beta, seed, accuracy in [("a", 0.1, 0, 0.8), ("b", 0.1, 1, 0.4), ("c", 0.5, 0, 0.7), ("d", 0.5, 1, 0.7)]:
        store(tmp_path, id, accuracy, dpo_beta=beta, seed=seed)
    lines = results(f"{tmp_path} --metric accuracy/test").splitlines()
    place = lines.index(
        "best accuracy/test 0.35 [0.31, 0.39] (mean of 2 runs; worst 0.300, dpo.beta=0.1): dpo.beta=0.5"
    )
    assert lines[place + 1] == "  factdpo -m dpo.beta=0.5 seed=0,1"


def test_the_validation_facts_choose_and_test_is_reported_once_for_what_they_chose(tmp_path: Path, results):
    for id, beta, validation, test in [("a", 0.1, 0.9, 0.25), ("b", 0.5, 0.8, 0.35)]:
        folder = store(tmp_path, id, 2 * test, dpo_beta=beta)
        result = json.loads((folder / "result.json").read_text())
        result["trained"]["validation"] = {"n": 100, "accuracy": validation}
        write_result(folder, result)
    lines = results(f"{tmp_path} --metric accuracy/test,accuracy/validation").splitlines()
    assert lines[-3:] == [
        "best accuracy/validation 0.90 [0.83, 0.94] (worst 0.800, dpo.beta=0.5): dpo.beta=0.1",
        "  factdpo dpo.beta=0.1",
        "  chosen on the validation facts; accuracy/test 0.25 [0.22, 0.29]",
    ]
    headings = results(str(tmp_path)).splitlines()[3].split()
    assert headings == ["beta", "runs", "train", "validation", "test"]


def test_seeds_alone_leave_nothing_to_choose(tmp_path: Path, results):
    for seed in (0, 1):
        store(tmp_path, f"{seed}", 0.5, seed=seed)
    assert results(str(tmp_path)).endswith("\nto repeat it:\n  factdpo -m seed=0,1\n")


def test_splits_of_any_name_are_shown_after_those_that_are_known(tmp_path: Path, results):
    folder = store(tmp_path, "a")
    result = json.loads((folder / "result.json").read_text())
    for split in ("my own", "test_reversed"):
        result["trained"][split] = {"n": 10, "accuracy": 0.5}
    write_result(folder, result)
    assert results(str(tmp_path)).splitlines()[3].split() == [
        "name",
        "runs",
        "train",
        "test",
        "test_reversed",
        "my",
        "own",
    ]


def test_a_row_that_pools_settings_has_no_interval(sweep: Path, results):
    text = results("sweeps/beta --by model --metric accuracy/train")
    assert "nano    4 (1 DIVERGED)       0.60\n" in text and "no interval where a row pools runs" in text


def test_groups_and_metrics_are_what_was_asked_for(sweep: Path, results):
    lines = results("sweeps/beta --by dpo.beta,model --metric accuracy/test,timing").splitlines()
    assert [line.split() for line in lines[3:7]] == [
        ["dpo.", "model.", "accuracy/", "timing/"],
        ["beta", "name", "runs", "test", "total_seconds"],
        ["0.1", "nano", "2", "0.28", "[0.08,", "0.62]", "2.000", "±", "0.000"],
        ["0.5", "nano", "2", "(1", "DIVERGED)", "0.35", "[0.31,", "0.39]", "2.000"],
    ]
    praise = [line for line in lines if line.startswith("best ")]
    assert len(praise) == 1 and "timing" not in praise[0], "all take the same time"


def test_runs_are_shown_one_by_one(sweep: Path, results):
    lines = [line.split() for line in results("sweeps/beta --runs --metric accuracy/train").splitlines()]
    assert ["0a", "FINISHED", "0.1", "0", "0.500"] in lines and ["3a", "DIVERGED", "0.5", "1", "-"] in lines


def test_before_any_run_has_finished_the_runs_are_shown(tmp_path: Path, results):
    store(tmp_path, "0a", state="killed")
    assert results(str(tmp_path)) == (
        "1 run (1 killed)\n\nid  state\n0a  killed\n\n"
        f"killed  {tmp_path / 'run-0a'}: no result, and no process is at work on it\n"
    )


def test_two_sides_are_compared(sweep: Path, results):
    for number in range(3):
        answers(sweep / f"run-{number}a", "++--" if number < 2 else "+-++")
    text = results("sweeps/beta --compare dpo.beta=0.1 dpo.beta=0.5")
    assert text.splitlines()[:6] == [
        "A  dpo.beta=0.1  (2 runs, seeds 0, 1)",
        "B  dpo.beta=0.5  (1 run, seed 0; 1 more without numbers)",
        "",
        "                                                     only  only",
        "split  facts      A      B             B - A [95 %]     A     B      p",
        "train      4  0.500  0.750  +0.250 [-0.500, +1.000]     1     2  1.000",
    ]
    assert "left out, since only one side has it: seed 1" in text
    groups = answers(store(sweep, "4a", dpo_beta=0.5, seed=1, dpo_epochs=2.0), "+-++")
    lines = [line.split() for line in results("sweeps/beta --compare dpo.beta=0.1 dpo.beta=0.5").splitlines()]
    assert [line[:4] for line in lines[5:8]] == [
        ["train", "4", "(8", "answers)"], ["seed", "0", "4", "0.500"], ["seed", "1", "4", "0.500"],
    ] and groups.is_dir()  # fmt: skip


def test_a_split_without_facts_in_common_is_named_and_not_a_row_of_nan(sweep: Path, results):
    for number, first in ((0, 0), (2, 6)):
        folder = answers(sweep / f"run-{number}a", "++--")
        train = pd.read_parquet(folder / "items.parquet")
        test = pd.read_parquet(answers(folder, "+-", "test", first) / "items.parquet")
        pd.concat([train, test]).to_parquet(folder / "items.parquet")
    text = results("sweeps/beta --compare 0a 2a")
    assert "nan" not in text and "no fact in common, so nothing to compare: test\n" in text


def test_files_hold_numbers(sweep: Path, results):
    header, first, *rest = results("sweeps/beta --csv --metric accuracy/train").splitlines()
    assert header == "dpo.beta,metric,n,mean,sd,low,high,over"
    assert first.startswith("0.1,accuracy/train,2,0.55,0.07071") and first.endswith(',"facts and seeds, by counts"')
    assert rest[0].startswith("0.5,accuracy/train,1,0.7,,0.645") and rest[0].endswith(",facts")
    row = json.loads(results("sweeps/beta --json --metric accuracy/train"))[1]
    assert (row["n"], row["mean"], row["sd"], row["over"]) == (1, 0.7, None, "facts")
    assert row["low"] < row["mean"] < row["high"]
    assert results("sweeps/beta --runs --parquet all.parquet") == "all.parquet: 4 rows\n"
    assert pd.read_parquet("all.parquet").equals(load(sweep).runs)
    assert results("sweeps/beta --json means.json") == "means.json: 4 rows\n"
    assert len(json.loads(Path("means.json").read_text())) == 4


def test_markdown_is_the_printed_table(sweep: Path, results):
    assert results("sweeps/beta --markdown --metric accuracy/train") == (
        "| dpo.beta | runs | accuracy/train |\n"
        "| --- | --- | ---: |\n"
        "| 0.1 | 2 | 0.55 [0.13, 0.91] |\n"
        "| 0.5 | 2 (1 DIVERGED) | 0.70 [0.65, 0.75] |\n"
    )


def test_every_column_is_shown_however_narrow_the_terminal(sweep: Path):
    view = views.groups(load(sweep), ["dpo.beta"], ["accuracy/train", "accuracy/test", "timing/total_seconds"])
    for width in (10, 40, 60, 80):
        out = StringIO()
        views.show(view, Console(file=out, width=width, force_terminal=True, color_system=None))
        shown = out.getvalue()
        for cell in ("train", "test", "total_seconds", "0.55 [0.13, 0.91]", "0.28 [0.08, 0.62]", "2.000 ± 0.000"):
            assert shown.count(cell) == 1
        body = shown.split("\n\n")[1:-1]
        assert len(body) == {10: 3, 40: 3, 60: 2, 80: 1}[width]
        assert width == 10 or max(len(line) for block in body for line in block.splitlines()) <= width


def test_what_cannot_be_done_is_said(sweep: Path, results):
    for line, why in [
        ("nowhere", "nowhere: no such folder"),
        ("sweeps/beta --by dpo.bta", r"dpo.bta: no such key \(did you mean dpo.beta\?\)"),
        ("sweeps/beta --metric acuracy", r"acuracy: no such metric \(did you mean accuracy"),
        ("sweeps/beta --runs --metric acuracy", r"acuracy: no such metric \(did you mean accuracy"),
        ("sweeps/beta --metric acuracy --compare 0a 2a", r"acuracy: no such metric \(did you mean accuracy"),
        ("sweeps/beta --metric accuracy --compare 0a 2a", "--metric: --compare compares accuracies, on every split"),
        ("--csv sweeps/beta", "--csv sweeps/beta: a folder; name the folders of runs before --csv"),
        ("sweeps/beta --csv no/file.csv", "--csv no/file.csv: cannot be written"),
        ("sweeps/beta --parquet no/file.parquet", "--parquet no/file.parquet: cannot be written"),
    ]:
        with pytest.raises(ConfigError, match=f"^{why}"):
            results(line)


def test_a_best_run_of_another_version_has_no_command(sweep: Path, results):
    result = json.loads((sweep / "run-2a" / "result.json").read_text())
    result["config"]["dpo"]["gamma"] = 1
    write_result(sweep / "run-2a", result)
    assert "  no command: " in results("sweeps/beta") and "gamma" in results("sweeps/beta")


def test_the_command_line_prints_and_refuses(sweep: Path, tmp_path: Path):
    def factdpo(line: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            f"{sys.executable} -m factdpo {line}", shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    done = factdpo("results sweeps/beta --by dpo.beta | head -1")
    assert (done.stdout, done.stderr) == ("4 runs (1 DIVERGED)\n", "")
    done = factdpo("results nowhere")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("factdpo: nowhere: no such folder")
    done = factdpo("results --help")
    assert done.returncode == 0 and "--compare A B" in done.stdout and "pandas" in done.stdout


def test_no_cell_of_a_csv_is_a_formula(sweep: Path, results):
    folder = store(Path("sweeps/beta"), "9z")
    record = json.loads((folder / "result.json").read_text())
    record["name"], record["warnings"] = '=HYPERLINK("http://evil")', ["@SUM(1)"]
    record["trained"]["=1+1"] = record["trained"]["test"]
    write_result(folder, record)
    text = results("sweeps/beta --runs --csv")
    cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
    assert '\'=HYPERLINK("http://evil")' in cells and "'@SUM(1)" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
