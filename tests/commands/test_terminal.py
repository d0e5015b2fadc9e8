"""What a person reads, on a pseudo terminal: as much as fits on it, in colours unless they are not wanted."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.helpers.stored import finished

COMMAND = "from factdpo.commands.main import main; import sys; sys.argv[1:] = {}; main()"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """27 runs with names that take two lines on 80 columns."""
    for number in range(27):
        path = finished(tmp_path / "sweep", f"{number:02}", seed=number) / "result.json"
        path.write_text(
            path.read_text().replace(f"run {number:02}", f"beta=0.05 learning_rate=0.0003 seed={number:05}")
        )
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
