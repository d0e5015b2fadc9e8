"""Sweeps as one asks for them: names and folders, what is refused, what dry_run=true tells, what sweep.json keeps."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from factdpo.config.schema import Config, ConfigError, to_dict
from factdpo.config.validate import validate
from factdpo.runs import answer
from factdpo.runs.identity import RunSpec, look_up
from factdpo.store import sweep_file
from factdpo.store.result import write_result
from factdpo.sweep import grid, jobs, sweep
from factdpo.sweep.estimates import Example, Work, estimate, read_stored, work_of
from tests.helpers.command_line import in_process


class Said(NamedTuple):
    """What a command printed, and its exit code."""

    out: list[str]
    error: str
    code: int

    def runs(self) -> list[list[str]]:
        """The cells of dry_run's table, without its headings."""
        start = next(number for number, line in enumerate(self.out) if line.startswith("id  "))
        table = self.out[start + 1 : self.out.index("", start)]
        return [re.sub("(to|in) (do|cache)", r"\1_\2", line).split(maxsplit=6) for line in table]


Factdpo = Callable[..., Said]


@pytest.fixture
def factdpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Factdpo]:
    """factdpo("-m", "seed=0,1"): what that command says, in an empty folder, in this process."""
    with in_process(tmp_path, monkeypatch) as call:

        def run(*arguments: str) -> Said:
            code = call(*arguments)
            said = capsys.readouterr()
            return Said(said.out.splitlines(), said.err, code)

        yield run


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., RunSpec]:
    """asked(seed=1, lora_rank=8): the run of a config with these values, in an `out` of its own."""

    def ask(**values: object) -> RunSpec:
        cfg = Config(out=str(tmp_path))
        for key, value in values.items():
            group, _, name = key.partition("_")
            setattr(getattr(cfg, group) if name else cfg, name or key, value)
        return look_up(validate(cfg))

    return ask


# ------------------------------------------------------------------------------------------------- names and folders


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["-m", "dpo.beta=0.1,0.2", "seed=0,1"], "dpo.beta+seed"),
        (["-m", "seed=0,1", "dpo.beta=0.1,0.2"], "dpo.beta+seed"),  # in whatever order
        (["-m", "split.seed=1,2", "dpo.seed=3,4"], "dpo.seed+split.seed"),
        (["-m", "model=nano", "lora=default,none", "engine=trl"], "lora"),
        (["-m", "seed=0,1", "sweep=mine"], "mine"),
        (["-m", "seed=0"], "multirun"),
        (["sweeps=orientation"], "orientation"),
        (["sweeps=orientation", "seed=range(5)"], "orientation"),
        (["sweeps=orientation", "sweep=mine"], "mine"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_sweep_is_named_by_itself_its_file_or_what_is_swept(
    factdpo: Factdpo, arguments: list[str], name: str
) -> None:
    assert factdpo(*arguments, "dry_run=true").out[0].startswith(f"{name}: ")


@pytest.mark.parametrize("name", ["../../evil", "a b", "größe", "it's", ".hidden", "x" * 81, "a/b"])
def test_a_name_that_is_no_folder_is_refused(factdpo: Factdpo, tmp_path: Path, name: str) -> None:
    said = factdpo("-m", f'sweep="{name}"', "seed=0,1", "dpo.beta=0.1,0.2")
    assert said.error.startswith("factdpo: sweep=") and "names a folder" in said.error
    assert (said.error.count("\n"), said.out, said.code, [*tmp_path.iterdir()]) == (1, [], 2, [])


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ("'a b'", "group=a b"),
        ("'c,d'", "group=c,d"),
        ('"it\'s"', "group=its"),
        ("'größe [x] {y}'", "group=größe x y"),
        (r"'back\\slash'", "group=backslash"),
        ("'a=b'", "group=a=b"),
        ("'${seed}'", "group=$seed"),
        ("y" * 128, "group=" + "y" * 128),  # W&B's limit
        ("null", "group=null"),
    ],
)
def test_any_value_can_be_swept(factdpo: Factdpo, values: str, label: str) -> None:
    said = factdpo("-m", f"track.group={values},other", "seed=0,1", "dry_run=true")
    assert said.code == 0 and [row[-1] for row in said.runs()] == [f"track.{label} seed=0", f"track.{label} seed=1"]


def test_labels_name_keys_by_their_end_unless_other_keys_end_like_it(factdpo: Factdpo) -> None:
    said = factdpo("-m", "split.seed=1", "seed=0,1", "lora.rank=4,8", "eval.batch_size=16,32", "dry_run=true")
    assert said.runs()[0][-1] == "seed=0 rank=4 eval.batch_size=16"
    said = factdpo("-m", "split.seed=1,2", "lora.target_modules=[dense],[dense,query_key_value]", "dry_run=true")
    assert said.runs()[1][-1] == "split.seed=1 target_modules=dense,query_key_value"


@pytest.mark.parametrize(
    ("argument", "refusal"),
    [
        ("sweep=a,b", "sweep=a,b: is one for all runs of a sweep; give one value"),
        ("out=a,b", "out=a,b: is one for all runs of a sweep; give one value"),
        ("fail_fast=true,false", "fail_fast=True,False: is one for all runs of a sweep; give one value"),
        ("label=a,b", "label=a,b: is one for all runs of a sweep; give one value"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir=x: no run would lie there; out=... and sweep=... say where they lie"),
        ("hydra.sweep.subdir=x", "hydra.sweep.subdir=x: no run would lie there; out=... and sweep=... say where they"),
        ("hydra.job.chdir=true", "hydra.job.chdir=true: a run has its own folder already; leave it at false"),
        ("dpo.beta=interval(0,1)", "dpo.beta=interval(0,1): a grid needs values, as in dpo.beta=1,2; hydra/sweeper="),
        ("+dpo.bta=1,2", "dpo.bta: no such key; dpo has loss, loss_weights, beta,"),
        ("lora.rank=0,-1", "2 of these 4 jobs cannot be run"),
    ],
    ids=lambda value: value.partition("=")[0],
)
def test_what_a_sweep_cannot_be_told_is_refused_before_anything_is_written(
    factdpo: Factdpo, tmp_path: Path, argument: str, refusal: str
) -> None:
    arguments = ["lora.rank=0,4"] if argument == "lora.rank=0,-1" else [argument]
    said = factdpo("-m", *arguments, "seed=0,1")
    assert said.error.startswith(f"factdpo: {refusal}") and said.code == 2 and [*tmp_path.iterdir()] == []


def test_a_sweeps_folder_is_not_for_a_single_run(factdpo: Factdpo) -> None:
    said = factdpo("sweep=orientation")
    assert said.error.startswith("factdpo: sweep=orientation: names the folder of many runs, and this is one")
    assert said.code == 2


def test_the_same_run_asked_for_in_many_words_is_one(factdpo: Factdpo) -> None:
    said = factdpo("-m", "engine.max_runs=1,2", "seed=0,0,1", "dry_run=true")
    assert said.out[0] == "engine.max_runs+seed: 2 runs, asked for by 6 jobs: 2 to do"
    assert [row[0] for row in said.runs()] == ["d684835e6021", "4d3ddbc12eac"]


def test_orders_of_names_are_not_swept_on_facts_that_have_one_order(factdpo: Factdpo, tmp_path: Path) -> None:
    rows = [f"The capital of land {n} is,town {n},town {n + 1}" for n in range(6)]
    (tmp_path / "facts.csv").write_text("\n".join(["prompt,chosen,rejected", *rows]))
    own = ["-m", "data=pairs", "data.path=facts.csv", "split.train=3", "dry_run=true"]
    said = factdpo(*own, "split.orientation=random,canonical")
    assert said.error.startswith("factdpo: split.orientation=random,canonical: the facts of facts have no ")
    files = ["-m", "data=pairs", "data.files.train=facts.csv", "dry_run=true"]
    assert factdpo(*files, "split.orientation=random,canonical").error == said.error
    assert said.code == 2 and factdpo(*own, "split.orientation=random", "seed=0,1").code == 0


def test_a_question_that_no_run_will_answer_is_said_before_the_first(factdpo: Factdpo, tmp_path: Path) -> None:
    rows = [f"The capital of land {n} is,town {n},town {n + 1}" for n in range(6)]
    (tmp_path / "facts.csv").write_text("\n".join(["prompt,chosen,rejected", *rows]))
    own = ["-m", "data=pairs", "data.path=facts.csv", "split.train=3", "dry_run=true", "seed=0,1"]
    asked = "hydra.sweeper.metrics=[accuracy/test_reversed,accuracy/test,across/symmetry_test]"
    said = factdpo(*own, asked)
    told = "hydra.sweeper.metrics: no run has a split for accuracy/test_reversed: the rest of the question leads"
    assert said.out.count(told) == 1 and "facts: 3 train, 3 test" in said.out
    assert told not in factdpo("-m", "seed=0,1", "dry_run=true", asked).out


# ----------------------------------------------------------------------------------------------------- dry_run=true


def test_a_dry_run_says_what_would_run_and_writes_nothing(factdpo: Factdpo, tmp_path: Path) -> None:
    said = factdpo("-m", "dpo.loss=[sigmoid],[aot]", "dpo.adam_beta1=0.9,0.8", "seed=0,1", "dry_run=true")
    assert said.out[0] == "dpo.adam_beta1+dpo.loss+seed: 8 runs: 8 to do"
    assert [row[2:4] for row in said.runs()] == [["batched", "1"]] * 2 + [["batched", "2"]] * 2 + [["trl", "-"]] * 4
    assert said.runs()[0] == ["d684835e6021", "to_do", "batched", "1", "-", "-", "loss=sigmoid adam_beta1=0.9 seed=0"]
    assert said.out[-3:] == [
        "dry_run=true: nothing was run; 8 runs to do",
        "group: runs with the same number can train together, in cohorts that fit into memory",
        "time, memory -: unknown until a run of the same model and engine has finished in this out",
    ]
    assert (said.error, said.code, [*tmp_path.iterdir()]) == ("", 0, [])


def test_a_dry_run_of_a_single_run_is_a_table_of_one(factdpo: Factdpo, tmp_path: Path) -> None:
    said = factdpo("dry_run=true", "track=none")
    assert said.runs() == [["d684835e6021", "to_do", "batched", "1", "-", "-", "nano b=0.2 r=32 s=0"]]
    assert (said.error, said.code, [*tmp_path.iterdir()]) == ("", 0, [])


def test_a_dry_run_imports_nothing_heavy_and_hydras_own_sweeper_honours_it(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom factdpo.commands.main import main\nmain()\n"
        "print({'torch', 'transformers', 'pandas', 'numpy', 'scipy', 'wandb', 'matplotlib'} & set(sys.modules))"
    )
    for more in ([], ["hydra/sweeper=basic"]):
        command = [sys.executable, "-c", code, "-m", "seed=0,1", "dry_run=true", *more]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
        assert done.stdout.endswith("\nset()\n") and done.stderr == "", done
        assert done.stdout.count("4d3ddbc12eac  to do") == 1
        assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "multirun.yaml"] == []


def test_long_lines_of_a_plan_are_never_cut(factdpo: Factdpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    said = factdpo("-m", f"track.group={'y' * 100},x", "seed=0,1", "dry_run=true")
    assert said.runs()[0][-1] == f"track.group={'y' * 100} seed=0"


SPLITS = {"train": 300, "train_reversed": 300, "test": 561, "test_reversed": 561}
RESULT = {
    "state": "FINISHED",
    "training": {"steps": 100, "trained_together": 4, "peak_gib": 1.5},
    "trained": {split: {"n": pairs, "accuracy": 0.5} for split, pairs in SPLITS.items()},
    "timing": {"train_seconds": 38.0, "batch_seconds": 150.0, "score_seconds": 1.722},
    "files": {"adapter/adapter_model.safetensors": "sha of the weights"},
}


def finished(run: RunSpec, name: str, **changes: object) -> None:
    """A finished run as far as the plan reads it: 100 steps of 8 pairs, at 3 passes each, and 1,400 passes for curves,
    in 38 s; 1,722 pairs scored in 1.722 s."""
    folder = Path(run.cfg.out) / "sweeps" / "before" / name
    folder.mkdir(parents=True)
    result = RESULT | {"id": name, "config": to_dict(run.cfg), "asked": {"model": run.asked["model"]}}
    for key, value in changes.items():
        group, _, name = key.partition("__")
        result |= {group: result[group] | {name: value}} if name else {key: value}
    write_result(folder, result)
    (folder / "asked.json").write_text(json.dumps(run.asked))


def with_trl(run: RunSpec) -> RunSpec:
    return replace(run, is_auto=True, needs_trl="its layers leak")


def examples_in(out: Path) -> list[Example]:
    return [stored.example for stored in read_stored(out)]


def test_the_work_of_a_run_is_its_steps_its_curves_and_the_pairs_of_every_split() -> None:
    dpo, of_eval = Config().dpo, Config().eval
    assert work_of(SPLITS, dpo, of_eval) == Work(3 * 304 * 8 + 8 * 400, 1722)  # of each split 100 facts, 8 epochs
    assert work_of(SPLITS, dpo, replace(of_eval, every="never"), steps=100) == Work(3 * 100 * 8, 1722)
    assert work_of(SPLITS, dpo, replace(of_eval, every="50"), steps=100) == Work(3 * 100 * 8 + 2 * 400, 1722)


def test_what_a_run_may_take_is_told_by_the_runs_most_like_it(asked: Callable[..., RunSpec], tmp_path: Path) -> None:
    run = asked(dpo_epochs=None, dpo_max_steps=200)
    work, of_curves = work_of(SPLITS, run.cfg.dpo, run.cfg.eval), 3 * 400
    assert work.training == 3 * 1600 + 6 * 400
    assert estimate(run, work, 0, examples_in(tmp_path), together=4) is None
    passes = 3 * 800 + of_curves  # of the examples
    finished(run, "a", timing__train_seconds=0.01 * passes)
    finished(run, "b", timing__train_seconds=0.02 * passes)
    finished(run, "c", timing__train_seconds=1.0 * passes, training__trained_together=1)  # not of like size
    finished(asked(lora_rank=8), "d", timing__train_seconds=8000.0)  # of another rank
    finished(asked(engine_device="cpu"), "e")  # of another kind
    finished(run, "f", state="FAILED")
    finished(run, "h", timing__train_seconds=0.0, timing__score_seconds=0.0)  # all of it was in the cache
    (tmp_path / "sweeps/before/g").mkdir()
    (tmp_path / "sweeps/before/g/result.json").write_text('{"state": "FINISHED"')
    examples = examples_in(tmp_path)
    assert len(examples) == 6
    finished(asked(), "i", engine="trl (auto: its layers leak)", timing__train_seconds=5000.0)
    examples = examples_in(tmp_path)
    by_trl = estimate(with_trl(run), work, 0, examples, together=4)
    assert by_trl is not None and by_trl.examples == 1, "of another engine than the config's"
    seconds = 0.015 * work.training

    def told(by_base: int, together: int) -> tuple[float, int, int]:
        found = estimate(run, work, by_base, examples, together)
        assert found is not None and found.peak_gib == 1.5
        return pytest.approx(found.seconds), found.examples, found.together

    assert told(0, together=4) == told(0, together=3) == told(0, together=5) == (seconds + 1.722, 2, 4)
    assert told(1722, together=4) == (seconds + 2 * 1.722, 2, 4)
    assert told(0, together=1) == (work.training + 1.722, 1, 1)


def test_a_plan_counts_the_pairs_that_are_scored_and_says_where_its_numbers_come_from(
    factdpo: Factdpo, asked: Callable[..., RunSpec]
) -> None:
    of_steps = {"dpo_epochs": None, "dpo_max_steps": 200}
    finished(asked(**of_steps, split_seed=7), "a", timing__train_seconds=36.0)  # 0.01 s a pass
    said = factdpo("-m", "dpo.max_steps=200,400", "dpo.epochs=null", "seed=0,1", "dry_run=true", "out=.")
    # 200 steps: 7200 passes; 1,722 pairs at 1 ms each are scored twice, by the base once for a seed
    assert [row[4:7] for row in said.runs()] == [
        ["~75", "s", "~1.5 GiB  max_steps=200 seed=0"], ["~75", "s", "~1.5 GiB  max_steps=200 seed=1"],
        ["~2", "min", "~1.5 GiB  max_steps=400 seed=0"], ["~2", "min", "~1.5 GiB  max_steps=400 seed=1"],
    ]  # fmt: skip
    assert said.out[-3] == "dry_run=true: nothing was run; 4 runs to do, about 7 min in all"
    assert said.out[-1] == (
        "time and memory: as of 1 finished run of that model and engine in this out, which trained 4 at a time"
    )


def test_a_training_that_the_cache_has_or_another_run_makes_is_not_counted(
    factdpo: Factdpo, asked: Callable[..., RunSpec], tmp_path: Path
) -> None:
    finished(asked(), "single")
    command = ["-m", "seed=0,1", "eval.generations=5,6", "dry_run=true", "out=."]
    assert [row[1] for row in factdpo(*command).runs()] == ["to_do"] * 4, "its weights are gone"
    (tmp_path / "cache/adapters/any").mkdir(parents=True)
    manifest = {"adapter/adapter_model.safetensors": "sha of the weights", "fit.json": "another"}
    (tmp_path / "cache/adapters/any/manifest.json").write_text(json.dumps(manifest))
    said = factdpo(*command)
    states = {row[-1].partition("  ")[2] or row[-1]: (row[1], row[3]) for row in said.runs()}
    assert [state for state, _ in states.values()] == ["in_cache", "in_cache", "to_do", "to_do"]
    assert [group for _, group in states.values()] == ["-", "-", "1", "-"]  # two runs want the one training
    assert "4 runs to do, 3 of them without training: the weights are in the cache" in said.out[-2]


# ------------------------------------------------------------------------------------------------------- sweep.json


def a_sweep(folder: Path, runs: list[RunSpec], command: str, axes: dict[str, list[str]]) -> sweep.Sweep:
    made = sweep.Sweep(folder, None, ["factdpo", *command.split()], axes, [])
    made.add(runs)
    return made


def test_sweep_json_adds_up_what_all_commands_asked(asked: Callable[..., RunSpec], tmp_path: Path) -> None:
    runs = [asked(seed=seed, sweep="s", label=f"seed={seed}") for seed in range(3)]
    folder = tmp_path / "sweeps" / "s"
    a_sweep(folder, runs[:2], "-m seed=0,1", {"seed": ["0", "1"]}).write()
    second = a_sweep(folder, runs[1:], "-m seed=1,2", {"seed": ["1", "2"]})
    second.write()
    second.write()  # again, as a search does: one command stays one
    known = sweep_file.read(folder)
    assert known is not None and known["name"] == "s" and known["axes"] == {"seed": ["0", "1", "2"]}
    assert known["runs"] == {
        "d684835e6021": {"folder": "seed=0-d684835e6021", "label": "seed=0"},
        "4d3ddbc12eac": {"folder": "seed=1-4d3ddbc12eac", "label": "seed=1"},
        "a834b3004173": {"folder": "seed=2-a834b3004173", "label": "seed=2"},
    }
    assert [(one["command"], one["runs"]) for one in known["commands"]] == [
        ("factdpo -m seed=0,1", 2),
        ("factdpo -m seed=1,2", 2),
    ]


@pytest.mark.parametrize("opened", [False, True], ids=["gone", "emptied"])
def test_a_finished_run_that_vanished_is_told_once_with_the_reason(
    asked: Callable[..., RunSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str], opened: bool
) -> None:
    run, folder = asked(sweep="s", label="seed=0"), tmp_path / "sweeps" / "s"
    before = a_sweep(folder, [run], "-m seed=0", {})
    before.before = {run.id: "FINISHED"}
    before.write()
    if opened:
        run.folder.mkdir()
    now = a_sweep(folder, [run], "-m seed=0", {})
    now.write()
    now.write()
    reason = f"{run.folder / 'result.json'}: not there" if opened else f"its folder is gone ({run.folder})"
    assert capsys.readouterr().out == f"seed=0: was FINISHED, and is redone: {reason}\n"


def test_a_damaged_sweep_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match=r"sweep\.json: not JSON .* move it away"):
        sweep_file.read(tmp_path)


@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        ([2], ["b=0 a=1"]),
        ([0, 1], ["each of the 2 jobs with a=0"]),
        ([0, 2], ["each of the 2 jobs with b=0"]),
        ([0, 3], ["b=0 a=0", "b=1 a=1"]),
        ([0, 1, 2, 3], ["every job"]),
    ],
)
def test_jobs_are_named_by_what_they_and_no_others_share(numbers: list[int], names: list[str]) -> None:
    labels = [["x=5", f"b={b}", f"a={a}"] for a in (0, 1) for b in (0, 1)]
    assert sweep._names(numbers, labels) == names


# ------------------------------------------------------------------------------------------------------ launching


class Lost(Launcher):
    """A launcher that joblib's could be: its worker was killed."""

    def setup(self, **_: object) -> None: ...

    def launch(self, job_overrides: object, initial_job_idx: int) -> list[JobReturn]:
        raise OSError("a worker process was terminated")


def test_a_launcher_that_loses_its_jobs_ends_the_sweep_with_its_table(
    asked: Callable[..., RunSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = asked(sweep="s", label="seed=0")
    lost = a_sweep(tmp_path / "sweeps" / "s", [run], "-m seed=0", {"seed": ["0"]})
    said = r"Lost lost its jobs \(OSError: a worker process was terminated\); rerun the same command to resume"
    with pytest.raises(answer.RunFailed, match=said), grid.under_way(lost):
        jobs.launch(Lost(), [["seed=0"]], 0)
    assert capsys.readouterr().out.splitlines() == [f"to do  {run.folder}", "s: 1 to do; 0 s"]


def test_what_a_job_raised_is_raised_unless_its_run_tells_it() -> None:
    def returned(error: Exception) -> Launcher:
        launcher = Lost()
        one = JobReturn(overrides=[], status=JobStatus.FAILED, _return_value=error)
        launcher.launch = lambda *_, **__: [one]  # type: ignore[method-assign]
        return launcher

    assert len(jobs.launch(returned(answer.RunFailed("FAILED", "it broke", 1)), [[]], 0)) == 1
    with pytest.raises(KeyError):
        jobs.launch(returned(KeyError("a bug")), [[]], 0)
