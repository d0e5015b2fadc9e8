"""The dashboard's server, asked in this process."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from starlette.testclient import TestClient

from factdpo.commands import dashboard
from factdpo.config.schema import ConfigError
from factdpo.dashboard import machine, server, watch
from factdpo.store.run_lock import lock_file
from tests.helpers.stored import TRACEBACK, finished, opened, planned, store


def sweep_in(root: Path) -> Path:
    """sweeps/beta: a run of each kind, and one that is to do."""
    home = root / "sweeps" / "beta"
    finished(home, "aaa", dpo_beta=0.1)
    failed = store(home, "bbb", state="FAILED", dpo_beta=0.5)
    (failed / "run.log").write_text(TRACEBACK)
    opened(home, "ccc", 0.7, 0.6, 0.5, 0.4)
    opened(home, "ddd", 0.7)
    planned(home, "run-eee")
    return home


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


@pytest.fixture
def asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(watch, "FRESH_SECONDS", 0.0)
    return TestClient(server.make_app(root, []), base_url="http://localhost:8765")


def test_the_overview_has_sweeps_and_single_runs_the_last_changed_first(root: Path, asked: TestClient):
    home = sweep_in(root)
    finished(root / "runs", "fff", seed=3)
    finished(root / "sweeps" / "older", "ggg", 0.75)
    planned(root / "sweeps" / "older", question="Was it so before?")
    for path in [root / "sweeps" / "older", *(root / "sweeps" / "older").rglob("*")]:
        os.utime(path, (1e9, 1e9))
    with FileLock(lock_file(home / "run-ccc")):
        answer = asked.get("/api/overview").json()
    assert [sweep["name"] for sweep in answer["sweeps"]] == ["sweeps/beta", "sweeps/older"]
    newest, older = answer["sweeps"]
    assert newest["question"] == "Does it help?"
    assert newest["counts"] == {"FINISHED": 1, "running": 1, "FAILED": 1, "killed": 1, "to do": 1}
    assert newest["left_seconds"] > 0
    assert older["best"] == {
        "label": "label of run-ggg",
        "metric": "held-out facts",
        "mean": 0.375,
        "runs": 1,
        "final": True,
    }
    assert older["asked"] == ["test"]
    assert [(run["name"], run["state"]) for run in answer["runs"]] == [("runs/run-fff", "FINISHED")]


def test_a_running_run_has_its_progress_its_time_left_and_its_process(root: Path, asked: TestClient):
    home = sweep_in(root)
    with FileLock(lock_file(home / "run-ccc")):
        answer = asked.get("/api/sweep", params={"folder": "sweeps/beta"}).json()
    runs = {run["id"]: run for run in answer["runs"]}
    assert list(runs) == ["aaa", "bbb", "ccc", "ddd", "eee"]
    assert (runs["ccc"]["state"], runs["ccc"]["step"], runs["ccc"]["steps"], runs["ccc"]["loss"]) == (
        "running", 4, 20, 0.4,
    )  # fmt: skip
    assert runs["ccc"]["left_seconds"] == pytest.approx(8)  # 16 steps at 2 a second
    assert runs["bbb"]["error"] == "loss is nan at step 3"
    assert answer["running_done"] == 0.2
    (process,) = answer["machine"]["processes"]
    assert (process["pid"], process["runs"]) == (os.getpid(), 1)
    assert 0 < process["rss_gib"] < answer["machine"]["total_gib"]


def test_a_run_that_dies_is_said_to_be_killed_and_its_process_is_gone(root: Path, asked: TestClient):
    home = sweep_in(root)
    hold = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]): print(flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, lock_file(home / "run-ccc")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    before = asked.get("/api/sweep?folder=sweeps/beta").json()
    holder.kill()
    holder.wait()
    after = asked.get("/api/sweep?folder=sweeps/beta").json()
    assert (before["runs"][2]["state"], [one["pid"] for one in before["machine"]["processes"]]) == (
        "running", [holder.pid],
    )  # fmt: skip
    assert (after["runs"][2]["state"], after["machine"]["processes"]) == ("killed", [])


def test_curves_grow_with_the_history_and_forgive_a_line_that_is_being_written(root: Path, asked: TestClient):
    home = sweep_in(root)
    history = home / "run-ccc" / "history.jsonl"

    def losses() -> list[float | None]:
        curves = asked.get("/api/sweep?folder=sweeps/beta").json()["curves"]
        return next(curve for curve in curves if curve["id"] == "ccc")["loss"][1]

    assert losses() == [0.7, 0.6, 0.5, 0.4]
    with history.open("a") as file:
        file.write('{"step": 5, "loss": "nan", "time_seconds": 3.0}\n{"step": 6, "lo')
    assert losses() == [0.7, 0.6, 0.5, 0.4, None]
    run = asked.get("/api/sweep?folder=sweeps/beta").json()["runs"][2]
    assert (run["step"], run["loss"]) == (5, "nan")
    history.write_text("no history\n" * 2)
    assert [curve["id"] for curve in asked.get("/api/sweep?folder=sweeps/beta").json()["curves"]] == ["aaa", "ddd"]


def test_of_many_runs_the_curves_of_those_that_are_being_done_are_drawn_first(root: Path, asked: TestClient):
    home = root / "sweeps" / "many"
    for number in range(watch.DRAWN + 3):
        opened(home, f"{number:03}", 0.5)
    planned(home)
    with FileLock(lock_file(home / "run-016")):
        drawn = [curve["id"] for curve in asked.get("/api/sweep?folder=sweeps/many").json()["curves"]]
    assert len(drawn) == watch.DRAWN
    assert drawn[-1] == "016"
    assert drawn == sorted(drawn)


def test_the_log_of_a_run_that_failed_begins_where_it_failed(root: Path, asked: TestClient):
    sweep_in(root)
    answer = asked.get("/api/log?folder=sweeps/beta&run=bbb")
    assert answer.text == "\n".join(TRACEBACK.splitlines()[1:])
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert asked.get("/api/log?folder=sweeps/beta&run=ddd").text == "one line"
    assert "run.log: cannot be read" in asked.get("/api/log?folder=sweeps/beta&run=eee").text
    assert asked.get("/api/log?folder=sweeps/beta&run=zzz").status_code == 404


def test_the_report_is_made_anew_when_another_run_has_ended(root: Path, asked: TestClient):
    home = sweep_in(root)
    first = asked.get("/report?folder=sweeps/beta").text
    assert "1 of 5" in first
    assert asked.get("/report?folder=sweeps/beta").text == first
    stamp = asked.get("/api/sweep?folder=sweeps/beta").json()["results"]
    shutil.rmtree(home / "run-ddd")
    finished(home, "ddd", dpo_beta=0.1, seed=1)
    assert asked.get("/api/sweep?folder=sweeps/beta").json()["results"] != stamp
    assert "2 of 5" in asked.get("/report?folder=sweeps/beta").text


def test_a_run_or_a_sweep_alone_can_be_watched(root: Path):
    home = sweep_in(root)
    for folder, name, states in [
        (home, "beta", ["FINISHED", "FAILED", "killed", "killed", "to do"]),
        (home / "run-aaa", "run-aaa", ["FINISHED"]),
    ]:
        if folder.name == "run-aaa":  # only a folder that says that it is a run's is taken for one
            (folder / "asked.json").write_text('{"config": {}, "data": "", "model": "", "versions": {}}')
        asked = TestClient(server.make_app(folder, []), base_url="http://localhost:8765")
        runs = asked.get("/api/sweep", params={"folder": name}).json()["runs"]
        assert [run["state"] for run in runs] == states


def test_a_sweep_json_that_cannot_be_read_is_said_and_its_runs_are_shown(root: Path, asked: TestClient):
    home = sweep_in(root)
    (home / "sweep.json").write_text("{")
    (sweep,) = asked.get("/api/overview").json()["sweeps"]
    assert "sweep.json: not JSON" in sweep["problem"]
    assert sweep["total"] == 4


def test_nothing_yet_is_no_error_and_a_folder_that_went_away_is_one_that_is_said(root: Path, asked: TestClient):
    answer = asked.get("/api/overview").json()
    assert (answer["sweeps"], answer["runs"]) == ([], [])
    root.rmdir()
    gone = asked.get("/api/overview")
    assert gone.status_code == 503
    assert "cannot be read" in gone.text


@pytest.mark.parametrize("path", ["/", "/sweep?folder=sweeps/beta", "/api/overview", "/file/live.js", "/none"])
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8765", "127.0.0.1.nip.io", "", "10.0.0.1"])
def test_who_asks_under_another_name_is_refused(root: Path, asked: TestClient, path: str, host: str):
    sweep_in(root)
    assert asked.get(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1:8765", "[::1]:8765", "LOCALHOST:9000"])
def test_this_machine_is_answered(asked: TestClient, host: str):
    answer = asked.get("/", headers={"Host": host, "Origin": "http://evil.example"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/api/overview", "/api/sweep?folder=sweeps/beta", "/report?folder=sweeps/beta"])
def test_nothing_can_be_changed(root: Path, asked: TestClient, method: str, path: str):
    sweep_in(root)
    assert asked.request(method, path).status_code == 405


@pytest.mark.parametrize("page", ["/sweep", "/report", "/api/sweep", "/api/log"])
@pytest.mark.parametrize("name", ["../../etc", "/etc", "sweeps/../sweeps/beta", "sweeps", "sweeps/beta/run-aaa", ""])
def test_what_is_not_in_the_listing_is_not_there(root: Path, asked: TestClient, page: str, name: str):
    sweep_in(root)
    assert asked.get(page, params={"folder": name, "run": "aaa"}).status_code == 404


@pytest.mark.parametrize("path", ["/file/..%2F..%2Fpyproject.toml", "/file/server.py", "/sweep/../../etc/passwd"])
def test_only_the_files_of_the_pages_are_served(asked: TestClient, path: str):
    assert asked.get(path).status_code == 404


def test_the_files_of_the_pages_are_served(asked: TestClient):
    for page in ("overview.html", "sweep.html"):
        html = (server.HERE / page).read_text(encoding="utf-8")
        assert "<script>" not in html
        for name in [part.split('"')[0] for part in html.split('"/file/')[1:]]:
            assert asked.get(f"/file/{name}").status_code == 200


def test_gpus_are_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 80GB, 20480, 81920, 50'\necho 'NVIDIA GB10, [N/A], [N/A], 0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.gpus() == [
        {"name": "NVIDIA H100, 80GB", "used_gib": 20.0, "total_gib": 80.0, "busy": 0.5},
        {"name": "NVIDIA GB10", "used_gib": None, "total_gib": None, "busy": 0.0},
    ]
    program.write_text("#!/bin/sh\necho 'the driver is not loaded'\nexit 9\n")
    assert machine.gpus() == []


def test_it_listens_on_this_machine_alone_and_takes_the_next_port_that_is_free(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(dashboard, "PORT", port)
        with dashboard.listen(None) as listening:
            host, found = listening.getsockname()
            assert host == "127.0.0.1"
            assert port < found < port + dashboard.TRIED
        with pytest.raises(
            ConfigError, match=f"--port {port}: cannot be used \\(Address already in use\\); give another with --port"
        ):
            dashboard.listen(port)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such folder"):
        dashboard.main([str(tmp_path / "none")])


def test_ctrl_c_ends_it_quietly(root: Path):
    import signal

    line = [sys.executable, "-m", "factdpo", "dashboard", str(root)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        while not said.startswith("http://127.0.0.1:"):  # the usual port may be taken
            said = process.stdout.readline()
        port = int(re.match(r"http://127.0.0.1:(\d+)", said)[1])  # type: ignore[index]
        upgrade = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        for sent in (b"\x16\x03\x01 no HTTP\r\n\r\n", upgrade, b"GET / HTTP/9\r\n\r\n", b"GET"):
            with socket.create_connection(("127.0.0.1", port)) as visitor:
                visitor.sendall(sent)
                if sent != b"GET":
                    assert visitor.recv(100)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_the_report_before_any_run_has_ended_says_so(root: Path, asked: TestClient):
    opened(root / "sweeps" / "beta", "ccc", 0.7)
    planned(root / "sweeps" / "beta")
    assert "No run has finished" in asked.get("/report?folder=sweeps/beta").text
