"""factdpo sync, against a server on this machine that answers as W&B's does."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from factdpo.commands.sync import NotUploaded, main, offline_runs
from factdpo.config.schema import Config, ConfigError, TrackConfig, TrackMode
from factdpo.store.run_lock import lock_file
from factdpo.sweep import wandb_workspace
from factdpo.tracking.wandb_tracker import WandbTracker
from tests.helpers.stored import store
from tests.helpers.wandb_server import Received, serving

KEY = "x" * 40


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a sweep; the first was killed after 2 rows, and then began again. Both attempts are kept here."""
    out = tmp_path_factory.mktemp("recorded")
    for name, rows in (("a", 2), ("a", 4), ("b", 3)):
        folder = out / "sweeps" / "beta" / f"beta=0.1-id{name}"
        folder.mkdir(parents=True, exist_ok=True)
        cfg = Config(track=TrackConfig(mode=TrackMode.offline), sweep="beta")
        tracker = WandbTracker(cfg, f"id{name}", f"nano {name}", folder)
        tracker.log(*({"step": 1 + row, "eval/test/accuracy": 0.9 - row / 10, "loss": 0.5} for row in range(rows)))
        tracker.finish({"state": "FINISHED"}, [], [], folder)
        time.sleep(1.1)  # W&B names folders by the second
    return out


@pytest.fixture
def out(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, and a user without settings or a key of W&B's."""
    for name in ("HOME", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(recorded, tmp_path / "out", symlinks=True))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with serving() as received:
        monkeypatch.setenv("WANDB_BASE_URL", received.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield received


def test_runs_keep_their_sweep_and_a_run_begun_again_stands_once(out: Path, server: Received, capsys) -> None:
    main([str(out)])
    group = {"group": "beta", "job_type": "run"}
    assert server.runs == {"ida": {"name": "nano a"} | group, "idb": {"name": "nano b"} | group}
    assert {run: [row["train/global_step"] for row in rows] for run, rows in server.history.items()} == {
        "ida": [1, 2, 3, 4],
        "idb": [1, 2, 3],
    }
    summary = server.summaries["ida"]
    assert summary["eval/test/accuracy"] == {"last": pytest.approx(0.6), "max": 0.9} and summary["train/loss"] == 0.5
    assert "3 offline runs: 3 to upload" in capsys.readouterr().out
    main([str(out)])
    assert capsys.readouterr().out == "3 offline runs: 3 uploaded before\n"


def test_a_run_that_is_being_done_is_left_for_later(out: Path, server: Received, capsys) -> None:
    with FileLock(lock_file(out / "sweeps" / "beta" / "beta=0.1-ida")):
        main([str(out / "sweeps" / "beta")])
    assert list(server.runs) == ["idb"]
    assert "3 offline runs: 1 to upload, 2 still running" in capsys.readouterr().out


def test_dry_run_names_the_runs_and_asks_nobody(out: Path, server: Received, capsys) -> None:
    main([str(out), "--dry-run"])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and str(out / "sweeps" / "beta" / "beta=0.1-idb") in said[3] and not server.runs


def test_without_a_key_without_a_server_and_without_a_folder_it_says_what_to_do(out: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"no API key found for http://127.0.0.1:9; `wandb login` .* WANDB_API_KEY"):
        main([str(out)])
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with pytest.raises(NotUploaded, match=r"cannot be reached .*the same command uploads these runs later"):
        main([str(out)])
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        main(["nowhere"])


def test_a_run_that_wandb_cannot_read_is_named_and_the_others_are_uploaded(out: Path, server: Received, capsys) -> None:
    (file,) = (out / "sweeps" / "beta" / "beta=0.1-idb").rglob("run-idb.wandb")
    file.write_bytes(b"not a run")
    with pytest.raises(NotUploaded, match="1 of 3 runs were not uploaded"):
        main([str(out)])
    said = capsys.readouterr().out
    assert "2 of 3 uploaded" in said and "not uploaded: " in said and list(server.runs) == ["ida"]


def test_a_sweep_is_saved_as_a_view_of_its_runs_with_what_was_swept(out: Path, server: Received, capsys) -> None:
    pytest.importorskip("wandb_workspaces")
    home = out / "sweeps" / "beta"
    for id, beta in (("a", 0.1), ("b", 0.4)):
        store(home, id, dpo_beta=beta)
    (home / "sweep.json").write_text("{}")
    for file in offline_runs(home):
        file.with_name(f"{file.name}.synced").touch()  # as if uploaded before
    main([str(home), "--workspace"])
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "factdpo", "beta")
    spec = json.loads(view["spec"])["section"]
    asked = spec["runSets"][0]["filters"]["filters"]
    assert [(one["key"]["name"], one["op"], one["value"]) for one in asked] == [
        ("group", "=", "beta"), ("jobType", "!=", "sweep"),
    ]  # fmt: skip
    drawn = [panel["config"] for section in spec["panelBankConfig"]["sections"] for panel in section["panels"]]
    assert {"xAxis": "config:dpo.value.beta", "yAxis": "summary:accuracy/test"}.items() <= next(
        one for one in drawn if one.get("yAxis") == "summary:accuracy/test"
    ).items()
    curve = next(one for one in drawn if one.get("metrics") == ["eval/test/accuracy"])
    assert (curve["xAxis"], curve["groupBy"], curve["groupAgg"]) == ("train/global_step", "dpo.value.beta", "mean")
    assert f"{home}: saved as http" in capsys.readouterr().out


def test_a_view_without_the_package_for_it_or_of_runs_that_none_finished_is_refused(
    out: Path, server: Received, monkeypatch
) -> None:
    home = out / "sweeps" / "beta"
    store(home, "c", state="FAILED")
    with pytest.raises(ConfigError, match=r"no run in .*beta has finished"):
        wandb_workspace.save(home)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ConfigError, match=r"^sync --workspace: wandb-workspaces is not installed; pip install"):
        main([str(home), "--workspace"])
    assert not server.runs and not server.views
