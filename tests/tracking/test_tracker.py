"""What W&B is told and when, and that its failures cost a warning and no record."""

import json
import logging
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from factdpo.config.schema import Config, ConfigError, EngineName, TrackConfig, TrackMode
from factdpo.store.history import LocalTracker, read_history
from factdpo.tracking.limits import NoAnswer, within
from factdpo.tracking.tracker import Trackers, open_trackers
from factdpo.tracking.wandb_settings import (
    check_names,
    display_name,
    job_type,
    project,
    tags,
    wandb_mode,
    wandb_sentence,
    without_secrets,
)
from factdpo.tracking.wandb_tracker import WandbTracker, _table
from factdpo.tracking.wandb_views import scores
from tests.helpers.wandb_records import records

ITEMS = [
    {
        "model": "base",
        "split": "train",
        "fact": 0,
        "prompt": "Dobby is Nagini's",
        "chosen_logp_nats": -1.5,
        "right": False,
    }
]
GENERATIONS = [{"prompt": "Dobby is", "split": "fixed", "fact": None, "base": " a", "trained": " an elf"}]
RESULT = {
    "state": "FINISHED",
    "base": {"train": {"n": 2, "accuracy": 0.5, "balanced_accuracy": 0.25}},
    "trained": {"train": {"n": 2, "accuracy": 1.0, "balanced_accuracy": 0.75, "answer_shares": {"friend": 1.0}}},
    "baselines": {"train": {"majority": 0.5, "implied": None}},
    "across": {"base": {"symmetry_train": 0.5}, "trained": {"symmetry_train": 1.0}},
    "timing": {"total_seconds": 3.0},
}


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A user without any W&B settings, in an empty folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


def config(**track) -> Config:
    cfg = Config(track=TrackConfig(**track))
    cfg.split.seed = cfg.dpo.seed = 0
    return cfg


# ---------------------------------------------------------------------------------------------------- what W&B will do


@pytest.mark.parametrize(
    ("mode", "env", "expected"),
    [
        ("auto", {}, ("offline", "no API key found")),
        ("auto", {"WANDB_API_KEY": "x" * 40}, ("online", "API key from WANDB_API_KEY")),
        ("online", {}, ("offline", "no API key found for track.mode=online")),
        ("online", {"WANDB_API_KEY": "x" * 40}, ("online", "track.mode=online, API key from WANDB_API_KEY")),
        ("offline", {"WANDB_API_KEY": "x" * 40}, ("offline", "track.mode=offline")),
        ("offline", {"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "online"}, ("offline", "track.mode=offline")),
        ("online", {"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, ("offline", "WANDB_MODE=offline")),
        ("auto", {"WANDB_MODE": "disabled"}, ("disabled", "WANDB_MODE=disabled")),
        ("auto", {"WANDB_MODE": "dryrun"}, ("offline", "WANDB_MODE=dryrun")),
        ("online", {"WANDB_API_KEY": "x" * 40, "WANDB_DISABLED": "true"}, ("disabled", "WANDB_DISABLED=true")),
        ("offline", {"WANDB_DISABLED": "false"}, ("offline", "track.mode=offline")),
        ("auto", {"WANDB_MODE": "onlin"}, ("offline", "WANDB_MODE=onlin is not a mode of W&B")),
    ],
)
def test_mode_of_wandb(nowhere, mode, env, expected):
    assert wandb_mode(TrackConfig(mode=TrackMode[mode]), {"HOME": str(nowhere), **env}) == expected


def test_a_key_is_found_in_netrc_and_in_settings_for_the_right_server_only(nowhere):
    track, env = TrackConfig(), {"HOME": str(nowhere)}
    (nowhere / ".netrc").write_text("machine wandb.example.org login user password secret\n")
    assert wandb_mode(track, env)[0] == "offline"
    assert wandb_mode(track, {**env, "WANDB_BASE_URL": "https://wandb.example.org"})[0] == "online"
    (nowhere / ".config" / "wandb").mkdir(parents=True)
    (nowhere / ".config" / "wandb" / "settings").write_text("[default]\napi_key = secret\n")
    assert wandb_mode(track, env) == ("online", "API key from W&B's settings file")
    (nowhere / "wandb").mkdir()
    (nowhere / "wandb" / "settings").write_text("[default]\nmode = offline\n")  # what `wandb offline` writes
    assert wandb_mode(track, env)[0] == "offline"


def test_the_sentence_says_what_happens_and_what_to_do(nowhere):
    env = {"HOME": str(nowhere)}
    offline = wandb_sentence(TrackConfig(), Path("runs/a"), env)
    assert offline == "W&B offline: no API key found; `factdpo sync runs/a` uploads later"
    assert wandb_sentence(TrackConfig(wandb=False), Path("runs/a"), env) == "W&B off: track.wandb=false"


def test_without_wandb_there_is_the_local_record_alone(nowhere, tmp_path, monkeypatch):
    assert [type(t) for t in open_trackers(config(wandb=False), "id", "name", tmp_path).trackers] == [LocalTracker]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert [type(t) for t in open_trackers(config(), "id", "name", tmp_path).trackers] == [LocalTracker]


def test_what_the_environment_says_counts_where_the_config_does_not(nowhere):
    env = {"HOME": str(nowhere), "WANDB_PROJECT": "theirs", "WANDB_TAGS": "a, b", "WANDB_JOB_TYPE": "try"}
    own = TrackConfig(project="ours", tags=["c"], job_type="probe")
    assert (project(TrackConfig(), env), tags(TrackConfig(), env), job_type(TrackConfig(), env)) == (
        "theirs", ["a", "b"], "try",
    )  # fmt: skip
    assert (project(own, env), tags(own, env), job_type(own, env)) == ("ours", ["c"], "probe")
    (nowhere / "wandb").mkdir()
    (nowhere / "wandb" / "settings").write_text("[default]\nproject = of-the-folder\n")  # what `wandb init` writes
    assert project(TrackConfig(), {"HOME": str(nowhere)}) == "of-the-folder"
    named = {"WANDB_NAME": "n" * 200}
    assert display_name(config(), "nano", {}) == "nano"
    assert display_name(config(), "nano", named) == "n" * 127 + "…"
    in_a_sweep, labelled = config(), config()
    in_a_sweep.sweep, labelled.label = "s", "mine"
    assert {display_name(cfg, "nano", named) for cfg in (in_a_sweep, labelled)} == {"nano"}


@pytest.mark.parametrize(
    ("track", "env", "refused"),
    [
        ({"project": "a/b#c"}, {}, "track.project=a/b#c: has # /; W&B's projects have a name without"),
        ({"project": " "}, {}, "track.project= : is empty"),
        ({}, {"WANDB_PROJECT": "a:b"}, "WANDB_PROJECT=a:b: has :"),
        ({"project": "p" * 129}, {}, "129 characters; W&B takes at most 128"),
        ({"group": "g" * 129}, {}, "track.group=g"),
        ({"tags": ["ok", "t" * 65]}, {}, "track.tags: the tag 'ttt"),
        ({"tags": [""]}, {}, "track.tags: the tag '' has 0 characters; W&B takes 1 to 64"),
        ({}, {"WANDB_TAGS": "t" * 65}, "WANDB_TAGS: the tag"),
    ],
)
def test_what_wandb_would_refuse_is_refused_before_the_run(nowhere, track, env, refused):
    with pytest.raises(ConfigError, match=re.escape(refused)):
        check_names(config(**track), env | {"HOME": str(nowhere)})
    check_names(config(wandb=False, **track), env)
    check_names(config(project="p" * 128, tags=["t" * 64]), {"HOME": str(nowhere)})


def test_the_config_in_wandb_decides_numbers_and_says_which_engine_trained(nowhere, tmp_path):
    cfg = config()
    cfg.engine.name = EngineName.batched
    tracker = WandbTracker(cfg, "ide", "nano e", tmp_path)
    tracker.finish(RESULT | {"engine": "trl (auto: why)", "versions": {"trl": "1"}}, [], [], tmp_path)
    told: dict = {}
    for found in records(tmp_path):
        told |= found["config"]["update"] if found["type"] == "config" else {}
        told |= found["run"]["config"]["update"] if found["type"] == "run" else {}
    assert told["engine"]["name"] == "trl" and told["trained_by"] == "trl (auto: why)"
    assert told["versions"] == {"trl": "1"} and told["model"]["name"] == "nano" and told["dpo"]["beta"] == 0.2
    assert not {"label", "out", "dry_run", "retries", "track", "sweep", "fail_fast"} & told.keys()


# -------------------------------------------------------------------------------------------- what it does not answer


def test_a_call_that_never_ends_is_left_and_one_that_fails_raises():
    assert within(5.0, lambda word: word * 2, "a") == "aa"
    with pytest.raises(KeyError):
        within(5.0, {}.pop, "a")
    waits = threading.Event()
    with pytest.raises(NoAnswer, match="no answer within 0 s"):
        within(0.05, waits.wait)
    waits.set()


@pytest.mark.slow
def test_wandb_that_hangs_costs_its_limit_once_and_one_warning_per_run(nowhere, tmp_path):
    script = """if True:
        import logging, sys
        from pathlib import Path
        import psutil
        from factdpo.config.schema import Config
        from factdpo.tracking import wandb_tracker
        from factdpo.tracking.tracker import open_trackers
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        wandb_tracker.CALL_SECONDS = 1.0
        def opened(name):
            folder = Path(sys.argv[1], name)
            folder.mkdir()
            return folder, open_trackers(Config(), "id" + name, name, folder)
        runs = [opened(name) for name in "ab"]
        (service,) = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
        service.suspend()
        for folder, trackers in runs:
            for step in range(2000):  # until what lies between the processes is full
                trackers.log({"step": step, "loss": 0.5})
            trackers.finish({"state": "FINISHED"}, [], [], folder)
        gone = not service.is_running() or service.status() == psutil.STATUS_ZOMBIE
        print([len(opened("c")[1].trackers), gone])
    """
    env = {**os.environ, "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[1, True]\n"), done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("W&B does not answer and is off from here on (NoAnswer: no answer within 1 s)")
    assert second.startswith("W&B failed and is off for the rest of this run")
    assert [len(read_history(tmp_path / name / "history.jsonl")) for name in "ab"] == [2000, 2000]


@pytest.mark.slow
def test_without_a_home_that_can_be_written_wandb_is_whole(nowhere, tmp_path):
    script = """if True:
        import sys
        from pathlib import Path
        from factdpo.config.schema import Config
        from factdpo.tracking.tracker import open_trackers
        opened = open_trackers(Config(out=sys.argv[1]), "idh", "h", Path(sys.argv[1]))
        opened.finish({"state": "FINISHED"}, [{"a": 1}], [], Path(sys.argv[1]))
    """
    (tmp_path / "no folder").touch()
    env = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    env |= {"WANDB_MODE": "offline", "HOME": str(tmp_path / "no folder")}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (run,) = tmp_path.glob("wandb/offline-run-*")
    found = records(tmp_path)
    assert [r["exit"].get("exit_code", 0) for r in found if r["type"] == "exit"] == [0]
    assert [r for r in found if r["type"] == "artifact"] and (run / "files").is_dir()


def test_secrets_stay_out_of_the_config():
    env = {"SOME_TOKEN": "canary-canary", "PASSWORD": "short", "EDITOR": "vim-vim-vim"}
    asked = {
        "api_key": "a", "hub": {"token": "b", "url": "https://canary-canary@hub"}, "list": ["x", "canary-canary"],
        "max_new_tokens": 12, "editor": "vim-vim-vim", "word": "short",
    }  # fmt: skip
    kept = {"hub": {}, "list": ["x"], "max_new_tokens": 12, "editor": "vim-vim-vim", "word": "short"}
    assert without_secrets(asked, env) == kept


# ---------------------------------------------------------------------------------------------------- Weights & Biases


def test_two_runs_in_one_process_are_two_whole_wandb_runs(nowhere, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CANARY_TOKEN", "canary-canary")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, state in zip(folders, ("FINISHED", "DIVERGED"), strict=True):
        folder.mkdir()
        cfg = config(tags=["nano"], group="g")
        cfg.model.id = "canary-canary"
        trackers = open_trackers(cfg, f"id{folder.name}", f"nano {folder.name}", folder)
        for step in range(20):
            trackers.log({"step": step, "loss": math.nan if step == 3 else 1.0 / (step + 1)})
        trackers.finish({**RESULT, "state": state}, ITEMS, GENERATIONS, folder)
    assert capfd.readouterr() == ("", "")
    for folder, exit_code in zip(folders, (0, 1), strict=True):
        found = records(folder)
        (run,) = [r["run"] for r in found if r["type"] == "run"]
        assert run["run_id"] == f"id{folder.name}" and run["display_name"] == f"nano {folder.name}"
        assert (run["project"], run["run_group"], run["job_type"], run["tags"]) == ("factdpo", "g", "run", ["nano"])
        assert "canary" not in json.dumps(found) and os.uname().nodename not in json.dumps(run["host"])
        rows = [r["history"]["item"] for r in found if r["type"] == "history"]
        steps = [r["step"] for r in read_history(folder / "history.jsonl")]
        assert [r["train/global_step"] for r in rows if "train/loss" in r] == steps
        assert next(r for r in rows if "train/loss" not in r)["items.nrows"] == 1
        assert {"glob_name": "*", "step_metric": "train/global_step"}.items() <= next(
            r["metric"] for r in found if r["type"] == "metric" and "glob_name" in r["metric"]
        ).items()
        final = {k: v for r in found if r["type"] == "summary" for k, v in r["summary"]["update"].items()}
        assert (final["accuracy/train"], final["base/accuracy/train"], final["generations.nrows"]) == (1.0, 0.5, 1)
        assert "balanced_accuracy/train" not in final and final["scores.nrows"] == len(scores(RESULT)) == 7
        assert [r["exit"].get("exit_code", 0) for r in found if r["type"] == "exit"] == [exit_code]


def test_a_table_is_wandbs_own_of_these_rows():
    import wandb

    rows = [[n, "x", n / 2, None] for n in range(5)] + [
        [1, None, 2.0, True],
        [2, "y", 3, False],
        [3, "z", math.nan, None],
    ]
    found, wanted = _table(["a", "b", "c", "d"], rows), wandb.Table(columns=["a", "b", "c", "d"], data=rows)
    assert found._column_types.to_json() == wanted._column_types.to_json()
    assert [list(map(repr, row)) for row in found.data] == [list(map(repr, row)) for row in wanted.data]
    assert _table(["a"], []).data == []
    one = [[1.0], [math.nan]]
    assert _table(["a"], one)._column_types.to_json() == wandb.Table(columns=["a"], data=one)._column_types.to_json()


def test_a_failure_inside_wandb_costs_one_warning_and_not_the_record(nowhere, tmp_path, caplog):
    trackers = open_trackers(config(), "idc", "nano c", tmp_path)
    with caplog.at_level(logging.WARNING, "factdpo"):
        view = trackers.trackers[1]
        assert isinstance(view, WandbTracker)
        view._run.finish()  # as if its process had gone
        trackers.log({"step": 1})
        trackers.log({"step": 2})
        trackers.finish(RESULT, ITEMS, GENERATIONS, tmp_path)
    (record,) = [r for r in caplog.records if r.name == "factdpo"]
    assert "W&B failed and is off" in record.getMessage()
    assert [row["step"] for row in read_history(tmp_path / "history.jsonl")] == [1, 2]


def test_an_end_that_wandb_cannot_show_costs_one_warning(nowhere, tmp_path, caplog):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "truth.png").write_text("not a picture")
    tracker = WandbTracker(config(), "idd", "nano d", tmp_path)
    with caplog.at_level(logging.WARNING, "factdpo"):
        Trackers([tracker]).finish(RESULT, ITEMS, GENERATIONS, tmp_path)
    assert len([r for r in caplog.records if r.name == "factdpo"]) == 1
    assert [r["exit"]["exit_code"] for r in records(tmp_path) if r["type"] == "exit"] == [1]


def test_an_unreachable_server_costs_one_warning_and_the_run_is_kept_offline(nowhere, tmp_path):
    script = """if True:
        import logging, sys
        from pathlib import Path
        from factdpo.config.schema import Config
        from factdpo.tracking import wandb_tracker
        from factdpo.tracking.tracker import open_trackers
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.WARNING)
        wandb_tracker.INIT_TIMEOUT_SECONDS = 1.0
        for name in "ab":
            folder = Path(sys.argv[1], name)
            folder.mkdir()
            opened = open_trackers(Config(), "id" + name, name, folder)
            opened.log({"step": 1, "loss": 0.5})
            opened.finish({"state": "FINISHED"}, [], [], folder)
    """
    env = {**os.environ, "WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == ""
    (line,) = done.stderr.splitlines()  # for both runs together
    assert line.startswith("factdpo WARNING W&B offline: the server did not take the run")
    for name in "ab":
        assert [r["history"]["item"]["train/loss"] for r in records(tmp_path / name) if r["type"] == "history"] == [0.5]


def test_under_an_agent_the_run_is_the_agents_run_in_its_sweep_and_a_second_one_is_kept_out(nowhere, tmp_path):
    script = """if True:
        import logging, sys
        from pathlib import Path
        from factdpo.config.schema import Config
        from factdpo.tracking.tracker import open_trackers
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        for name in ("first", "again", "other"):
            folder = Path(sys.argv[1], name)
            folder.mkdir()
            opened = open_trackers(Config(), "other" if name == "other" else "ours", name, folder)
            opened.log({"step": 1, "loss": 0.5})
            opened.finish({"state": "FINISHED"}, [], [], folder)
    """
    given = {"SWEEP_ID": "swept", "RUN_ID": "agents", "PROJECT": "theirs", "ENTITY": "them", "MODE": "offline"}
    env = {**os.environ, **{f"WANDB_{name}": value for name, value in given.items()}}  # as `wandb agent` sets them
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    for name in ("first", "again"):
        (run,) = [r["run"] for r in records(tmp_path / name) if r["type"] == "run"]
        assert (run["run_id"], run["sweep_id"], run["project"], run["entity"]) == ("agents", "swept", "theirs", "them")
        assert run["config"]["update"]["id"] == "ours"
    (warning,) = done.stderr.splitlines()
    assert "`wandb agent` opens one run per command" in warning and not (tmp_path / "other" / "wandb").exists()
    assert [len(read_history(tmp_path / name / "history.jsonl")) for name in ("again", "other")] == [1, 1]
