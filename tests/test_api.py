"""factdpo from Python: the path of the command line, with its ids, folders and refusals, and nothing left disturbed."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

import factdpo
from factdpo.api import Run, Runs
from factdpo.config.schema import ConfigError
from factdpo.runs import session
from factdpo.runs.answer import RunFailed
from factdpo.runs.progress_bars import bar_of
from tests.helpers.command_line import in_process
from tests.helpers.runs import FACTS
from tests.helpers.stored import finished, store

SMALL = (
    "track=none", "split.train=16", "split.test=12", "max_steps=8", "dpo.batch_size=4", "eval.every=never",
    "eval.generations=1",
)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def done(home: Path) -> Run:
    """A small run, done from Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run = factdpo.run("dpo.beta=0.1", *SMALL)
    return Run(run.folder.absolute() if run.folder.is_absolute() else home / run.folder)


def test_a_run_from_python_is_the_stored_answer_of_the_command_line(
    done: Run, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with in_process(home, monkeypatch) as call:
        assert call("dpo.beta=0.1", *SMALL) == 0
    said = capsys.readouterr().out
    assert f"({done.id})" in said and "nothing was run now" in said
    assert [path.name for path in (home / "outputs/runs").iterdir() if path.is_dir()] == [done.folder.name]


def test_what_python_is_given_back(done: Run):
    assert (done.state, done.result["state"], done.config["dpo"]["beta"]) == ("FINISHED", "FINISHED", 0.1)
    assert done.command.startswith("factdpo ") and "dpo.beta=0.1" in done.command
    test = done.result["trained"]["test"]
    assert done.scores.loc["test", ["n", "trained", "low"]].tolist() == [12, test["accuracy"], test["accuracy_low"]]
    assert len(done.items) == 2 * (16 + 16 + 12 + 12) and {"loss", "step"} <= {*done.history.columns}
    assert {"prompt", "base", "trained"} <= {*done.generations.columns}
    assert done.name in repr(done) and "train_reversed" in repr(done)
    assert "<table" in done._repr_html_() and done.id in done._repr_html_()


def test_the_model_is_peft_s_and_asking_it_says_what_it_says(done: Run):
    model, tokenizer = done.model()
    ids = tokenizer("A wizard is", return_tensors="pt")["input_ids"]
    said = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    assert done.ask("A wizard is", tokens=3).greedy[1] == tokenizer.decode(said, skip_special_tokens=True)
    row = done.items.query("model == 'trained' and split == 'test'").iloc[0]
    ids = tokenizer(f"{row.prompt} {row.chosen}", return_tensors="pt")["input_ids"]
    start = len(tokenizer(row.prompt)["input_ids"])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert logps[start - 1 :].sum().item() == pytest.approx(row.chosen_logp_nats, abs=1e-4)


def test_the_graph_is_the_picture_in_the_run_s_folder(done: Run):
    from PIL import Image, ImageChops

    with Image.open(done.folder / "figures/graph_test.png") as picture:
        assert ImageChops.difference(picture.convert("RGB"), done.graph().convert("RGB")).getbbox() is None
    with pytest.raises(ConfigError, match="tset: no such split; the run has train"):
        done.graph("tset")


def test_a_run_can_be_exported_and_scored_on_other_facts(done: Run, tmp_path: Path):
    assert (done.export(tmp_path / "model", merge=True) / "config.json").is_file()
    (tmp_path / "my.csv").write_text("prompt,chosen,rejected\nA wizard is,good,evil\n")
    other = done.eval("data=pairs", f"data.path={tmp_path / 'my.csv'}")
    assert other.result["kind"] == "eval" and other.scores.loc["test", "n"] == 1
    with pytest.raises(ConfigError, match="no fact names a subject and an object"):
        other.graph()


@pytest.mark.slow
def test_a_sweep_from_python_is_the_sweep_of_the_command_line(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("factdpo.api.Session", lambda: session.Session(facts=FACTS))
    runs = factdpo.sweep("seed=0,1", "sweep=seeds", *SMALL)
    assert isinstance(runs, Runs) and [run.config["seed"] for run in runs] == [0, 1]
    assert {run.folder.parent for run in runs} == {Path("outputs/sweeps/seeds")}
    assert factdpo.sweep("seed=0,1", "sweep=seeds", *SMALL)[1].id == runs[1].id  # though the package is imported now
    loaded = factdpo.load("seeds")
    assert [run.id for run in loaded] == [run.id for run in runs]
    assert loaded[runs[0].id[:6]].id == runs[0].id
    with pytest.raises(KeyError, match="2 of 2 runs have such an id"):
        loaded[""]


def test_every_config_key_is_a_column_whether_it_varies_or_not(here: Path):
    for number, beta in enumerate((0.1, 0.5)):
        finished(here / f"outputs/sweeps/s{number}", f"{number}a", dpo_beta=beta)
    store(here / "outputs/sweeps/s1", "2a", state="DIVERGED", dpo_beta=0.5)
    runs = factdpo.load(["s0", here / "outputs/sweeps/s1"])
    frame = runs.frame()
    assert frame["dpo.beta"].tolist() == [0.1, 0.5, 0.5] and frame["lora.rank"].tolist() == [32, 32, 32]
    assert [run.state for run in runs] == ["FINISHED", "FINISHED", "DIVERGED"]
    assert "DIVERGED" in repr(runs) and "DIVERGED" in repr(runs[2])
    page = runs._repr_html_()
    assert page.startswith("3 runs<table") and "dpo.beta" in page and "lora.rank" not in page
    assert len(factdpo.load().runs) == 3
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        factdpo.load("nowhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dpo.betaa=1"], "dpo.betaa: no such key (did you mean dpo.beta?)"),
        (["lora.rank=0"], "lora.rank=0: must be at least 1, and finite"),
        (["dpo.beta=0.1,0.2"], "dpo.beta=0.1,0.2: several values;"),
        (["model=nonsense"], "model=nonsense: no such option"),
        (["sweeps=beta"], "sweeps=beta: asks for many runs; factdpo.sweep does them"),
        (["-m", "seed=0,1"], "-m: write key=value as text"),
        (["status"], "status: write key=value as text"),
        (["dry_run=true"], "dry_run=true: does no run that could be returned"),
        (["sweep=mine"], "sweep=mine: names the folder of many runs, and this is one;"),
    ],
)
def test_what_the_command_line_refuses_is_a_config_error(here: Path, words: list[str], message: str):
    with pytest.raises(ConfigError) as refusal:
        factdpo.run(*words)
    assert str(refusal.value).startswith(message)
    assert not (here / "outputs").exists()


def test_a_sweep_that_cannot_run_is_refused_as_a_whole(here: Path):
    with pytest.raises(ConfigError, match=r"lora\.rank=0: must be at least 1"):
        factdpo.sweep("lora.rank=0,4", *SMALL)


@pytest.mark.slow
def test_a_run_that_diverged_raises_and_a_sweep_returns_it(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("factdpo.api.Session", lambda: session.Session(facts=FACTS))
    words = ("dpo.learning_rate=1e30", "dpo.max_grad_norm=1e30", *SMALL)
    with pytest.raises(RunFailed, match="DIVERGED"):
        factdpo.run(*words)
    assert [run.state for run in factdpo.sweep("seed=0,1", *words)] == ["DIVERGED", "DIVERGED"]


@pytest.mark.parametrize("word", ["dry_run=true", "dry_run=True", "dry_run=1"])
def test_a_plan_is_no_run(here: Path, word: str):
    for start in (factdpo.run, factdpo.sweep):
        with pytest.raises(ConfigError, match=f"{word}: does no run that could be returned"):
            start("seed=1", word, *SMALL)


def test_damaged_files_are_named_and_runs_can_be_sliced(tmp_path: Path):
    for id in ("aa", "bb", "cc"):
        finished(tmp_path / "runs", id)
    runs = factdpo.load(tmp_path)
    assert [run.id for run in runs[1:]] == [run.id for run in runs][1:] and len(runs[:2]) == 2
    (runs[0].folder / "generations.json").write_text("[")
    (runs[0].folder / "items.parquet").write_bytes(b"PAR1")
    for name in ("generations", "items"):
        with pytest.raises(ConfigError, match=rf"{runs[0].folder}/{name}\..*: cannot be read"):
            getattr(runs[0], name)
    with pytest.raises(ConfigError, match="merge='false': give True or False"):
        runs[1].export(merge="false")  # type: ignore[arg-type]


def test_a_caller_s_hydra_logging_and_environment_stay(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    handlers, level, arguments = [*logging.getLogger().handlers], logging.getLogger().level, [*sys.argv]
    with pytest.raises(ConfigError):
        factdpo.run("split.train=100000", "track=none")
    assert (logging.getLogger().handlers, logging.getLogger().level, sys.argv) == (handlers, level, arguments)
    assert "HYDRA_FULL_ERROR" not in os.environ and GlobalHydra.instance().hydra is None


def test_importing_factdpo_imports_nothing_else():
    code = "import sys, factdpo; print({'torch', 'hydra', 'pandas', 'rich', 'factdpo.api'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_bars_are_shown_in_notebooks_where_rich_can(monkeypatch: pytest.MonkeyPatch):
    plain, notebook = Console(file=io.StringIO()), Console(file=io.StringIO(), force_jupyter=True)
    assert bar_of(1, True, plain).progress.disable and not bar_of(1, True, notebook).progress.disable
    assert bar_of(1, False, notebook).progress.disable
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bar_of(1, True, notebook).progress.disable
