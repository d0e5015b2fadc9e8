"""The command line as a user types it: answers, refusals, exit codes, other folders, and the wheel."""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from factdpo import __version__
from factdpo.commands.table import NAMES
from tests.helpers.command_line import in_process

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "pandas", "scipy", "matplotlib", "wandb", "numpy"}
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def factdpo(tmp_path: Path) -> Run:
    """Runs the command line in an empty folder."""

    def run(*arguments: str, start: tuple[str, ...] = ("-m", "factdpo"), **env: str):
        return subprocess.run(
            [sys.executable, *start, *arguments],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "120", **env},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


# What a user may type wrong, and the one line that answers it.
ANSWERS = [
    (["lora.rnk=3"], "factdpo: lora.rnk: no such key (did you mean lora.rank?); factdpo --help lists all keys"),
    (["+lora.rnk=3"], "factdpo: lora.rnk: no such key; lora has method, rank, alpha,"),
    (["modle=nano"], "factdpo: modle: no such key (did you mean model?); factdpo --help lists all keys"),
    (["loar.rank=3"], "factdpo: loar.rank: no such key (did you mean lora.rank?); factdpo --help lists all keys"),
    (["epoch=3"], "factdpo: epoch: no such key (did you mean dpo.epochs?); factdpo --help lists all keys"),
    (["lr=abc"], "factdpo: dpo.learning_rate=abc: must be a number (default 0.001)"),
    (["--lr=3"], "factdpo: --lr=3: a key has no dashes before it; write lr=3"),
    (
        ["track.entity=None"],
        "factdpo: track.entity=None: write null for no value, as in track.entity=null, and the text",
    ),
    (["split.test=none"], "factdpo: split.test=none: write null for no value, as in split.test=null"),
    (["-m", "seed=0,1", "track.group=a,None"], "factdpo: track.group=None: write null for no value, as in"),
    (["dpo.epochs=3", "max_steps=5"], "factdpo: dpo.epochs=3.0, dpo.max_steps=5: give exactly one"),
    (["sweep=2026_11_25"], "factdpo: sweep=2026_11_25: names the folder of many runs, and this is one;"),
    (["sweep=orientation"], "factdpo: sweep=orientation: names the folder of many runs, and this is one;"),
    (
        ["model=pythia_16m"],
        "factdpo: model=pythia_16m: no such option (did you mean pythia_160m?); model can be custom,",
    ),
    (["lora.rank=abc"], "factdpo: lora.rank=abc: must be a whole number (default 32)"),
    (["lora.rank=2.5"], "factdpo: lora.rank=2.5: must be a whole number (default 32)"),
    (["dpo.beta=much"], "factdpo: dpo.beta=much: must be a number (default 0.2)"),
    (["data.eos=perhaps"], "factdpo: data.eos=perhaps: must be true or false (default false)"),
    (["data.hub=x"], "factdpo: data.hub=x: is a group of keys, not a value; set one of them, as in data.hub.id=..."),
    (["data.files=x"], "factdpo: data.files=x: is a group of keys, not a value; set one of them, as in data.files.<na"),
    (["data.files.train={a:1}"], "factdpo: data.files.train={a:1}: Cannot convert"),
    (["dpo=null"], "factdpo: dpo=null: a group of keys is never null; choose an option (factdpo help dpo)"),
    (["~seed"], "factdpo: seed: cannot be taken away, only set (default 0)"),
    (["seed=${foo}"], "factdpo: seed=${foo}: there is no key foo; write a value, or the name of another key"),
    (["seed=-1"], "factdpo: seed=-1: must be between 0 and 4294967295, and finite"),
    (["hydra.job.env_set.FOO=1"], "factdpo: hydra.job.env_set.FOO: Hydra has no such key; --cfg hydra lists them, and"),
    (
        ["-m", "seed=0,1", "hydra.sweeper.metrics=[accuracy/tset]"],
        "factdpo: hydra.sweeper.metrics=accuracy/tset: no such number of a run (did you mean accuracy/test or",
    ),
    (["seed=null"], "factdpo: seed=null: must have a value (default 0)"),
    (["split.orientation=randm"], "factdpo: split.orientation=randm: must be one of random, canonical, both (did you"),
    (["dpo.loss=sigmod"], "factdpo: dpo.loss=[sigmod]: must be one of sigmoid, hinge,"),
    (
        ["dpo.loss=ipo,sigmoid"],
        "factdpo: dpo.loss=ipo,sigmoid: several values; -m runs each of them, and dpo.loss=[ipo,sigmoid] is a list",
    ),
    (["dpo.loss=[sigmod]"], "factdpo: dpo.loss=[sigmod]: must be one of sigmoid, hinge,"),
    (["lora.rank=1,2"], "factdpo: lora.rank=1,2: several values; -m runs each of them, and lora.rank=[1,2] is a list"),
    (["dpo.beta=interval(0.1,1)"], "factdpo: dpo.beta=interval(0.1,1): asks for many runs; -m runs them, and -m"),
    (["data.path=[a=b"], "factdpo: data.path=[a=b: the value cannot be read"),
    (["data.path=nowhere/a=b (1).csv"], "factdpo: data.path=nowhere/a=b (1).csv: "),
    (["doktor"], "factdpo: doktor: neither a command nor key=value (did you mean doctor?); write key=value,"),
    (["result"], "factdpo: result: neither a command nor key=value (did you mean results?); write key=value,"),
    (["complete"], "factdpo: complete: neither a command nor key=value (did you mean completion?); write key=value,"),
    (["help", "loar"], "factdpo: help loar: neither a command nor a group nor a key (did you mean lora?);"),
    (["lora.rank=0"], "factdpo: lora.rank=0: must be at least 1, and finite"),
    (["model=custom"], "factdpo: model.id: missing; give a folder or a hub id"),
    (["eval"], "factdpo: eval: give the folder of a finished run, or model=<option, hub id or folder>, and adapter="),
    (["eval", "model=nano", "dpo.beta=1"], "factdpo: dpo.beta=1: has no effect on weights that are trained;"),
    (["ask"], "factdpo: ask: the following arguments are required: FOLDER; factdpo ask --help says how it is used"),
    (["export", "nowhere"], "factdpo: nowhere: nowhere/result.json: not there; give the folder of a finished run"),
    (["eval", "nowhere"], "factdpo: nowhere: nowhere/result.json: not there; give the folder of a finished run"),
    (["status", "--al"], "factdpo: outputs: "),  # argparse completes options
    (["status", "--every"], "factdpo: status: unrecognized arguments: --every; factdpo status --help says how it is"),
    *(
        ([name, "nowhere/x*"], f"factdpo: {name}: argument FOLDER: nowhere/x*: nothing matches; factdpo {name} --help")
        for name in ("status", "results", "report", "dashboard", "eval", "ask", "export", "sync", "clean")
    ),
    (["-m", "seed=a,b"], "factdpo: seed=a: must be a whole number (default 0)"),
    (["-m", "--cfg", "job"], "factdpo: Only one of"),
]


@pytest.mark.parametrize(("arguments", "answer"), ANSWERS, ids=[" ".join(a) for a, _ in ANSWERS])
def test_a_mistake_is_answered_in_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    answer: str,
):
    with in_process(tmp_path, monkeypatch) as call:
        assert call(*arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith(answer) and "Traceback" not in said.err
    assert said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "outputs/runs").exists()


def test_a_mistake_is_answered_so_in_a_process_of_its_own(factdpo: Run):
    done = factdpo(*ANSWERS[0][0])
    assert done.stderr.startswith(ANSWERS[0][1]) and done.stderr.count("\n") == 1
    assert (done.stdout, done.returncode) == ("", 2)


def test_a_traceback_is_there_for_who_asks(factdpo: Run):
    done = factdpo("lora.rank=0", HYDRA_FULL_ERROR="1")
    assert "ConfigError: lora.rank=0" in done.stderr and "Traceback" in done.stderr


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["lora.rnk=3"], ["lora.rank=0"], ["data=pairs"]])
def test_refusals_import_nothing_heavy(factdpo: Run, arguments: list[str]):
    done = factdpo(*arguments, start=("-X", "importtime", "-m", "factdpo"))
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", done.stderr, re.MULTILINE))
    assert {"hydra", "omegaconf"} <= imported and not imported & HEAVY


def test_help_and_completion_import_neither_hydra_nor_anything_heavy(factdpo: Run):
    lines = [["--help"], ["--help", "lora"], ["--version"], ["completion", "bash"], ["completion", "--words", "model="]]
    lines += [[name, "--help"] for name in NAMES] + [["completion", "--words", name, "--"] for name in NAMES]
    code = (
        "import contextlib, sys\nfrom factdpo.commands.main import main\n"
        f"for line in {lines}:\n"
        "    sys.argv[1:] = line\n"
        "    with contextlib.suppress(SystemExit): main()\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    done = factdpo(start=("-c", code))
    imported = set(ast.literal_eval(done.stderr))
    assert done.stdout.count("usage: factdpo") == len(NAMES) and "argparse" in imported
    assert not imported & {*HEAVY, "hydra"}


def test_help_says_what_there_is(factdpo: Run):
    done = factdpo("--help")
    assert done.returncode == 0 and done.stderr == ""
    for words in (
        "EXAMPLES",
        "  doctor  ",
        "  split       both, canonical, default",
        "  sweeps      beta,",
        "1 / nats",
    ):
        assert words in done.stdout
    assert re.search(r"^  lora\.rank +32 +\S", done.stdout, re.MULTILINE)


def test_the_version_is_factdpos(factdpo: Run):
    for arguments in (["--version"], ["version"], ["seed=1", "--version"]):
        done = factdpo(*arguments)
        assert (done.stdout, done.stderr, done.returncode) == (f"factdpo {__version__}\n", "", 0)


@pytest.mark.parametrize(
    "line", ["-m seed=0,1", "seed=0,1 -m", "lora.rank=4 -m seed=0,1", "--multirun seed=0,1 lora.rank=4"]
)
def test_the_sign_of_many_runs_stands_anywhere(factdpo: Run, line: str):
    done = factdpo(*line.split(), "dry_run=true", "track=none")
    assert done.stdout.startswith("seed: 2 runs: 2 to do\n") and (done.stderr, done.returncode) == ("", 0)


def test_options_of_hydra_stand_anywhere(factdpo: Run):
    composed = factdpo("lora.rank=3", "--cfg", "job", "seed=5").stdout
    assert "rank: 3" in composed and "\nseed: 5" in composed


def test_names_that_people_type_are_keys(factdpo: Run, tmp_path: Path):
    done = factdpo(
        "lr=3e-4", "max_steps=5", "dpo.loss=ipo", "data.path=~/my facts=2.csv", "beta=0.5", "rank=4", "label=1_000",
        "--cfg", "job", HOME=str(tmp_path),
    )  # fmt: skip
    dpo = done.stdout[done.stdout.index("\ndpo:") :]
    for text in ("  loss:\n  - ipo\n", "beta: 0.5", "epochs: null", "max_steps: 5", "learning_rate: 0.0003", "'1_000'"):
        assert text in dpo
    assert f"path: {tmp_path}/my facts=2.csv " in " ".join(done.stdout.split()) and "  rank: 4\n" in done.stdout
    assert done.stderr == "factdpo: dpo.max_steps=5 replaces the default number of epochs (dpo.epochs=null)\n"


def test_a_sweep_over_short_names_is_one_over_keys_and_records_what_was_typed(factdpo: Run, tmp_path: Path):
    arguments = ["lr=1e-3,1e-4", "sweep=2026_11_25", "max_steps=4", "dpo.loss=ipo,sigmoid", "-m", "track=none"]
    done = factdpo(*arguments, start=with_job("print('JOB', cfg.dpo.learning_rate, cfg.dpo.loss[0].name, cfg.sweep)"))
    assert re.findall(r"JOB (.*)", done.stdout) == [
        f"{rate} {loss} 2026_11_25" for rate in ("0.001", "0.0001") for loss in ("ipo", "sigmoid")
    ]
    sweep = json.loads((tmp_path / "outputs/sweeps/2026_11_25/sweep.json").read_text())
    assert sweep["commands"][0]["command"] == " ".join(["factdpo", *arguments])
    assert sweep["axes"] == {"dpo.learning_rate": ["0.001", "0.0001"], "dpo.loss": ["ipo", "sigmoid"]}


def test_a_sweep_file_needs_no_mode(factdpo: Run, tmp_path: Path):
    write(tmp_path / "sweeps/mine.yaml", "# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}\n")
    assert factdpo("sweeps=mine", "dry_run=true", "track=none").stdout.startswith("mine: 2 runs: 2 to do\n")
    alone = factdpo("sweeps=mine", "hydra.mode=RUN", "dry_run=true", "track=none").stdout
    assert alone.count("to do") == 2 and "mine: " not in alone  # the row of one run, and how many there are


def test_eval_takes_a_folder_as_the_others_do_and_still_its_old_form(factdpo: Run, tmp_path: Path):
    (tmp_path / "nowhere").mkdir()
    said = [factdpo("eval", folder).stderr for folder in ("nowhere", "run=nowhere")]
    assert said[0] == said[1] and said[0].startswith("factdpo: nowhere: nowhere/result.json: not there;")


def test_clean_looks_into_outputs_by_default(factdpo: Run, tmp_path: Path):
    (tmp_path / "outputs/cache").mkdir(parents=True)
    done = factdpo("clean", "--cache", "--dry-run")
    assert (done.stdout, done.stderr, done.returncode) == ("nothing to remove\n", "", 0)


def test_the_console_script_is_the_module(factdpo: Run):
    script = Path(sys.executable).with_name("factdpo")
    by_script = subprocess.run([script, "--cfg", "job", "model=pythia_1.4b"], capture_output=True, text=True)
    assert by_script.stdout == factdpo("--cfg", "job", "model=pythia_1.4b").stdout != ""
    assert "id: EleutherAI/pythia-1.4b" in by_script.stdout


def test_composing_leaves_nothing_behind(factdpo: Run, tmp_path: Path):
    factdpo("--cfg", "job")
    factdpo("lora.rank=0")
    assert list(tmp_path.iterdir()) == []


def test_the_users_own_options_come_first(factdpo: Run, tmp_path: Path):
    write(tmp_path / "conf/lora/mine.yaml", "rank: 7\n")
    write(tmp_path / "conf/lora/none.yaml", "rank: 5\n")
    write(tmp_path / "conf/model/mine.yaml", "defaults: [pythia_70m]\nname: mine\n")
    write(tmp_path / "sweeps/mine.yaml", "# @package _global_\nseed: 11\n")
    assert "rank: 7" in factdpo("lora=mine", "--cfg", "job").stdout
    assert "rank: 5" in factdpo("lora=none", "--cfg", "job").stdout
    assert "id: EleutherAI/pythia-70m" in factdpo("model=mine", "--cfg", "job").stdout
    assert "\nseed: 11" in factdpo("sweeps=mine", "--cfg", "job").stdout
    listed = factdpo("--help").stdout
    assert "lora        default, mine, none" in listed and ", lora_vs_full, loss, methods, mine, optuna," in listed


def test_a_mistake_in_the_users_own_option_names_the_file(factdpo: Run, tmp_path: Path):
    write(tmp_path / "conf/lora/mine.yaml", "rnk: 7\n")
    write(tmp_path / "conf/lora/typo.yaml", "rank: many\n")
    write(tmp_path / "conf/lora/half.yaml", "rank: [1\n")
    assert "lora.rnk: no such key (did you mean lora.rank?)" in (said := factdpo("lora=mine").stderr)
    assert "lora/mine.yaml" in said
    assert "lora.rank: must be a whole number" in (said := factdpo("lora=typo").stderr) and "lora/typo.yaml" in said
    write(tmp_path / "conf/dpo/bare.yaml", "loss: ipo\n")
    assert "dpo.loss: must be a list (default [sigmoid]) (in dpo/bare.yaml)" in factdpo("dpo=bare").stderr
    assert "not valid YAML" in (said := factdpo("lora=half").stderr) and "conf/lora/half.yaml" in said


def test_in_the_checkout_no_folder_is_searched_twice():
    done = subprocess.run(
        [sys.executable, "-m", "factdpo", "--info", "searchpath"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.count(f"{ROOT}/conf ") == 1 and done.stdout.count(f"{ROOT}/sweeps ") == 1


def test_a_sweep_file_starts_all_its_runs(factdpo: Run):
    for arguments in (["sweeps=orientation"], ["-m", "sweeps=orientation"]):
        done = factdpo(*arguments, start=with_job("print('JOB', cfg.split.orientation.name, cfg.seed)"))
        assert re.findall(r"JOB (.*)", done.stdout) == [f"{o} {s}" for o in ("random", "canonical") for s in (0, 1, 2)]
        assert done.stdout.startswith('orientation: 6 runs: 6 to do  Is the "reversal" failure the order of names?\n')
        assert done.stdout.splitlines()[-1].startswith("orientation: 6 to do; ")  # these jobs leave nothing
        assert done.stderr == "factdpo: 6 of 6 runs are not finished; rerun the same command to resume\n"
        assert done.returncode == 1


@pytest.mark.parametrize(
    ("ends", "code", "says"),
    [
        ("raise job.RunFailed('DIVERGED', 'the loss is not finite', 1)", 1, "factdpo: the loss is not finite\n"),
        ("raise ConfigError('data.path=x: no such file')", 2, "factdpo: data.path=x: no such file\n"),
        ("raise KeyboardInterrupt", 130, "factdpo: interrupted\n"),
        ("raise job.RunFailed('PREEMPTED', 'interrupted', 130)", 130, "factdpo: interrupted\n"),
    ],
)
def test_exit_codes(factdpo: Run, ends: str, code: int, says: str):
    done = factdpo(start=with_job(ends))
    assert (done.returncode, done.stderr) == (code, says)


def test_a_bug_shows_its_traceback(factdpo: Run):
    done = factdpo(start=with_job("{}['missing']"))
    assert done.returncode == 1 and "Traceback" in done.stderr and "KeyError: 'missing'" in done.stderr


def test_a_failed_run_of_a_sweep_stops_no_other_and_fails_the_sweep(factdpo: Run):
    ends = "print('JOB', cfg.seed)\n    if cfg.seed == 1: raise job.RunFailed('FAILED', 'it broke', 1)"
    done = factdpo("-m", "seed=0,1,2", start=with_job(ends))
    assert re.findall(r"JOB (\d)", done.stdout) == ["0", "1", "2"]
    assert done.stderr == "factdpo: 3 of 3 runs are not finished; rerun the same command to resume\n"
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_what_libraries_show_and_warn_of_stays_out_of_the_terminal(
    dry_run: str, factdpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Their bars and warnings, also where they are imported to ask a base, before any run begins."""
    from tests.helpers.tiny import tiny_base

    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)  # a test before may have set it
    base = tiny_base()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    small = ["split.train=8", "split.test=8", "dpo.max_steps=1", "dpo.epochs=null", "track=none"]
    done = factdpo("-m", "seed=0,1", "model=custom", "model.id=base", f"dry_run={dry_run}", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs: 2 to do" in done.stdout
    for words in ("Warning", "it/s]", "%|", "[HYDRA]"):
        assert words not in done.stdout + done.stderr, words


def test_doctor_never_fails(factdpo: Run):
    done = factdpo("doctor", HF_ENDPOINT="http://127.0.0.1:9", WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 0 and done.stderr == ""
    for words in ("torch", "memory", "127.0.0.1:9", "HF_HUB_OFFLINE is set", "model=nano", "model=pythia_12b"):
        assert words in done.stdout
    assert re.search(r"model=nano .*yes", done.stdout)


def test_the_wheel_runs_from_any_folder_without_the_checkout(tmp_path: Path):
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        packed.extractall(site)
    assert names >= {
        "factdpo/_config/conf/config.yaml",
        "factdpo/_config/sweeps/orientation.yaml",
        "factdpo/data/characters.csv",
        "factdpo/nano/weights/model.safetensors",
        "factdpo/nano/weights/tokenizer.json",
        "hydra_plugins/factdpo_searchpath.py",
    }
    assert not [n for n in names if n.startswith(("tests", "conf", "sweeps", "outputs")) or n.endswith("__init__.pyc")]
    assert "hydra_plugins/__init__.py" not in names

    empty = tmp_path / "elsewhere"
    empty.mkdir()
    # -S: no site, so the editable install is not on the path; the libraries are named by hand.
    path = os.pathsep.join([str(site), *(p for p in sys.path if p.endswith("site-packages"))])

    def run(*arguments: str) -> str:
        command = [sys.executable, "-S", "-m", "factdpo", *arguments]
        env = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, cwd=empty, env=env, check=True, capture_output=True, text=True).stdout

    searched = run("--info", "searchpath")
    assert f"file://{site}/factdpo/_config/conf " in searched and str(ROOT) not in searched
    assert f"factdpo-sweeps://{site}/factdpo/_config/sweeps " in searched
    assert "orientation: canonical" in run("split=canonical", "--cfg", "job")
    assert "sweeps      beta," in run("--help")


def with_job(body: str) -> tuple[str, str]:
    """Start of the command line where a run is this body, so that none is needed to end in some way."""
    return "-c", (
        "from factdpo.runs import answer as job\nfrom factdpo.config.schema import ConfigError\n"
        "from factdpo.commands.main import main\nfrom factdpo.sweep import jobs, parallel\n"
        "from factdpo.runs.attempt import Outcome\n"
        f"def answers(specs, session):\n    cfg = specs[0].cfg\n    {body}\n"
        "    yield specs[0], Outcome({'state': 'FINISHED'}, 0)\n"
        "parallel.answers, jobs.answers = answers, lambda specs, session: ()\nmain()"
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
