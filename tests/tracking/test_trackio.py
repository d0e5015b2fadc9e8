"""trackio as a second tracker, read back by its own command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factdpo.config.schema import ConfigError, TrackConfig
from factdpo.tracking.trackio_tracker import check_installed

SCRIPT = """if True:
    import logging, sys
    from pathlib import Path
    from factdpo.config.schema import Config, TrackConfig
    from factdpo.tracking.tracker import open_trackers
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    def opened(name, **track):
        folder = Path(sys.argv[1], name)
        folder.mkdir(exist_ok=True)
        cfg = Config(track=TrackConfig(wandb=False, trackio=True, **track), out=sys.argv[1], sweep="beta")
        cfg.model.id = "canary-canary"
        return open_trackers(cfg, "id" + name, "nano " + name, folder), folder
    def rows(count, of):
        return [{"step": step, "loss": of / step} for step in range(1, count + 1)]
    killed, _ = opened("a")
    killed.log(*rows(2, of=9.0))
    both = [opened("a"), opened("b")]  # two runs that train together
    for made in (rows(3, of=1.0)[:1], rows(3, of=1.0)[1:]):
        for tracker, _ in both:
            tracker.log(*made)
    for tracker, folder in both:
        tracker.finish({"state": "FINISHED", "trained": {"test": {"accuracy": 0.75}}},
                       [{"prompt": "Dobby is", "right": True}], [], folder)
"""


def run(out: Path, *command: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "TRACKIO_"))}
    env |= {"HOME": str(out), "CANARY_TOKEN": "canary-canary"}
    if command[0] != sys.executable:
        env["TRACKIO_DIR"] = str(out / "trackio")
    done = subprocess.run(command, cwd=out, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def asked(out: Path, *question: str) -> Any:
    """What trackio's own command line answers."""
    return json.loads(run(out, str(Path(sys.executable).with_name("trackio")), *question, "--json"))


@pytest.mark.slow
def test_runs_that_train_together_are_runs_of_their_own_and_one_begun_again_replaces_what_it_left(tmp_path: Path):
    pytest.importorskip("trackio", minversion="0.43")
    assert run(tmp_path, sys.executable, "-c", SCRIPT, str(tmp_path)) == ""  # no warning, and nothing of trackio's own
    assert not (tmp_path / ".cache").exists()  # all of it lies in out
    names = ["nano a (ida)", "nano b (idb)"]
    assert sorted(asked(tmp_path, "list", "runs", "--project", "factdpo")["runs"]) == names
    for name in names:
        place = ("--project", "factdpo", "--run", name)
        found = asked(tmp_path, "get", "metric", *place, "--metric", "loss")["values"]
        assert [(point["step"], point["value"]) for point in found] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
        about = asked(tmp_path, "get", "run", *place)
        assert {"accuracy/test", "items"} <= {*about["metrics"]}
        assert about["config"]["_Group"] == "beta" and about["config"]["dpo"]["beta"] == 0.2
        assert "canary" not in json.dumps(about)


@pytest.mark.parametrize(
    ("installed", "problem"),
    [(None, "is not installed"), ("0.0.6", "0.0.6 is too old"), ("0.42.9", "0.42.9 is too old"), ("1.0", None)],
)
def test_trackio_that_is_not_there_or_too_old_is_refused(tmp_path: Path, monkeypatch, installed, problem):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # as an environment that has nothing else
    if installed:
        about = tmp_path / f"trackio-{installed}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: trackio\nVersion: {installed}\n")
    check_installed(TrackConfig(trackio=False))
    if problem is None:
        check_installed(TrackConfig(trackio=True))
        return
    with pytest.raises(ConfigError) as refused:
        check_installed(TrackConfig(trackio=True))
    said = f"track.trackio=true: trackio {problem}; pip install 'trackio>=0.43' (or track=offline)"
    assert str(refused.value) == said
