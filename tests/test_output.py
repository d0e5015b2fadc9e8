"""Writing to stdout and stderr: it never raises, whatever is behind them."""

import os
import subprocess
import sys

import pytest

GUARDED = "import sys; from factdpo import output; output.guard(); "


def guarded(code: str, stdout: int | str = subprocess.PIPE, **env: str) -> "subprocess.CompletedProcess[bytes]":
    """What came of code that runs behind a guard; `stdout` may be what a shell makes of it, as in `> /dev/full`."""
    command = [sys.executable, "-c", GUARDED + code]
    if isinstance(stdout, str):
        command, stdout = ["sh", "-c", f'"$@" {stdout}', "sh", *command], subprocess.PIPE
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **env}, timeout=60)


@pytest.mark.parametrize(
    "way", ["print('x' * 9999)", "sys.stdout.write('x' * 9999)", "console.print('x' * 9999, soft_wrap=True)"]
)
def test_a_closed_pipe_ends_nothing_and_is_no_error(way: str):
    ours, theirs = os.pipe()
    os.close(ours)
    code = f"from factdpo.console import console; {way}; {way}; sys.exit(3 if output.error() is None else 4)"
    done = guarded(code, theirs)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (3, b"")


def test_a_full_disk_ends_nothing_and_is_told_once():
    done = guarded("print(1, flush=True); print(2, flush=True); sys.exit(output.error().errno)", "> /dev/full")
    assert done.returncode == 28  # ENOSPC
    assert done.stderr.splitlines() == [
        b"factdpo: stdout cannot be written (No space left on device); nothing more is shown there"
    ]


@pytest.mark.parametrize("redirection", ["> /dev/full 2>&1", ">&- 2>&-", "2> /dev/full"])
def test_whatever_is_wrong_with_both_streams_the_rest_of_the_program_runs(redirection: str):
    code = "import logging; print('there'); print('here', file=sys.stderr, flush=True); logging.warning('w'); " \
        "logging.getLogger().handlers[0].flush(); output.guard(); sys.stdout.isatty(); sys.exit(3)"  # fmt: skip
    assert guarded(code, redirection).returncode == 3


def test_a_pipe_that_does_not_block_is_waited_for():
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    command = [sys.executable, "-c", GUARDED + "print('x' * 300_000)"]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        with open(ours, "rb") as read:
            assert len(read.read()) == 300_001
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", b"caf? ? ?\n"), ("cp1252", b"caf\xe9 \x95 ?\n"), ("ascii:ignore", b"caf  \n"), ("utf-8", None)],
)
def test_a_character_that_the_encoding_lacks_is_replaced(encoding: str, expected: bytes | None):
    text = "caf\u00e9 \u2022 \u2713"
    done = guarded(f"print({text!r})", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (expected or f"{text}\n".encode())


def test_a_name_that_is_no_text_is_printed():
    """A file's name of undecodable bytes, as Python hands it on."""
    done = guarded("print('caf\\udce9')", PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stdout) == (0, b"caf?\n")


def test_a_stream_in_place_of_the_processs_own_is_left_alone(capsys: pytest.CaptureFixture[str]):
    from factdpo import output

    theirs = sys.stdout
    output.guard()
    print("as before")
    assert sys.stdout is theirs and output.error() is None and capsys.readouterr().out == "as before\n"
