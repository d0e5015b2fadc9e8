"""A sweep that is killed or stopped at any of its operations on files comes to the same end, and redoes nothing."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from factdpo.commands import clean
from tests.helpers import faults

pytestmark = pytest.mark.slow

CASES = {"batched": faults.times(24), "trl": faults.times(4)}  # kills, spread evenly over all operations


def twice() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


STRIKES: dict[str, Callable[[], None]] = {
    "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGHUP": lambda: os.kill(os.getpid(), signal.SIGHUP),
    "SIGINT twice": twice,
}
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGINT twice": 130}


def problems_after(out: Path, engine: str, at: int, strike: Callable[[], None], codes: set[int], peace: Path) -> str:
    """What is not as promised when a sweep is struck at an operation and then asked for again; empty if all is."""
    cfgs = faults.warmed(out, faults.sweep_of(out, engine), peace)
    struck = faults.in_child(out, lambda: faults.do(cfgs), at, strike)
    if struck.code not in codes | {0}:
        return f"exit code {struck.code} at operation {at}: {struck.said[-500:]}"
    if wrong := faults.falsely_finished(cfgs):
        return f"falsely FINISHED after operation {at}: {wrong}"
    before, stored = faults.finished(cfgs), {*(out / "cache/adapters").glob("*/manifest.json")}
    times = {path: path.stat().st_mtime_ns for path in stored}
    again = faults.in_child(out, lambda: faults.do(cfgs))
    if again.code != 0:
        return f"asked again after operation {at}: exit code {again.code}: {again.said[-500:]}"
    after = faults.finished(cfgs)
    if len(after) != len(cfgs) or any(after[run] != stamp for run, stamp in before.items()):
        return f"lost or done twice after operation {at}: {before} {after}"
    if any(path.stat().st_mtime_ns != stamp for path, stamp in times.items()):
        return f"trained twice after operation {at}"
    if faults.numbers(cfgs) != faults.numbers(faults.sweep_of(peace, engine)):
        return f"other numbers after operation {at}"
    known = {target.folder.name for target in clean.leftovers(out, time.time(), abandoned=False)}
    left = [name for name in faults.leftovers(out) if not (len(before) == len(cfgs) and name in known)]
    return f"left after operation {at}: {left}" if left else ""


@pytest.mark.parametrize("engine", ["batched", "trl"])
def test_a_kill_at_every_kth_operation_loses_nothing(engine: str, tmp_path: Path, peace: Path) -> None:
    out = tmp_path / "outputs"
    cfgs = faults.warmed(out, faults.sweep_of(out, engine), peace)
    whole = faults.in_child(out, lambda: faults.do(cfgs))
    assert whole.code == 0, whole.said
    every = max(1, whole.operations // CASES[engine])
    points = range(1, whole.operations + 1, every)
    wrong = [text for at in points if (text := problems_after(out, engine, at, faults.kill, {-9}, peace))]
    what = f"SIGKILL at every {every}th of {whole.operations} file operations, engine={engine}"
    faults.figure(what, len(points), len(points) - len(wrong))
    assert wrong == []


@pytest.mark.parametrize("name", STRIKES)
def test_a_signal_at_any_operation_ends_the_sweep_with_its_code(name: str, tmp_path: Path, peace: Path) -> None:
    out, tries = tmp_path / "outputs", faults.times(5)
    cfgs = faults.warmed(out, faults.sweep_of(out), peace)
    whole = faults.in_child(out, lambda: faults.do(cfgs))
    rng = random.Random(name)
    points = sorted(rng.randrange(10, whole.operations) for _ in range(tries))
    codes = {CODES[name]}
    wrong = [text for at in points if (text := problems_after(out, "batched", at, STRIKES[name], codes, peace))]
    faults.figure(f"{name} at {tries} of {whole.operations} file operations", tries, tries - len(wrong))
    assert wrong == []


def test_kills_at_random_moments_lose_nothing(tmp_path: Path, peace: Path) -> None:
    """By the clock, and not between two operations: also in the middle of a computation or a write."""
    rng, tries, wrong = random.Random(0), faults.times(25), []
    out = tmp_path / "outputs"
    for number in range(tries):
        cfgs = faults.warmed(out, faults.sweep_of(out), peace)
        pid, moment = os.fork(), rng.uniform(0.05, 4.0)
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            try:
                faults.do(cfgs)
            finally:
                os._exit(0)
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        false, before = faults.falsely_finished(cfgs), faults.finished(cfgs)
        again = faults.in_child(out, lambda cfgs=cfgs: faults.do(cfgs))
        after = faults.finished(cfgs)
        same = again.code == 0 and faults.numbers(cfgs) == faults.numbers(faults.sweep_of(peace))
        if false or not same or any(after.get(run) != stamp for run, stamp in before.items()):
            wrong.append(f"{number}: killed after {moment:.2f} s: {false} {again}")
    faults.figure("SIGKILL at random moments, engine=batched", tries, tries - len(wrong))
    assert wrong == []


@pytest.mark.parametrize("commands", [2, 4])
def test_commands_that_start_at_once_share_the_runs(commands: int, tmp_path: Path, peace: Path) -> None:
    tries, wrong = faults.times(10), []
    for number in range(tries):
        out = tmp_path / f"outputs{number}"
        cfgs = faults.warmed(out, faults.sweep_of(out, runs=2), peace)
        children = []
        for order in range(commands):
            pid = os.fork()
            if pid == 0:
                log = os.open(tmp_path / f"said{order}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(log, 1)
                os.dup2(log, 2)
                code = faults.UNCAUGHT
                try:
                    faults.do(cfgs[:: 1 if order % 2 else -1])
                    code = 0
                finally:
                    os._exit(code)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        said = "".join((tmp_path / f"said{order}").read_text() for order in range(commands))
        done = sum(line.startswith("FINISHED") for line in said.splitlines())
        if any(codes) or done != len(cfgs) or faults.numbers(cfgs) != faults.numbers(faults.sweep_of(peace)):
            wrong.append(f"{codes}, {done} runs done: {said[-1000:]}")
        shutil.rmtree(out)
    faults.figure(f"{commands} commands at once on one sweep", tries, tries - len(wrong))
    assert wrong == []
