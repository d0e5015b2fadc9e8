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


def test_seeds_are_collapsed_and_nothing_is_lost_silently(sweep: Path, results):
    assert results("sweeps/beta") == (
        "4 runs (1 DIVERGED)\n"
        "the same in all: dpo.epochs=2\n"
        "\n"
        "dpo.                      accuracy/      accuracy/\n"
        "beta  runs                    train           test\n"
        "0.1   2               0.550 ± 0.635  0.275 ± 0.318\n"
        "0.5   2 (1 DIVERGED)          0.700          0.350\n"
        "\n"
        "mean ± half of its 95 % interval over runs (Student's t); a single run has none\n"
        "DIVERGED  sweeps/beta/run-3a: loss is nan at step 3\n"
        "warning: odd [x] (3 runs)\n"
        "\n"
        "best accuracy/train 0.700, accuracy/test 0.350\n"
        "  sweeps/beta/run-2a\n"
        "  factdpo dpo.beta=0.5 dpo.epochs=2\n"
    )


def test_what_a_sweep_asks_about_comes_first(sweep: Path, results):
    names = ["timing/total_seconds", "accuracy/test", "accuracy/portability"]
    asked = [{"name": name, "lower_is_better": False} for name in names]
    Path("sweeps/beta/sweep.json").write_text(json.dumps({"metrics": asked}))
    headings = results("sweeps/beta").splitlines()[4].split()
    assert headings == ["beta", "runs", "total_seconds", "test", "train"]


def test_groups_and_metrics_are_what_was_asked_for(sweep: Path, results):
    lines = results("sweeps/beta --by model,seed --metric accuracy/test,timing").splitlines()
    assert [line.split() for line in lines[3:7]] == [
        ["model.", "accuracy/", "timing/"],
        ["name", "seed", "runs", "test", "total_seconds"],
        ["nano", "0", "2", "0.300", "±", "0.635", "2.000", "±", "0.000"],
        ["nano", "1", "2", "(1", "DIVERGED)", "0.300", "2.000"],
    ]
    assert "best timing/total_seconds 2.000 (as 2 others)" in lines  # the fewer seconds the better


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
    assert [line[:2] for line in lines[5:8]] == [["train", "8"], ["seed", "0"], ["seed", "1"]] and groups.is_dir()


def test_files_hold_numbers(sweep: Path, results):
    header, first, *rest = results("sweeps/beta --csv --metric accuracy/train").splitlines()
    assert header == "dpo.beta,metric,n,mean,sd,low,high" and first.startswith("0.1,accuracy/train,2,0.55,0.07071")
    assert rest == ["0.5,accuracy/train,1,0.7,,,"]
    assert json.loads(results("sweeps/beta --json --metric accuracy/train"))[1] == {
        "dpo.beta": 0.5, "metric": "accuracy/train", "n": 1, "mean": 0.7, "sd": None, "low": None, "high": None,
    }  # fmt: skip
    assert results("sweeps/beta --runs --parquet all.parquet") == "all.parquet: 4 rows\n"
    assert pd.read_parquet("all.parquet").equals(load(sweep).runs)
    assert results("sweeps/beta --json means.json") == "means.json: 4 rows\n"
    assert len(json.loads(Path("means.json").read_text())) == 4


def test_markdown_is_the_printed_table(sweep: Path, results):
    assert results("sweeps/beta --markdown --metric accuracy/train") == (
        "| dpo.beta | runs | accuracy/train |\n"
        "| --- | --- | ---: |\n"
        "| 0.1 | 2 | 0.550 ± 0.635 |\n"
        "| 0.5 | 2 (1 DIVERGED) | 0.700 |\n"
    )


def test_every_column_is_shown_however_narrow_the_terminal(sweep: Path):
    view = views.groups(load(sweep), ["dpo.beta"], ["accuracy/train", "accuracy/test", "timing/total_seconds"])
    for width in (10, 40, 60, 80):
        out = StringIO()
        views.show(view, Console(file=out, width=width, force_terminal=True, color_system=None))
        shown = out.getvalue()
        for cell in ("train", "test", "total_seconds", "0.550 ± 0.635", "0.275 ± 0.318", "2.000 ± 0.000"):
            assert shown.count(cell) == 1
        body = shown.split("\n\n")[1:-1]
        assert len(body) == {10: 3, 40: 3, 60: 2, 80: 1}[width]
        assert width == 10 or max(len(line) for block in body for line in block.splitlines()) <= width


def test_what_cannot_be_done_is_said(sweep: Path, results):
    for line, why in [
        ("nowhere", "nowhere: no such folder"),
        ("sweeps/beta --by dpo.bta", r"dpo.bta: no such key \(did you mean dpo.beta\?\)"),
        ("sweeps/beta --metric acuracy", r"acuracy: no such metric \(did you mean accuracy"),
        ("--csv sweeps/beta", "--csv sweeps/beta: a folder; name the folders of runs before --csv"),
        ("sweeps/beta --csv no/file.csv", "--csv no/file.csv: cannot be written"),
        ("sweeps/beta --parquet no/file.parquet", "--parquet no/file.parquet: cannot be written"),
    ]:
        with pytest.raises(ConfigError, match=f"^{why}"):
            results(line)


def test_a_best_run_of_another_version_has_no_command(sweep: Path, results):
    path = sweep / "run-2a" / "result.json"
    path.write_text(path.read_text().replace('"beta": 0.5', '"beta": 0.5, "gamma": 1'))
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
