"""Stages that take long show themselves, in the terminal and elsewhere."""

import itertools
import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from factdpo import console

NESTED = """
import time
from factdpo import console
from factdpo.runs.progress_bars import Bar
console.SILENT_SECONDS = 0.1
with Bar(True) as bar:
    bar.run("", 7)({"step": 3, "loss": 0.5, "rewards/accuracies": 1.0})
    with console.stage("scoring", 10) as advance:
        advance(4)
        time.sleep(0.6)
    time.sleep(0.3)
print("done")
"""


def test_a_short_stage_says_nothing(capsys: pytest.CaptureFixture[str]):
    with console.stage("scoring", 2) as advance:
        advance(1)
        advance(1)
    assert capsys.readouterr().out == ""


def test_a_long_stage_is_a_line_while_it_lasts_and_one_at_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(console, "SILENT_SECONDS", 0.01)
    with console.stage("loading a[b]"):
        time.sleep(0.2)
        assert capsys.readouterr().out == "loading a[b] ...\n"
    assert capsys.readouterr().out == "loading a[b]: 0 s\n"


def test_a_stage_that_fails_says_nothing_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(console, "SILENT_SECONDS", 0.01)
    with pytest.raises(ZeroDivisionError), console.stage("loading"):
        time.sleep(0.2)
        raise ZeroDivisionError
    assert capsys.readouterr().out == "loading ...\n"


def test_on_a_terminal_a_stage_is_a_bar_below_that_of_the_training_and_goes_when_it_ends():
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    process = subprocess.Popen([sys.executable, "-c", NESTED], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    try:
        while some := os.read(ours, 65536):
            said += some
    except OSError:  # Linux's way to say that nobody holds the other end any more
        pass
    os.close(ours)
    assert process.wait(60) == 0, said
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode()).replace("\r", "\n")
    lines = [line.split() for line in plain.splitlines() if line.strip()]
    both = [(one[0], other[0]) for one, other in itertools.pairwise(lines)]
    assert ("training", "scoring") in both and "4/10" in plain
    assert lines[-2][0] == "training" and lines[-1] == ["done"]


def test_a_log_that_cannot_be_written_keeps_the_error_and_is_told_once(capsys: pytest.CaptureFixture[str]):
    file = console.LogFile(Path("/dev/full"))
    with console.logging_to([file], quiet=True):
        logging.getLogger("factdpo").info("one")
        logging.getLogger("factdpo").info("two")
    file.close()
    assert str(file.error) == "[Errno 28] No space left on device"
    assert capsys.readouterr().out == "warning: /dev/full: [Errno 28] No space left on device\n"


TITLE, CLIPBOARD, CLEAR = "\x1b]0;owned\x07", "\x1b]52;c;ZXZpbA==\x07", "\x1b[2J\x9b2J"


@pytest.mark.parametrize("evil", [TITLE, CLIPBOARD, CLEAR, "\r\x08\x7f", "\u202egnp.exe"], ids=range(5))
def test_no_text_reaches_the_terminal_with_control_characters(evil: str, capsys: pytest.CaptureFixture[str]):
    screen = console.SafeConsole(force_terminal=True, width=60)
    table = Table("a [red]heading[/]" + evil)
    table.add_row(Text(f"cell {evil}", "bold"))
    for shown in (Text(evil, "bold"), Panel(evil), table, evil):
        screen.print(shown)
    console.say(evil, "yellow")
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)  # colours are ours
    assert not console.CONTROL.search(said)
    assert "\\x" in said or "\\u202e" in said


def test_what_is_no_control_character_stays_as_it_is():
    text = "é 事実 🙂 a\tb\nc \\x1b"
    assert console.printable(text) == text
