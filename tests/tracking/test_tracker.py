"""What W&B is told and when, and that its failures cost a warning and no record."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from factdpo.config.schema import Config, TrackConfig, TrackMode
from factdpo.store.history import LocalTracker, read_history
from factdpo.tracking.tracker import Trackers, open_trackers
from factdpo.tracking.wandb_settings import wandb_mode, wandb_sentence, without_secrets
from factdpo.tracking.wandb_tracker import WandbTracker
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
        assert [r["step"] for r in rows if "loss" in r] == [r["step"] for r in read_history(folder / "history.jsonl")]
        assert next(r for r in rows if "loss" not in r)["items.nrows"] == 1
        assert {"glob_name": "*", "step_metric": "step"}.items() <= next(
            r["metric"] for r in found if r["type"] == "metric" and "glob_name" in r["metric"]
        ).items()
        final = {k: v for r in found if r["type"] == "summary" for k, v in r["summary"]["update"].items()}
        assert (final["accuracy/train"], final["base/accuracy/train"], final["generations.nrows"]) == (1.0, 0.5, 1)
        assert [r["exit"].get("exit_code", 0) for r in found if r["type"] == "exit"] == [exit_code]


def test_a_failure_inside_wandb_costs_one_warning_and_not_the_record(nowhere, tmp_path, caplog):
    trackers = open_trackers(config(), "idc", "nano c", tmp_path)
    with caplog.at_level(logging.WARNING, "factdpo"):
        trackers.trackers[1]._run.finish()  # as if its process had gone
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
        assert [r["history"]["item"]["loss"] for r in records(tmp_path / name) if r["type"] == "history"] == [0.5]


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
