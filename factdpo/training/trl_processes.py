"""One training by TRL in several processes: each has a GPU, the whole base, and an equal share of every batch.

torch's DistributedDataParallel averages their gradients, as under `accelerate launch`. This process keeps the run: it
starts the others, and its history, scores and checks come from the first of them through a pipe.
"""

import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from factdpo import console, signals
from factdpo.config.schema import Config, ConfigError, Quantization
from factdpo.models.base import Base, load_base
from factdpo.models.scoring import PairLogps
from factdpo.training import trl_engine
from factdpo.training.engine import Ended, Member, Trained

ASKED = ("record", "describe", "go_on")  # of a member: calls that only the process that keeps the run can answer
WORDS = 2000  # characters of what a lost process said


@dataclass
class _Saved:
    """Weights that the first process saved, for as long as somebody wants them."""

    scratch: tempfile.TemporaryDirectory[str]
    kind: str

    def save(self, folder: Path) -> None:
        shutil.copytree(Path(self.scratch.name) / self.kind, folder)


def fit(base: Base, members: list[Member]) -> Generator[Ended, None, None]:
    """Train one member in engine.processes processes; see `trl_engine.fit_by`."""
    yield from trl_engine.fit_by(_train, base, members)


def _train(base: Base, member: Member) -> Trained:
    """Train in engine.processes processes; the base's memory is given up, since each of them loads its own.

    What ends one of them ends the training. Every batch must have equal shares, which a look-up of a run checks.
    """
    cfg, device = member.cfg, base.device.type
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"engine.processes={cfg.engine.processes}: on {device} there is one; use engine.processes=1")
    if cfg.model.quantization is Quantization.none:
        base.model.to("meta")  # type: ignore[arg-type]
    if device == "cuda":
        torch.cuda.empty_cache()
    scratch = tempfile.TemporaryDirectory()
    with _started(cfg, Path(scratch.name)) as lines, signals.released():
        portable = [field.name for field in fields(member) if field.name not in (*ASKED, "start")]
        given = {name: getattr(member, name) for name in portable}
        for line in lines:
            line.send_bytes(pickle.dumps((device, given, scratch.name)))
        facts, probe, kind = _attend(member, lines, Path(scratch.name))
    return Trained(_Saved(scratch, kind), facts, PairLogps(**probe), kind)


# --------------------------------------------------------------------------------------- the process that keeps the run


@contextmanager
def _started(cfg: Config, scratch: Path) -> Iterator[list[Connection]]:
    """The pipes to the processes, which end with the context."""
    count = cfg.engine.processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {
        "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": max(1, torch.get_num_threads() // count),
    }  # fmt: skip
    lines: list[Connection] = []
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            ours, theirs = Pipe()
            place = together | {"RANK": rank, "LOCAL_RANK": rank}
            with open(_log(scratch, rank), "wb") as log, theirs:  # closed here, the pipe ends with the process
                processes.append(subprocess.Popen(
                    [sys.executable, "-m", "factdpo.training.trl_processes", str(theirs.fileno())],
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
    """Answer what the processes ask until the first has trained; raises what ended any of them, or an answer."""
    ranks = {line: rank for rank, line in enumerate(lines)}
    while True:
        for line in wait(list(ranks)):
            assert isinstance(line, Connection)
            try:
                what, *given = pickle.loads(line.recv_bytes())
            except (EOFError, ConnectionResetError):
                said = _log(scratch, ranks[line]).read_text(encoding="utf-8", errors="replace").strip()[-WORDS:]
                raise RuntimeError(
                    f"process {ranks[line] + 1} of engine.processes={len(lines)} is gone (killed, or out of memory)"
                    + (f"; its last words: {said}" if said else "")
                ) from None
            if what == "failed":
                raise given[0]
            if what == "trained":
                if ranks.pop(line) == 0:
                    return given[0]
            else:
                line.send_bytes(pickle.dumps(getattr(member, what)(*given)))


def _log(scratch: Path, rank: int) -> Path:
    return scratch / f"process{rank}.log"


# ------------------------------------------------------------------------------------------------- one of the processes


def main(line: Connection) -> None:
    """Train as one of the processes, and say what came of it."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    console.quiet_libraries()
    try:
        answer: tuple[Any, ...] = ("trained", _trained(int(os.environ["RANK"]), line))
    except BaseException as error:
        traceback.print_exc()
        answer = ("failed", _portable(error))
    line.send_bytes(pickle.dumps(answer))


def _trained(rank: int, line: Connection) -> tuple[dict[str, Any], dict[str, Any], str] | None:
    """What the first process hands over: how the training went, its probe, and what it saved."""
    kind, given, scratch = pickle.loads(line.recv_bytes())

    def asking(what: str) -> Callable[..., Any]:
        def ask(*given: Any) -> Any:
            line.send_bytes(pickle.dumps((what, *given)))
            return pickle.loads(line.recv_bytes())

        return ask if rank == 0 else lambda *_: None

    member = Member(**(given | {what: asking(what) for what in ASKED}))
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    base = load_base(member.cfg.model, device, Path(member.cfg.out) / "cache")
    trained = trl_engine.train(base, member)
    if rank != 0:
        return None
    trained.weights.save(Path(scratch) / trained.kind)
    return trained.facts, vars(trained.probe), trained.kind


def _end_with(parent: int) -> None:
    """End this process once the one that started it is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _portable(error: BaseException) -> Exception:
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    return copy if isinstance(copy, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
