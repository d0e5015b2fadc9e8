"""One training by TRL in several processes: each has a GPU, the whole base, and an equal share of every batch.

torch's DistributedDataParallel averages their gradients, as under `accelerate launch`. This process keeps the run: it
starts the others, and its history, scores and checks come from the first of them through a pipe.
"""

import gc
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from filelock import FileLock
from torch import distributed

from factdpo import console, signals
from factdpo.config.schema import Config
from factdpo.models.base import Base, load_base
from factdpo.models.devices import check_device
from factdpo.models.scoring import PairLogps
from factdpo.training import trl_engine
from factdpo.training.engine import Ended, Member, Trained
from factdpo.training.trl_trainers import PATIENCE_SECONDS

ASKED = ("record", "describe", "go_on")  # of a member: calls that only the process that keeps the run can answer
MEMBER = "member.pickle"
GRACE_SECONDS = 5.0  # once one of the processes has failed: for what the others have to say
WORDS = 2000  # characters of what a lost process said


class _Scratch:
    """A folder for as long as somebody wants it, where `factdpo clean --cache` finds what a kill left of it."""

    def __init__(self, cfg: Config):
        home = Path(cfg.out) / "cache" / "shares"
        home.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=home)
        self.path = Path(self._folder.name)
        self._lock = FileLock(self.path / "lock")
        self._lock.acquire()


@dataclass
class _Saved:
    """Weights that the first process saved."""

    scratch: _Scratch
    kind: str

    def save(self, folder: Path) -> None:
        copytree(self.scratch.path / self.kind, folder)


def fit(base: Base, members: list[Member]) -> Generator[Ended, None, None]:
    """Train one member in engine.processes processes; see `trl_engine.fit_by`."""
    yield from trl_engine.fit_by(_train, base, members)


def _train(base: Base, member: Member) -> Trained:
    """What ends one process ends the training. Every batch must have equal shares, which a look-up of a run checks.

    The base's memory is given up: each of the processes loads its own.
    """
    cfg, device = member.cfg, base.device.type
    check_device(cfg.engine)
    del base.model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    scratch = _Scratch(cfg)
    portable = [field.name for field in fields(member) if field.name not in (*ASKED, "start")]
    given = {name: getattr(member, name) for name in portable}
    (scratch.path / MEMBER).write_bytes(pickle.dumps((device, given)))
    with _started(cfg.engine.processes, scratch.path) as lines, signals.released():
        facts, probe, kind = _attend(member, lines, scratch.path)
    return Trained(_Saved(scratch, kind), facts, PairLogps(**probe), kind)


# -------------------------------------------------------------------------------------- the process that keeps the run


@contextmanager
def _started(count: int, scratch: Path) -> Iterator[list[Connection]]:
    """The pipes to so many processes, which end with the context."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]
    together = {
        "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": store.host, "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True, "OMP_NUM_THREADS": max(1, torch.get_num_threads() // count),
        "TMPDIR": scratch,
    }  # fmt: skip
    lines: list[Connection] = []
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            ours, theirs = Pipe()
            place = together | {"RANK": rank, "LOCAL_RANK": rank}
            with open(_log(scratch, rank), "wb") as log, theirs:  # closed here, the pipe ends with the process
                what = [str(scratch), str(os.getpid()), str(theirs.fileno())]
                processes.append(subprocess.Popen(
                    [sys.executable, "-m", "factdpo.training.trl_processes", *what],
                    env=os.environ | {name: str(value) for name, value in place.items()}, pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,  # Ctrl-C on the terminal is for the command
                ))  # fmt: skip
            lines.append(ours)
        yield lines
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for line in lines:
            line.close()


def _attend(member: Member, lines: list[Connection], scratch: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Answer what the processes ask until the first has trained; raises what ended any of them, or an answer.

    One that is killed ends the others, too: then it is what is told.
    """
    ranks = {line: rank for rank, line in enumerate(lines)}
    failed: list[Exception] = []
    lost: list[Exception] = []
    last = float("inf")
    while ranks and (ready := wait(list(ranks), timeout=max(0.0, last - time.monotonic()) if failed + lost else None)):
        for line in ready:
            assert isinstance(line, Connection)
            try:
                what, *given = pickle.loads(line.recv_bytes())
            except (EOFError, ConnectionResetError):
                lost.append(_lost(len(lines), ranks.pop(line), scratch))
            else:
                if what == "failed":
                    failed += given
                elif what != "trained":
                    line.send_bytes(pickle.dumps(getattr(member, what)(*given)))
                elif ranks[line] == 0:
                    return given[0]
                if what in ("failed", "trained"):
                    del ranks[line]
        if failed + lost:
            last = min(last, time.monotonic() + GRACE_SECONDS)
    raise (lost + failed)[0]


def _lost(count: int, rank: int, scratch: Path) -> Exception:
    said = _log(scratch, rank).read_text(encoding="utf-8", errors="replace").strip()[-WORDS:]
    return RuntimeError(
        f"process {rank + 1} of engine.processes={count} is gone (killed, or out of memory)"
        + (f"; its last words: {said}" if said else "")
    )


def _log(scratch: Path, rank: int) -> Path:
    return scratch / f"process{rank}.log"


# ------------------------------------------------------------------------------------------------ one of the processes


def main(scratch: Path, line: Connection) -> None:
    """Train as one of the processes, and say what came of it."""
    console.quiet_libraries()
    try:
        answer: tuple[Any, ...] = ("trained", _trained(int(os.environ["RANK"]), scratch, line))
    except Exception as error:
        traceback.print_exc()
        answer = ("failed", _portable(error))
    line.send_bytes(pickle.dumps(answer))


def _trained(rank: int, scratch: Path, line: Connection) -> tuple[dict[str, Any], dict[str, Any], str] | None:
    """What the first process hands over: how the training went, its probe, and what it saved."""
    kind, given = pickle.loads((scratch / MEMBER).read_bytes())

    def asking(what: str) -> Callable[..., Any]:
        def ask(*given: Any) -> Any:
            line.send_bytes(pickle.dumps((what, *given)))
            return pickle.loads(line.recv_bytes())

        return ask if rank == 0 else lambda *_: None

    calls: dict[str, Any] = {what: asking(what) for what in ASKED}
    member = Member(**given, **calls)
    if kind == "cpu":  # where the Trainer does not pass its ddp_timeout on
        distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE_SECONDS))
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    base = load_base(member.cfg.model, device, Path(member.cfg.out) / "cache")
    trained = trl_engine.train(base, member)
    if rank != 0:
        return None
    trained.weights.save(scratch / trained.kind)
    return trained.facts, vars(trained.probe), trained.kind


def _portable(error: Exception) -> Exception:
    """The error with where it was raised, as a note: the process that keeps the run logs it."""
    where = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(where)
    return copy


if __name__ == "__main__":
    signals.end_with(int(sys.argv[2]), signal.SIGKILL)
    main(Path(sys.argv[1]), Connection(int(sys.argv[3])))
