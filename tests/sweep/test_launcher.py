"""hydra/launcher=batched: Hydra's own suites; a sweep is refused whole, warmed whole, and then run job by job."""

import json
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

from factdpo.runs import answer

Done = subprocess.CompletedProcess[str]

# The command line with other bodies of answers and answer: what they are given is seen, and nothing is trained.
FAKE_JOBS = """
from factdpo.commands.main import main
from factdpo.runs.attempt import Outcome
from factdpo.sweep import jobs, parallel

def answers(specs, session):
    print("TOGETHER", *(f"JOB {spec.cfg}" for spec in specs), sep="\\n")
    for spec in specs:
        failed = spec.cfg.seed == 1
        yield spec, Outcome({"state": "FAILED" if failed else "FINISHED"}, int(failed))

def answer_one(specs, session):
    print("JOB", *(spec.cfg for spec in specs))
    yield specs[0], Outcome({"state": "FINISHED"}, 0)

jobs.answers, parallel.answers = answers, answer_one
main()
"""

# An application of somebody else, one of whose jobs fails.
OTHER_APP = """
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path=None)
def app(cfg):
    job = HydraConfig.get().job
    print(cfg.a, job.num, job.id, HydraConfig.get().runtime.output_dir)
    if cfg.a == 1:
        raise ValueError("a is 1")

app()
"""


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Hydra sets up logging for every job; the tests after these shall not notice."""
    root = logging.getLogger()
    before, level = [*root.handlers], root.level
    yield
    for handler in {*root.handlers} - {*before}:
        root.removeHandler(handler)
    root.setLevel(level)


IDS = ["d684835e6021", "4d3ddbc12eac", "a834b3004173"]  # of the default run with seeds 0, 1 and 2

# Hydra's suites look for what a job leaves in the current folder.
IN_JOB_FOLDER = "hydra.job.chdir=true"


@pytest.mark.parametrize(("launcher_name", "overrides"), [("batched", [IN_JOB_FOLDER])])
class TestLauncher(LauncherTestSuite):
    """Hydra's contract with every launcher."""


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [("batched", ["hydra/sweeper=basic", "hydra.sweeper.max_batch_size=2", IN_JOB_FOLDER])],
)
class TestLauncherOfABatchingSweeper(BatchedSweeperTestSuite):
    """Hydra's contract with a launcher that a sweep calls several times."""


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({}, ["-m", "hydra/launcher=batched", "hydra/hydra_logging=disabled", "hydra/job_logging=disabled"])],
    ids=["batched"],
)
class TestLauncherIntegration(IntegrationTestSuite):
    """Hydra's contract with a launcher that whole applications run under."""


def python(folder: Path, *arguments: str) -> Done:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=300)


def launcher_of(*overrides: str) -> str:
    """The class that `factdpo -m <overrides>` launches with, from where we stand."""
    import hydra

    import factdpo.commands.run  # noqa: F401  (registers the schema)
    from factdpo.config.folders import conf_folder

    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    return cfg.hydra.launcher._target_.rpartition(".")[2]


def test_it_launches_every_sweep_that_does_not_name_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in (tmp_path / "sweeps/mine.yaml", tmp_path / "conf/experiment/mine.yaml"):
        option.parent.mkdir(parents=True)
        option.write_text("# @package _global_\ndefaults: [override /hydra/launcher: basic]\n")
    monkeypatch.chdir(tmp_path)
    assert launcher_of() == launcher_of("sweeps=orientation") == "BatchedLauncher"
    assert launcher_of("hydra/launcher=basic") == "BasicLauncher"
    assert launcher_of("sweeps=mine") == launcher_of("experiment=mine") == "BasicLauncher"
    assert launcher_of("sweeps=mine", "hydra/launcher=batched") == "BatchedLauncher"


def test_hydra_finds_it_from_any_folder_and_imports_nothing_heavy_for_it(tmp_path: Path) -> None:
    found = python(
        tmp_path,
        "-c",
        "import sys\n"
        "from hydra.core.plugins import Plugins\n"
        "from hydra.plugins.launcher import Launcher\n"
        "print([c.__name__ for c in Plugins.instance().discover(Launcher)].count('BatchedLauncher'))\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'factdpo.config.schema', 'factdpo.runs.answer'}\n"
        "print(heavy & {*sys.modules})",
    )
    assert (found.stdout, found.stderr) == ("1\nset()\n", "")


def test_one_bad_combination_is_refused_before_the_first_job_runs(tmp_path: Path) -> None:
    done = python(tmp_path, "-c", FAKE_JOBS, "-m", "dpo.loss=[sigmoid],[aot]", "dpo.wpo=true,false", "out=here")
    head, problem, where = done.stderr.splitlines()
    assert head == "factdpo: 1 of these 4 jobs cannot be run, so none of them was started:"
    assert problem.startswith("  dpo.wpo=true: aot sorts the pairs")
    assert where == "    in dpo.loss=[aot] dpo.wpo=True"
    assert (done.stdout, done.returncode, [*tmp_path.iterdir()]) == ("", 2, [])


def test_bad_data_is_refused_before_the_first_job_runs_and_named_once(tmp_path: Path) -> None:
    done = python(tmp_path, "-c", FAKE_JOBS, "-m", "split.train=20,900", "seed=0,1,2", "data.path=null,no.csv")
    assert done.stderr.splitlines() == [
        "factdpo: 9 of these 12 jobs cannot be run, so none of them was started:",
        f"  data.path=no.csv: no such file (looked for {tmp_path}/no.csv); give a path that exists",
        "    in each of the 6 jobs with data.path=no.csv",
        "  split.train=900: the data has only 861 facts for it; give fewer, or a "
        "share of them, as in split.train=0.5 (the rest is held out)",
        "    in each of the 3 jobs with split.train=900 data.path=null",
    ]
    assert (done.stdout, done.returncode) == ("", 2)


def test_what_is_wrong_with_every_job_is_said_as_for_a_single_run(tmp_path: Path) -> None:
    single = python(tmp_path, "-m", "factdpo", "lora.rank=0")
    sweep = python(tmp_path, "-m", "factdpo", "-m", "lora.rank=0", "seed=0,1")
    assert (sweep.stderr, sweep.stdout, sweep.returncode) == (single.stderr, single.stdout, single.returncode)


def test_the_sweeper_refuses_whole_under_every_launcher_and_hydras_own_job_by_job(tmp_path: Path) -> None:
    ours = python(tmp_path, "-c", FAKE_JOBS, "-m", "hydra/launcher=basic", "lora.rank=0,4")
    assert "1 of these 2 jobs cannot be run" in ours.stderr and (ours.stdout, ours.returncode) == ("", 2)
    basic = ["hydra/sweeper=basic", "hydra/launcher=basic"]
    hydras = python(tmp_path, "-c", FAKE_JOBS, "-m", *basic, "lora.rank=0,4")
    assert "TOGETHER" not in hydras.stdout and hydras.stdout.count("JOB") == 1 and hydras.returncode == 2


def test_the_runs_are_given_every_config_just_as_its_job_is_and_a_failed_job_stops_no_other(tmp_path: Path) -> None:
    own = ["track.group=${hydra:job.num}", "track.entity=${hydra:runtime.output_dir}", "out=here"]
    done = python(tmp_path, "-c", FAKE_JOBS, "-m", "seed=0,1,2", *own)
    lines = done.stdout.splitlines()
    assert [line.split("(")[0] for line in lines[:5]] == ["seed: 3 runs: 3 to do", "TOGETHER", *["JOB Config"] * 3]
    assert f"entity='{tmp_path}/here/sweeps', group='2'" in lines[4] and "label='seed=2'" in lines[4]
    ended = [re.sub(r"\d+ s$", "N s", line) for line in lines[5:]]
    assert ended == [f"to do  here/sweeps/seed/seed={n}-{i}" for n, i in enumerate(IDS)] + ["seed: 3 to do; N s"]
    assert done.stderr == "factdpo: 3 of 3 runs are not finished; rerun the same command to resume\n"
    assert done.returncode == 1


def test_jobs_with_an_environment_of_their_own_are_looked_up_in_it_and_trained_alone(tmp_path: Path) -> None:
    own = ["+hydra.job.env_set.SOME=value", "track.group=${oc.env:SOME}"]
    done = python(tmp_path, "-c", FAKE_JOBS, "-m", "seed=0,2", *own)
    assert "seed: 2 runs: 2 to do\n" in done.stdout and "TOGETHER" not in done.stdout
    assert done.stdout.count("group='value'") == 2


def test_a_folder_per_job_is_refused_by_our_sweeper_and_left_to_hydras(tmp_path: Path) -> None:
    ours = python(tmp_path, "-c", FAKE_JOBS, "-m", "seed=0,2", IN_JOB_FOLDER)
    assert ours.stderr.startswith("factdpo: hydra.job.chdir=true: ") and (ours.stdout, ours.returncode) == ("", 2)
    hydras = python(tmp_path, "-c", FAKE_JOBS, "-m", "hydra/sweeper=basic", "seed=0,2", IN_JOB_FOLDER)
    assert "TOGETHER" not in hydras.stdout and hydras.stdout.count("JOB") == 2 and hydras.returncode == 0


def test_another_application_runs_as_under_the_basic_launcher(tmp_path: Path) -> None:
    def run(launcher: str) -> tuple[int, str, set[str]]:
        (folder := tmp_path / launcher).mkdir()
        (folder / "app.py").write_text(OTHER_APP)
        done = python(folder, "app.py", "-m", f"hydra/launcher={launcher}", "+a=0,1,2", "hydra.sweep.dir=s")
        said = (done.stdout + done.stderr).replace(str(folder), "here")
        files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        return done.returncode, re.sub(r"^\[[^]]*\]", "", said, flags=re.MULTILINE), files  # without the time

    code, said, files = run("batched")
    assert (code, said, files) == run("basic")
    assert code == 1 and "ValueError: a is 1" in said and "2 2 2 here/s/2" in said and "s/2/.hydra/config.yaml" in files


def test_how_a_run_failed_comes_back_from_another_process() -> None:
    failed = pickle.loads(pickle.dumps(answer.RunFailed("DIVERGED", "the loss is not finite", 1)))
    assert (failed.state, str(failed), failed.exit_code) == ("DIVERGED", "the loss is not finite", 1)


def sweep_under(launcher: str, out: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    """Two small runs' results by id, each done in seconds."""
    small = ["split.train=20", "split.test=20", "dpo.epochs=null", "dpo.max_steps=4", "eval.every=never", "track=none"]
    done = python(
        out, "-m", "factdpo", "-m", f"hydra/launcher={launcher}", *overrides, "seed=0,1", *small, f"out={out}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in out.glob("sweeps/seed/*/result.json")]
    return {result["id"]: result for result in results}


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return sweep_under("basic", tmp_path_factory.mktemp("basic"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "overrides"), [("batched", []), ("joblib", ["hydra.launcher.n_jobs=2"]), ("submitit_local", [])]
)
def test_the_launcher_decides_only_speed(
    basic: dict[str, dict[str, Any]], tmp_path: Path, launcher: str, overrides: list[str]
) -> None:
    found = sweep_under(launcher, tmp_path, *overrides)
    assert found.keys() == basic.keys() and len(found) == 2
    for id, result in found.items():
        assert result["asked"] == basic[id]["asked"] and result["baselines"] == basic[id]["baselines"]
        for model in ("base", "trained"):
            for split, scores in result[model].items():
                expected = basic[id][model][split]
                assert scores["accuracy"] == expected["accuracy"]
                assert scores["chosen_logp_nats"] == pytest.approx(expected["chosen_logp_nats"], abs=1e-4)
