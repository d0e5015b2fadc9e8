"""Identity, folders and states: no crash loses a run, and nothing unfinished passes for finished."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from factdpo.commands import eval
from factdpo.config.engine_choice import choose_engine
from factdpo.config.schema import Config, ConfigError, to_dict
from factdpo.config.validate import validate
from factdpo.results import tables
from factdpo.runs import answer, identity
from factdpo.store import cache
from factdpo.training.batched import engine
from tests.helpers.runs import folder_of, small


def run_id(cfg: Config) -> str:
    return cache.signature(identity.what_is_asked(choose_engine(validate(cfg))[0]))[:12]


def stored(out: Path) -> dict[str, Any]:
    """The only run below `out`, as its result.json has it."""
    (path,) = (out / "runs").glob("*/result.json")
    return json.loads(path.read_text())


def start(out: Path, *overrides: str) -> "subprocess.Popen[str]":
    """The command line in a process of its own, long enough to be caught in training."""
    command = [
        sys.executable,
        "-m",
        "factdpo",
        "track=none",
        f"out={out}",
        "split.train=40",
        "split.test=8",
        *overrides,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_history(out: Path, process: "subprocess.Popen[str]") -> None:
    while not any(path.stat().st_size for path in (out / "runs").glob("*/history.jsonl")):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.05)


def test_places_and_names_do_not_change_the_id_and_every_number_does(tmp_path: Path) -> None:
    base = run_id(Config())
    same = Config(out=str(tmp_path))
    same.model.name, same.track.project, same.track.wandb = "other", "factdpo", False
    assert run_id(same) == base
    others = set()
    for key, value in [("seed", 1), ("split.train", 299), ("dpo.beta", 0.20001), ("dpo.learning_rate", 9.99e-4)]:
        cfg = Config()
        *groups, name = key.split(".")
        setattr(getattr(cfg, groups[0]) if groups else cfg, name, value)
        others.add(run_id(cfg))
    assert len(others) == 4
    assert base not in others


def test_the_datas_bytes_are_part_of_the_id_and_its_place_is_not(tmp_path: Path) -> None:
    ids = []
    for name, text in [("a", "name,side\nAnn,0\nBob,1\n"), ("b", "name,side\nAnn,0\nBob,0\n")] * 2:
        table = tmp_path / str(len(ids)) / f"{name}.csv"
        table.parent.mkdir()
        table.write_text(text)
        cfg = Config()
        cfg.data.path = str(table)
        ids.append(run_id(cfg))
    assert ids[0] == ids[2] != ids[1] == ids[3]


def test_a_folders_name_never_leaves_its_place(tmp_path: Path) -> None:
    cfg = validate(small(tmp_path))
    cfg.model.name = "../../evil/ " + "x" * 300 + " ünï, code"
    assert re.fullmatch(r"[A-Za-z0-9_=][A-Za-z0-9._=-]{0,79}", identity.slug(cfg))


def test_a_failing_run_leaves_its_traceback_and_the_next_call_redoes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(engine, "fit_many", lambda *_: (_ for _ in ()).throw(RuntimeError("the disk is on fire")))
        with pytest.raises(answer.RunFailed) as failure:
            answer.ask(small(tmp_path))
    assert failure.value.exit_code == 1
    result = stored(tmp_path)
    assert (result["state"], result["error"]) == ("FAILED", "RuntimeError: the disk is on fire")
    log = (folder_of(tmp_path, result) / "run.log").read_text()
    assert "Traceback" in log
    assert answer.ask(small(tmp_path))["state"] == "FINISHED"


def test_a_listed_run_that_vanished_is_redone_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = small(tmp_path)
    folder = folder_of(tmp_path, first := answer.ask(cfg))
    tables.load(tmp_path)
    shutil.rmtree(folder)
    capsys.readouterr()
    assert answer.ask(cfg)["trained"] == first["trained"]
    said = f"was FINISHED when it was last listed, and is redone: {folder / 'result.json'}: not there\n"
    assert capsys.readouterr().out.count(said) == 1


def test_a_diverging_run_is_recorded_as_diverged(tmp_path: Path) -> None:
    with pytest.raises(answer.RunFailed) as failure:
        answer.ask(small(tmp_path, dpo_learning_rate=1e30, dpo_max_grad_norm=0.0))
    assert failure.value.state == "DIVERGED"
    assert "not finite" in stored(tmp_path)["error"] or "is nan" in stored(tmp_path)["error"]


def test_sigterm_leaves_a_preempted_run_and_exits_with_143(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for_history(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143, process.stdout.read() if process.stdout else ""
    assert stored(tmp_path)["state"] == "PREEMPTED"


@pytest.mark.slow
def test_a_killed_run_holds_no_lock_and_is_never_finished(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for_history(tmp_path, process)
    process.kill()
    process.wait()
    assert not list((tmp_path / "runs").glob("*/result.json"))
    again = start(tmp_path)
    assert again.wait(120) == 0, again.stdout.read() if again.stdout else ""
    assert stored(tmp_path)["state"] == "FINISHED"


def test_a_full_disk_never_leaves_a_finished_run(tmp_path: Path) -> None:
    """No file may grow beyond 64 KiB: the adapter cannot be written."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536));"
        "from factdpo.commands.main import main; main()"
    )
    arguments = ["track=none", f"out={tmp_path}", "split.train=8", "split.test=8", "dpo.epochs=null", "dpo.max_steps=2"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert stored(tmp_path)["state"] == "FAILED"


def test_the_answer_of_a_finished_run_needs_no_torch(tmp_path: Path) -> None:
    answer.ask(small(tmp_path))
    cfg = tmp_path / "cfg.json"
    cfg.write_text(json.dumps(to_dict(validate(small(tmp_path)))))
    script = (
        "import json, sys; from pathlib import Path; from factdpo.runs.answer import ask;"
        "from factdpo.config.validate import from_dict;"
        f"result = ask(from_dict(json.loads(Path({str(cfg)!r}).read_text())));"
        "assert result['state'] == 'FINISHED'; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_place_that_cannot_be_written_is_refused_by_name_and_a_damaged_folder_is_done_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"out: .*file/runs cannot be written"):
        answer.ask(small(tmp_path / "file"))
    cfg = validate(small(tmp_path))
    folder = tmp_path / "runs" / f"{identity.slug(cfg)}-{run_id(cfg)}"
    folder.mkdir(parents=True)
    (folder / "asked.json").write_text("{")
    assert answer.ask(cfg)["state"] == "FINISHED"
    assert f"run again: {folder / 'asked.json'}: not JSON" in capsys.readouterr().out


def test_a_folder_that_holds_another_run_is_refused_by_name(tmp_path: Path) -> None:
    result = answer.ask(small(tmp_path))
    folder = folder_of(tmp_path, result)
    asked = json.loads((folder / "asked.json").read_text())
    asked["config"]["dpo"]["beta"] = 0.5
    (folder / "asked.json").write_text(json.dumps(asked))
    with pytest.raises(ConfigError, match=re.escape(folder.name)):
        answer.ask(small(tmp_path))


def test_eval_of_an_unfinished_or_changed_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the folder of a finished run"):
        eval.main([str(tmp_path)])
    table = tmp_path / "characters.csv"
    table.write_text("name,side\n" + "".join(f"Person {i},{i % 2}\n" for i in range(9)))
    cfg = small(tmp_path, data_path=str(table))
    folder = folder_of(tmp_path, answer.ask(cfg))
    os.utime(table)
    table.write_text(table.read_text() + "Someone Else,1\n")
    with pytest.raises(ConfigError, match="data changed since the run"):
        eval.main([str(folder)])
