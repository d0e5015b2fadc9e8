"""hydra/sweeper=optuna: what is drawn, what is told, and that a search goes on as if it had never been stopped.

Nothing trains: a run's accuracy is a formula of its settings, written where a run would write it.
"""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from factdpo.config.schema import Config, ConfigError, to_dict
from factdpo.runs.attempt import Outcome
from factdpo.runs.identity import RunSpec
from factdpo.runs.session import Session
from factdpo.store.cache import file_sha256
from factdpo.store.result import write_result
from factdpo.store.sweep_file import Metric
from factdpo.sweep import jobs
from factdpo.sweep.search import FILE, Objective, Search
from factdpo.sweep.search_space import Space, edges, text, words
from factdpo.sweep.trials import distribution
from tests.helpers.command_line import in_process

SPACE: Space = {"dpo.beta": FloatDistribution(0.01, 1, log=True), "lora.rank": CategoricalDistribution(["8", "16"])}


# ------------------------------------------------------------------------------------------------------------ the space


@pytest.mark.parametrize(
    ("typed", "meant", "read"),
    [
        ("interval(0,1)", FloatDistribution(0, 1), "0 to 1"),
        ("tag(log,interval(0.01,1))", FloatDistribution(0.01, 1, log=True), "0.01 to 1, log"),
        ("int(interval(2,64))", IntDistribution(2, 64), "2 to 64"),
        ("tag(log,int(interval(2,64)))", IntDistribution(2, 64, log=True), "2 to 64, log"),
        ("range(2,9)", IntDistribution(2, 8), "2 to 8"),  # without its end, as Hydra's grid has it
        ("range(2,9,2)", IntDistribution(2, 8, step=2), "2 to 8 in steps of 2"),
        ("range(9,2,-2)", IntDistribution(3, 9, step=2), "3 to 9 in steps of 2"),
        ("range(0.1,0.5,0.2)", FloatDistribution(0.1, 0.3, step=0.2), "0.1 to 0.3 in steps of 0.2"),
        ("8,16,8", CategoricalDistribution(["8", "16"]), "8, 16"),
        ("choice([ipo],[sigmoid])", CategoricalDistribution(["[ipo]", "[sigmoid]"]), "[ipo], [sigmoid]"),
    ],
)
def test_a_space_is_written_in_hydras_grammar(typed: str, meant: Any, read: str) -> None:
    found = distribution("key", OverridesParser.create().parse_override(f"key={typed}"))
    assert (found, words(found)) == (meant, read)


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("interval(1,0)", r"key=interval\(1,0\): `low <= high` must hold"),
        ("tag(log,interval(0,1))", "`low > 0` must hold for `log=True`"),
        ("tag(lgo,interval(0,1))", r"no such tag, lgo; there is tag\(log, ...\)"),
        ("range(3,3)", "the range is empty"),
        ("tag(log,range(1,9,2))", "step"),
    ],
)
def test_a_range_that_is_none_is_refused(typed: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        distribution("key", OverridesParser.create().parse_override(f"key={typed}"))


def test_a_number_is_run_as_tables_show_it_and_stays_within_its_range() -> None:
    assert text(FloatDistribution(1e-5, 1, log=True), 0.034523423) == "0.03452"
    assert text(FloatDistribution(0, 0.123456), 0.1234559) == "0.123456"
    assert text(FloatDistribution(0, 0.9, step=0.3), 0.8999999999999999) == "0.9"
    assert text(IntDistribution(1, 99999), 12345) == "12345"


def test_the_edges_of_a_space_have_every_choice_and_both_ends_and_a_number_between() -> None:
    space = {"a": FloatDistribution(0, 1), "b": CategoricalDistribution(["x", "y"]), "c": IntDistribution(1, 3)}
    found = [" ".join(settings.values()) for settings in edges(space)]
    assert found == ["0 x 1", "0.3819 x 1", "1 x 1", "0 y 1", "0 x 3"]


# ----------------------------------------------------------------------------------------------------------- the search


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Search]:
    """search(n_trials=8): what one command asks; each is a new one, as in a new process."""
    objective = Objective(n_trials=20, batch_size=4, metric=None, direction=None, sampler="tpe", seed=0)
    usual: dict[str, Any] = {"folder": tmp_path / "s", "space": SPACE, "seeds": {}, "metric": Metric("accuracy/test")}

    def make(**changes: Any) -> Search:
        how = {key: changes.pop(key) for key in {*changes} - {*usual}}
        return Search(**usual | {"objective": replace(objective, **how)} | changes)

    return make


def answered(search: Search, trial: FrozenTrial, state: str = "FINISHED", seeds: int = 1, **more: Any) -> list[RunSpec]:
    """The runs of a trial, which ended in this state, or best near beta=0.1, by 0.1 less for each seed.

    `more`: scores of the test facts beside the accuracy, and of other splits.
    """
    settings = search.settings(trial)
    runs = []
    for seed in range(seeds):
        id = f"{trial.number:08x}{seed:04x}"
        folder = search.folder / f"run-{id}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "items.parquet").write_text("")
        accuracy = 0.9 - (math.log10(float(settings["dpo.beta"])) + 1) ** 2 / 10 - seed / 10
        trained = {"test": {"accuracy": accuracy} | more, "validation": {"accuracy": accuracy / 2} | more}
        config = {"config": {"eval": {"score": "mean"} if more else {}}}
        scores = {"trained": trained if more else {"test": trained["test"]}} if state == "FINISHED" else {}
        files = {"items.parquet": file_sha256(folder / "items.parquet")}
        write_result(folder, {"id": id, "state": state, "files": files, **config, **scores})
        runs.append(RunSpec(Config(), "", {"config": settings}, id, "", folder))
    return runs


def drawn(search: Search) -> list[tuple[Any, ...]]:
    return [(trial.number, trial.state.name, trial.params, trial.value) for trial in search.trials()]


def finish(search: Search) -> list[tuple[Any, ...]]:
    """What the search has in the end, run by run."""
    with search.opened():
        while batch := search.next_batch():
            for trial in batch:
                runs = answered(search, trial)
                search.keep_runs(trial, runs)
                search.tell(trial, runs)
        return drawn(search)


class Kill(Exception):
    pass


@pytest.mark.parametrize("trials", [5, 8, 10])
def test_a_search_that_was_killed_ends_as_one_that_was_not(
    search: Callable[..., Search], tmp_path: Path, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finish(search(folder=tmp_path / "whole" / "s"))

    def killed(self: Search, trial: FrozenTrial, *rest: Any) -> None:
        if trial.number == trials:
            raise Kill
        tell(self, trial, *rest)

    tell = Search.tell
    monkeypatch.setattr(Search, "tell", killed)
    with pytest.raises(Kill):
        finish(search())
    monkeypatch.undo()
    with search().opened(read_only=True):
        pass
    assert finish(search()) == whole
    assert finish(search()) == whole  # nothing is left to do


def test_a_search_that_was_killed_while_it_drew_a_batch_draws_the_rest_of_it(search: Callable[..., Search]) -> None:
    with search(batch_size=3).opened():
        pass
    with (first := search(batch_size=3)).opened():
        assert [trial.number for trial in first.next_batch()] == [0, 1, 2]
    with (again := search(batch_size=5)).opened():
        assert [trial.number for trial in again.next_batch()] == [0, 1, 2, 3, 4]


def test_a_study_that_is_gone_or_torn_comes_back(search: Callable[..., Search]) -> None:
    whole = finish(search())
    journal = search().folder / FILE
    with journal.open("a") as file:
        file.write('{"op_code": 9, "wor')
    assert finish(search(n_trials=21))[:20] == whole
    journal.unlink()
    assert finish(search()) == whole


def test_trials_that_are_missing_are_added(search: Callable[..., Search]) -> None:
    assert len(finish(search(n_trials=3))) == 3
    assert len(finish(search(n_trials=10))) == 10
    assert len(finish(search(n_trials=5))) == 10


def test_a_search_learns_and_its_seed_and_sampler_decide_what_it_draws(
    search: Callable[..., Search], tmp_path: Path
) -> None:
    def mean(trials: list[tuple[Any, ...]]) -> float:
        return sum(value for *_, value in trials) / len(trials)

    tpe, other, random = (
        finish(search(folder=tmp_path / str(number) / "s", n_trials=40, **changes))
        for number, changes in enumerate([{}, {"seed": 1}, {"sampler": "random"}])
    )
    assert tpe[0] != other[0]
    assert tpe[:8] == random[:8]  # TPE's first ones are drawn at random
    assert mean(tpe[-12:]) > mean(random[-12:])


def test_a_trials_value_is_the_mean_of_its_seeds_and_the_best_may_be_the_least(search: Callable[..., Search]) -> None:
    with (found := search(seeds={"seed": ["0", "1", "2"]}, metric=Metric("accuracy/test", True))).opened():
        (trial, *_) = found.next_batch()
        found.tell(trial, answered(found, trial, seeds=3))
        one = 0.9 - (math.log10(float(found.settings(trial)["dpo.beta"])) + 1) ** 2 / 10
        assert found.ranked()[0].value == pytest.approx(one - 0.1)
        for trial in found.next_batch():
            found.tell(trial, answered(found, trial, seeds=3))
        values = [trial.value for trial in found.ranked()]
        assert len(values) == 4 and values == sorted(values)


def test_a_trials_value_is_by_the_score_and_the_split_that_are_to_choose(search: Callable[..., Search]) -> None:
    with (found := search()).opened():
        (trial, *_) = found.next_batch()
        assert found.measured == "accuracy/test"
        found.tell(trial, answered(found, trial, n=4, n_equal=2, accuracy_per_token=0.75))
        assert (found.measured, found.ranked()[0].value) == ("accuracy_per_token/validation", 0.75)
    with search().opened():
        assert found.measured == "accuracy_per_token/validation"


def test_what_failed_is_done_again_and_what_diverged_is_an_answer(search: Callable[..., Search]) -> None:
    with (first := search(n_trials=4)).opened():
        batch = first.next_batch()
        for trial, state in zip(batch, ["FINISHED", "FAILED", "DIVERGED", "FINISHED"], strict=True):
            first.tell(trial, answered(first, trial, state))
        assert [state for _, state, *_ in drawn(first)] == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE"]
        assert first.next_batch() == []
    with (second := search(n_trials=4)).opened():
        (again,) = second.next_batch()
        assert again.params == batch[1].params and again.number == 4
        second.tell(again, answered(second, again))
        assert second.next_batch() == []
    with (third := search(n_trials=4)).opened():
        assert third.next_batch() == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metric": Metric("accuracy/train")}, "metric was accuracy/test and is accuracy/train"),
        ({"metric": Metric("accuracy/test", True)}, "direction was maximize and is minimize"),
        ({"seeds": {"seed": ["0", "1"]}}, "seed was not searched and is 0, 1"),
        (
            {"space": SPACE | {"dpo.beta": FloatDistribution(0.01, 3, log=True)}},
            "dpo.beta was 0.01 to 1, log and is 0.01 ",
        ),
        (
            {"space": {"dpo.beta": SPACE["dpo.beta"]}},
            "lora.rank was 8, 16 and is not searched; .* another name with sweep=",
        ),
    ],
)
def test_a_search_for_something_else_is_refused_by_name(
    search: Callable[..., Search], changes: dict[str, Any], told: str
) -> None:
    finish(search(n_trials=1))
    with pytest.raises(ConfigError, match=rf"s/study\.journal: {told}"), search(**changes).opened():
        pass


def test_other_settings_that_all_trials_share_are_refused_by_name(search: Callable[..., Search]) -> None:
    finish(search(n_trials=1))
    with (found := search()).opened():
        (trial,) = found.trials()
        (run,) = answered(found, trial)
        (run.folder / "asked.json").write_text('{"config": {"split": {"train": 150}}, "data": "abc"}')
        run.folder.rename(found.folder / f"named-{run.id}")
        run.id, run.asked = "f" * 12, {"config": {"split": {"train": 300}}, "data": "abc"}
        with pytest.raises(ConfigError, match=r"trial 0: split\.train was 150 and is 300; .* another name with sweep="):
            found.keep_runs(trial, [run])


def test_two_processes_are_not_on_one_search(search: Callable[..., Search]) -> None:
    finish(search(n_trials=1))
    with FileLock(search().folder / f".{FILE}.lock"):
        with pytest.raises(ConfigError, match="another process is on this search"), search().opened():
            pass
        with search().opened(read_only=True):
            pass


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n_trials": 0}, r"hydra\.sweeper\.n_trials=0: must be at least 1"),
        ({"batch_size": 0}, r"hydra\.sweeper\.batch_size=0: must be at least 1"),
        ({"space": {}}, "nothing to search; give keys a range, as in "),
    ],
)
def test_what_cannot_be_a_search_is_refused(search: Callable[..., Search], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        search(**changes)


def test_a_number_that_the_runs_turn_out_not_to_have_is_refused_with_those_near_it(
    search: Callable[..., Search],
) -> None:
    with (found := search(metric=Metric("accuracy/test_reversed"))).opened():
        trial = found.next_batch()[0]
        with pytest.raises(ConfigError, match=r"has no such number \(did you mean accuracy/test\?\)"):
            found.tell(trial, answered(found, trial))


# ----------------------------------------------------------------------------------------------------- the command line


def fake_answers(state: str, runs: list[RunSpec], session: Session) -> Iterator[tuple[RunSpec, Outcome]]:
    for run in runs:
        fake_run(state, run)
        yield run, Outcome(json.loads((run.folder / "result.json").read_text()), int(run.state() != "FINISHED"))


def fake_run(state: str, run: RunSpec) -> None:
    """A run that is over at once: its folder is written as a run would, and nothing is trained."""
    if run.state() == "FINISHED":
        return
    print("JOB", run.cfg.label)
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "asked.json").write_text(json.dumps(run.asked))
    (run.folder / "items.parquet").write_text("")
    result = {"id": run.id, "name": run.name, "state": state, "error": None, "config": to_dict(run.cfg), "warnings": []}
    if state == "FINISHED":
        accuracy = 0.9 - (math.log10(run.cfg.dpo.beta) + 1) ** 2 / 10 - run.cfg.dpo.seed / 10
        result |= {"trained": {"test": {"n": 561, "accuracy": accuracy}}, "base": {"test": {"n": 561, "accuracy": 0.5}}}
    result["files"] = {"items.parquet": file_sha256(run.folder / "items.parquet")}
    write_result(run.folder, result)


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def factdpo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Done]]:
    """factdpo("seed=0,1", state="FAILED"): the command line of a search in an empty folder; so end its runs."""
    with in_process(tmp_path, monkeypatch) as call:

        def run(*arguments: str, state: str = "FINISHED") -> Done:
            monkeypatch.setattr(jobs, "answers", partial(fake_answers, state))
            return Done(call("-m", "hydra/sweeper=optuna", "track=none", *arguments), *capsys.readouterr())

        yield run


BETA = "dpo.beta=tag(log,interval(0.01,1))"


def test_a_search_runs_its_trials_in_batches_and_ends_with_the_best_and_how_to_run_it_again(
    factdpo: Callable[..., Done], tmp_path: Path
) -> None:
    command = [BETA, "lora.rank=8,16", "seed=0,1", "split.train=150", "hydra.sweeper.n_trials=5"]
    dry = factdpo(*command, "hydra.sweeper.batch_size=3", "dry_run=true")
    assert dry.out.splitlines() == [
        "dpo.beta+lora.rank+seed: 5 trials of 2 runs: 0 answered, 5 to do",
        "  dpo.beta   0.01 to 1, log",
        "  lora.rank  8, 16",
    ]
    assert (dry.code, dry.err, list(tmp_path.iterdir())) == (0, "", [])

    done = factdpo(*command, "hydra.sweeper.batch_size=3")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[3] == "0 of 5 trials answered, 3 next"
    assert sum(line.startswith("JOB ") for line in lines[4:10]) == 6  # of each trial both seeds
    assert lines[10].startswith("3 of 5 trials answered, 2 next; best so far accuracy/test 0.")
    best, again, warning = lines[-3:]
    assert best.startswith("best accuracy/test, mean over seeds, 0.8") and "lora.rank=" in best
    assert again.startswith("  factdpo -m split.train=150 lora.rank=") and again.endswith(" seed=0,1")
    assert warning.startswith("  by accuracy/test: chosen on the test facts, so it flatters itself")
    known = json.loads((tmp_path / "outputs/sweeps/dpo.beta+lora.rank+seed/sweep.json").read_text())
    assert len(known["runs"]) == 10 and known["commands"][0]["runs"] == 10
    assert known["axes"] == {"dpo.beta": ["0.01 to 1, log"], "lora.rank": ["8", "16"], "seed": ["0", "1"]}

    shutil.rmtree(next((tmp_path / "outputs/sweeps/dpo.beta+lora.rank+seed").glob("*seed=1-*")))
    redone = factdpo(*command, "hydra.sweeper.batch_size=3")
    assert redone.out.count("JOB") == 1 and redone.out.splitlines()[-3:] == lines[-3:]
    repeated = factdpo(*command, "hydra.sweeper.batch_size=3")
    assert "JOB" not in repeated.out and repeated.out.splitlines()[-3:] == lines[-3:]
    other = factdpo(*command, "split.train=200")
    assert (other.code, other.out) == (2, "")
    assert "trial 0: split.train was 150 and is 200; a study cannot change its settings" in other.err


def test_a_sweeps_file_can_be_a_search_and_the_command_line_has_the_last_word(
    factdpo: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/mine.yaml").write_text(
        "# @package _global_\n# How strong a leash?  2 runs\ndefaults: [override /hydra/sweeper: optuna]\n"
        "hydra: {sweeper: {n_trials: 2, params: {dpo.beta: 'interval(0.1,1)', seed: '0,1'}}}\n"
    )
    done = factdpo("sweeps=mine", "seed=1", "sweep=named")
    assert done.out.startswith("named: 2 trials: 0 answered, 2 to do\n  dpo.beta  0.1 to 1\n")
    assert done.out.count("JOB") == 2 and (tmp_path / "outputs/sweeps/named" / FILE).exists()


def test_a_run_that_failed_fails_the_command_and_is_done_again_by_the_next(factdpo: Callable[..., Done]) -> None:
    failed = factdpo(BETA, "hydra.sweeper.n_trials=2", state="FAILED")
    assert failed.code == 1 and "no trial has a value yet" in failed.out
    assert (
        failed.err.splitlines()[-1] + "\n"
        == "factdpo: 2 of 2 runs are not finished; rerun the same command to resume\n"
    )


def test_a_run_that_diverged_is_an_answer(factdpo: Callable[..., Done]) -> None:
    assert factdpo(BETA, "hydra.sweeper.n_trials=2", state="DIVERGED").code == 0
    again = factdpo(BETA, "hydra.sweeper.n_trials=2", state="FINISHED")
    assert again.code == 0 and "JOB" not in again.out and "2 answered, 0 to do" in again.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["lora.rank=interval(1,2)"], "factdpo: lora.rank=1.382: must be a whole number (default 32)\n"),
        (["lora.rank=0,2", BETA], "  lora.rank=0: must be at least 1, and finite\n"),
        (["seed=interval(0,3)", BETA], "factdpo: seed=interval(0,3): seeds repeat each trial and are not searched"),
        (
            ["hydra/sweeper=factdpo", BETA],
            f"factdpo: {BETA}: a grid needs values, as in dpo.beta=1,2; hydra/sweeper=optuna searches a range",
        ),
    ],
)
def test_a_space_that_cannot_be_is_refused_before_anything_is_written(
    factdpo: Callable[..., Done], tmp_path: Path, arguments: list[str], told: str
) -> None:
    done = factdpo(*arguments)
    assert told in done.err and (done.code, done.out, list(tmp_path.iterdir())) == (2, "", [])


@pytest.mark.slow
def test_a_real_search_on_the_embedded_model(tmp_path: Path) -> None:
    small = ["split.train=20", "split.test=20", "dpo.epochs=null", "dpo.max_steps=4", "eval.every=never", "track=none"]
    command = [sys.executable, "-m", "factdpo", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", BETA, *small]
    done = subprocess.run([*command, "hydra.sweeper.batch_size=2"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "4 FINISHED" in done.stdout and "best accuracy/test 0." in done.stdout
