"""What a person reads, on a pseudo terminal: as much as fits on it, in colours unless they are not wanted."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from factdpo.store.result import write_result
from tests.helpers.stored import finished

COMMAND = "from factdpo.commands.main import main; import sys; sys.argv[1:] = {}; main()"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """27 runs with names that take two lines on 80 columns."""
    for number in range(27):
        path = finished(tmp_path / "sweep", f"{number:02}", seed=number) / "result.json"
        name = f"beta=0.05 learning_rate=0.0003 seed={number:05}"
        write_result(path.parent, json.loads(path.read_text()) | {"name": name})
    return tmp_path / "sweep"


def on_a_terminal(rows: int, columns: int, *arguments: str, **env: str) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    started = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(list(arguments))],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**kept, "TERM": "xterm-256color", **env},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            said += (some := os.read(ours, 65536))
        except OSError:  # Linux's way to say that nobody holds the other end any more
            break
        if not some:
            break
    os.close(ours)
    assert started.wait(60) == 0, said
    return said.decode().replace("\r\n", "\n")


def test_as_many_runs_as_fit_on_the_screen_are_shown(sweep: Path):
    plain = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(24, 80, "status", str(sweep), "--once"))
    lines = plain.splitlines()
    assert 20 <= len(lines) <= 24 and max(map(len, lines)) <= 80
    shown = plain.count("FINISHED  beta")
    assert shown >= 7 and f"and {27 - shown} more: {27 - shown} FINISHED" in plain


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_left_out_where_they_are_not_wanted(sweep: Path, env: dict[str, str], coloured: bool):
    said = on_a_terminal(24, 80, "status", str(sweep), "--once", **env)
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", said)) == coloured  # an ink; bold is none


def test_what_is_not_a_terminal_gets_every_word_and_no_escape(sweep: Path):
    for arguments in (["status", str(sweep), "--all"], ["results", str(sweep)]):
        command = [sys.executable, "-c", COMMAND.format(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr
        assert "…" not in done.stdout
    assert done.stdout.startswith("27 runs")


def test_a_table_that_the_disk_has_no_room_for_is_an_error(sweep: Path):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-c", COMMAND.format(["status", str(sweep), "--all"])]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == "factdpo: stdout cannot be written (No space left on device); nothing more is shown there\n"


# ------------------------------------------------------------------------------ what becomes of it while runs train

SMALL = ["track=none", "split.train=8", "split.test=8", "eval.every=never", "eval.generations=0"]


def states(out: Path) -> list[str]:
    return [json.loads(path.read_text())["state"] for path in sorted(out.glob("*/*/**/result.json"))]


@pytest.mark.slow
def test_a_sweep_whose_reader_has_gone_finishes_on_a_disk_that_is_full_and_in_ascii(tmp_path: Path):
    """As `factdpo -m ... 2> /dev/full | head -1`."""
    command = [sys.executable, "-m", "factdpo", "-m", f"out={tmp_path}", *SMALL, "dpo.epochs=1", "seed=0,1"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=full, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == b"seed: 2 runs: 2 to do\n"
    process.stdout.close()
    assert process.wait(300) == 0
    assert states(tmp_path) == ["FINISHED"] * 2


def trained_on_a_terminal(out: Path, *overrides: str, controlled: bool) -> "subprocess.Popen[bytes]":
    """A run whose terminal is closed while it trains; it is told so (SIGHUP) where the terminal controls it."""
    ours, theirs = pty.openpty()

    def take() -> None:
        if controlled:
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-m", "factdpo", f"out={out}", *SMALL, *overrides]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=take,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while not any(path.stat().st_size for path in out.glob("runs/*/history.jsonl")):
        assert process.poll() is None, said
        if select.select([ours], [], [], 0.01)[0]:  # what nobody reads would stop it
            said += os.read(ours, 65536)
    os.close(ours)
    return process


def test_a_run_whose_terminal_is_closed_leaves_a_checkpoint_and_exits_with_129(tmp_path: Path):
    process = trained_on_a_terminal(tmp_path, "dpo.epochs=3000", controlled=True)
    assert process.wait(300) == 129
    (path,) = tmp_path.glob("runs/*/result.json")
    result = json.loads(path.read_text())
    assert result["state"] == "PREEMPTED"
    assert result["error"].startswith("ended by SIGHUP (the terminal was closed); ")
    assert list(tmp_path.glob("cache/batches/*/[0-9]*/state.json"))


@pytest.mark.slow
def test_a_run_that_its_terminal_does_not_control_finishes_when_that_is_closed(tmp_path: Path):
    process = trained_on_a_terminal(tmp_path, "dpo.epochs=60", controlled=False)
    assert process.wait(300) == 0
    assert states(tmp_path) == ["FINISHED"]
