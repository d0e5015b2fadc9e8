"""Sweeps of seconds in forked children that are killed, stopped or starved at a chosen file operation.

What a child does is what the command does (`runs.answer.answers`), but for the figures, which are one small file here.
An audit hook counts what it does to files below its `out`: opening, renaming, removing, making folders, syncing.
"""

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from factdpo.config.schema import Config, EngineName
from factdpo.evaluation import belief_graph
from factdpo.runs import answer
from factdpo.runs.attempt import Outcome
from factdpo.store.result import read_result
from tests.helpers.runs import WEIGHTS, new_session, small, spec_of

TIMES = float(os.environ.get("FAULTS_TIMES", "1"))  # how much longer than `make faults`
COUNTED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir")
CHILD_SECONDS = 300
UNCAUGHT = 70  # exit code of a child in which something was raised that a command would show as a bug


def sweep_of(out: Path, engine: str = "batched", runs: int = 2, **changes: Any) -> list[Config]:
    """The runs of a sweep `s`: 8 facts, 4 steps, a checkpoint at each."""
    cfgs = []
    for number in range(runs):
        cfg = small(out, **{"eval_every": "never", "eval_generations": 0, "dpo_max_steps": 4} | changes)
        cfg.split.train, cfg.split.test, cfg.dpo.beta, cfg.sweep = 8, 4, 0.1 * (number + 1), "s"
        cfg.engine.name, cfg.engine.device = EngineName[engine], "cpu"
        if engine == "batched":
            cfg.engine.save_every = 1
        cfgs.append(cfg)
    return cfgs


_places: dict[int, tuple[Config, Path]] = {}  # with the config, so that its number stays its own


def place(cfg: Config) -> Path:
    """The run's folder, which takes a look-up to know: once for each config, as none is changed here."""
    if id(cfg) not in _places:
        _places[id(cfg)] = cfg, spec_of(cfg).folder
    return _places[id(cfg)][1]


def do(cfgs: list[Config]) -> None:
    """All of these runs, as a multirun does them; raises if one is refused or FAILED."""
    belief_graph.write_graphs = _one_small_figure  # type: ignore[assignment]
    failed = None
    for _, outcome in answer.answers([spec_of(cfg) for cfg in cfgs], new_session()):
        if not isinstance(outcome, Outcome):
            raise outcome
        if outcome.exit_code and failed is None:
            failed = answer.RunFailed(outcome.state, str(outcome.result["error"]), outcome.exit_code)
    if failed is not None:  # when the others have ended
        raise failed


def _one_small_figure(items: Any, sides: Any, folder: Path) -> None:
    folder.mkdir()
    (folder / "graph.html").write_text("drawn")


class Ended(NamedTuple):
    code: int  # exit code; -9 after SIGKILL
    operations: int  # on files below `out`
    said: str


def in_child(out: Path, work: Callable[[], None], at: int = 0, strike: Callable[[], object] | None = None) -> Ended:
    """Do some work in a fork of this process, in which `strike` is called at the `at`-th operation below `out`."""
    counter, log = out.parent / f"{out.name}.operations", out.parent / f"{out.name}.said"
    pid = os.fork()
    if pid == 0:
        code = UNCAUGHT
        with suppress(BaseException):
            code = _work(out, work, at, strike, counter, log)
        os._exit(code)
    code = os.waitstatus_to_exitcode(_wait(pid))
    operations = int(counter.read_text()) if counter.exists() and code >= 0 else 0
    return Ended(code, operations, log.read_text(errors="replace"))


def _work(
    out: Path, work: Callable[[], None], at: int, strike: Callable[[], object] | None, counter: Path, log: Path
) -> int:
    os.setpgid(0, 0)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    done, fsync, place = [0], os.fsync, str(out)

    def count() -> None:
        done[0] += 1
        if done[0] == at and strike is not None:
            strike()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in COUNTED and str(arguments[0]).startswith(place):
            count()

    def counted_fsync(file: Any) -> None:
        count()
        fsync(file)

    sys.addaudithook(hook)
    os.fsync = counted_fsync
    try:
        work()
        return 0
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        return int(str(end.code))
    except (answer.RunFailed, ValueError) as error:  # of a run, or a ConfigError: what a command says in a line
        print(f"factdpo: {error}")
        return 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return UNCAUGHT
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        counter.write_text(str(done[0]))
        sys.stdout.flush()


def _wait(pid: int) -> int:
    end = time.monotonic() + CHILD_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"it stood still for {CHILD_SECONDS} s")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def limited(bytes: int, work: Callable[[], None]) -> None:
    """Some work in which no file can grow beyond so many bytes: as a disk that is full, EFBIG for ENOSPC."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))
    work()


# ----------------------------------------------------------------------------------------------------- what is promised


def finished(cfgs: list[Config]) -> dict[str, tuple[int, int]]:
    """Run -> time and inode of its record, of those that are FINISHED and prove it."""
    stamps = {}
    for cfg in cfgs:
        folder = place(cfg)
        stored = read_result(folder)
        if stored.result is not None and stored.result["state"] == "FINISHED":
            status = (folder / "result.json").stat()
            stamps[folder.name] = status.st_mtime_ns, status.st_ino
    return stamps


def falsely_finished(cfgs: list[Config]) -> list[str]:
    """Runs whose record says FINISHED and does not prove it; a damaged record is none."""
    wrong = []
    for cfg in cfgs:
        folder = place(cfg)
        with suppress(OSError, ValueError, KeyError, TypeError):
            says = json.loads((folder / "result.json").read_text())["state"] == "FINISHED"
            if says and read_result(folder).result is None:
                wrong.append(folder.name)
    return wrong


def numbers(cfgs: list[Config]) -> list[Any]:
    """What the runs found: weights to the bit, and every score."""
    found = []
    for cfg in cfgs:
        folder = place(cfg)
        stored = read_result(folder)
        assert stored.result is not None, stored.reason
        scores = {key: stored.result[key] for key in ("state", "base", "trained", "baselines", "across")}
        found.append((stored.result["files"][WEIGHTS], scores))
    return found


def leftovers(out: Path) -> list[str]:
    """What no command needs: checkpoints of trainings that are done, and half-written entries of the cache."""
    return sorted(path.name for path in [*(out / "cache/batches").glob("*"), *(out / "cache").glob("*/.*.part")])


def warmed(out: Path, cfgs: list[Config], peace: Path) -> list[Config]:
    """An empty `out` that knows what the base computes and the models say, which takes longest to ask."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "cache").mkdir(parents=True)
    for kind in ("verdicts", "texts"):
        shutil.copytree(peace / "cache" / kind, out / "cache" / kind)
    return cfgs


def times(count: int) -> int:
    """How often a case is tried, as FAULTS_TIMES has it."""
    return max(1, round(count * TIMES))


def figure(what: str, tried: int, as_promised: int) -> None:
    """A line for the table of docs/reliability.md."""
    sys.__stdout__.write(f"\nFAULTS | {what} | {tried} | {as_promised} | {tried - as_promised}\n")  # type: ignore
