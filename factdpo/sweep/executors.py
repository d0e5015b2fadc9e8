"""Where the workers of a command run: processes of this machine, jobs of Slurm, tasks of Ray.

Each executor starts a worker per share, knows which are gone, and passes on the signal that ends them all. What came of
a share is read from its folder (sweep/worker.py), and not from what started it.
"""

import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import psutil

from factdpo.config.schema import Cluster, ConfigError, EngineConfig, Executor, RayConfig, SubmititConfig
from factdpo.console import plural
from factdpo.sweep.slurm import Queue
from factdpo.sweep.worker import GONE, STOPPED, work_on

EXTRAS = {Executor.submitit: "'submitit>=1.5,<2'", Executor.ray: "'ray[default]>=2.52,<3'"}


def check(engine: EngineConfig) -> None:
    """Raises ConfigError if the executor cannot be used here, or many processes were started for one command."""
    name, processes = engine.executor, os.environ.get("WORLD_SIZE", "1")
    if processes != "1":  # all of them would want the same run, and the Trainer of the first would wait for the others
        raise ConfigError(
            f"WORLD_SIZE={processes}: started by `accelerate launch` or `torchrun`; start factdpo by itself: "
            "engine.workers=N shares the runs of a sweep among N GPUs, engine.processes=N trains one run on N"
        )
    if name in EXTRAS and importlib.util.find_spec(name.name) is None:
        raise ConfigError(
            f"engine.executor={name.name}: {name.name} is not installed; pip install {EXTRAS[name]}, or "
            "engine.executor=local"
        )
    gpus = visible_gpus(engine)
    if name is Executor.local and 0 < len(gpus) < engine.workers:
        raise ConfigError(
            f"engine.workers={engine.workers}: a worker has a GPU of its own, and engine.device={engine.device} has "
            f"{plural(len(gpus), 'GPU')} here; give at most {len(gpus)}"
        )
    of_a_run = {
        Executor.local: len(gpus) if engine.workers == 1 else min(1, len(gpus)),
        Executor.submitit: engine.submitit.gpus,
        Executor.ray: math.ceil(engine.ray.gpus),
    }[name]
    if 0 < of_a_run < engine.processes:
        raise ConfigError(
            f"engine.processes={engine.processes}: each has a GPU of its own, and a run has {plural(of_a_run, 'GPU')} "
            f"with engine.executor={name.name} engine.workers={engine.workers}; give at most {of_a_run}"
        )
    if name is Executor.submitit and engine.submitit.cluster is Cluster.slurm and shutil.which("srun") is None:
        raise ConfigError(
            "engine.executor=submitit: no srun on this machine; submit from one of the cluster's, or try it out with "
            "engine.submitit.cluster=local"
        )


@runtime_checkable
class Workers(Protocol):
    """The workers of one command."""

    def start(self, shares: list[Path]) -> None:
        """Start a worker for each of these shares."""
        ...

    def is_gone(self, share: Path) -> bool:
        """Whether no process works on a share any more."""
        ...

    def stop(self, number: int) -> None:
        """End all workers as this signal ends a process, with a checkpoint."""
        ...

    def kill(self) -> None:
        """End all workers at once."""
        ...


def workers_of(engine: EngineConfig, count: int, folder: Path) -> Workers:
    """The executor that a config names, for so many workers; what it writes itself lies in `folder`."""
    if engine.executor is Executor.submitit:
        return SubmititWorkers(engine.submitit, folder)
    if engine.executor is Executor.ray:
        return RayWorkers(engine.ray, folder)
    return LocalWorkers(engine, count)


# --------------------------------------------------------------------------------------------------------- this machine


class LocalWorkers:
    """A process per worker, on cores of its own, or on a GPU of its own."""

    def __init__(self, engine: EngineConfig, count: int):
        cores = sorted(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else None
        self._places = places(cores, os.cpu_count() or 1, visible_gpus(engine), count)
        self._running: dict[Path, tuple[subprocess.Popen[bytes], int]] = {}  # and which of the places each has

    def start(self, shares: list[Path]) -> None:
        for share in shares:
            taken = {place for other, (_, place) in self._running.items() if not self.is_gone(other)}
            place = min(set(range(len(self._places))) - taken)
            cores, environment = self._places[place]
            command = [sys.executable, "-m", "factdpo.sweep.worker", str(share), str(os.getpid())]
            # In a session of its own: Ctrl-C on the terminal is for the command, which passes it on.
            process = subprocess.Popen(
                command, env=os.environ | environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
            self._running[share] = process, place
            if cores is not None:
                psutil.Process(process.pid).cpu_affinity(cores)

    def is_gone(self, share: Path) -> bool:
        return self._running[share][0].poll() is not None

    def stop(self, number: int) -> None:
        for process, _ in self._running.values():
            process.send_signal(number)

    def kill(self) -> None:
        for process, _ in self._running.values():
            process.kill()
            process.wait()


def places(
    cores: list[int] | None, cpus: int, gpus: list[str], count: int
) -> list[tuple[list[int] | None, dict[str, str]]]:
    """The cores and the environment of each of `count` workers: equal shares of the cores, and a GPU where there are.

    `cores` are those that this process may use; None, or fewer than workers: no worker is bound to any.
    """
    threads = max(1, (cpus if cores is None else len(cores)) // count)
    bound = cores is not None and len(cores) >= count
    found = []
    for worker in range(count):
        environment = {"OMP_NUM_THREADS": str(min(threads, int(os.environ.get("OMP_NUM_THREADS", threads))))}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[worker]
        mine = cores[worker * threads : (worker + 1) * threads] if bound and cores is not None else None
        found.append((mine, environment))
    return found


def visible_gpus(engine: EngineConfig) -> list[str]:
    """The NVIDIA GPUs that a run may use, as CUDA_VISIBLE_DEVICES names them; found without importing torch."""
    kind, _, number = engine.device.partition(":")
    if kind not in ("auto", "cuda"):
        return []
    installed = [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = installed if chosen is None or not installed else [name for name in chosen.split(",") if name.strip()]
    return gpus[int(number) : int(number) + 1] if number else gpus


# ---------------------------------------------------------------------------------------------------------------- Slurm


class SubmititWorkers:
    """A job per worker, those that start together as one array."""

    def __init__(self, cfg: SubmititConfig, folder: Path):
        self._local, self._task = cfg.cluster is Cluster.local, SlurmJob(cfg.cpus)
        self._executor = submitit_executor(cfg, folder)
        self._jobs: dict[Path, Any] = {}
        self._queue = Queue()

    def start(self, shares: list[Path]) -> None:
        self._jobs |= dict(zip(shares, self._executor.map_array(self._task, shares), strict=True))

    def is_gone(self, share: Path) -> bool:
        job = self._jobs[share]
        if self._local:
            return job.done()
        return job.paths.result_pickle.exists() or self._queue.has_left(job.job_id, self._all_ids())

    def _all_ids(self) -> list[str]:
        return [job.job_id for job in self._jobs.values()]

    def stop(self, number: int) -> None:
        for job in self._jobs.values():
            if not self._local:
                job.cancel(check=False)  # scancel: SIGTERM, and SIGKILL after the cluster's KillWait
            elif not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)

    def kill(self) -> None:
        for share, job in self._jobs.items():
            if not self.is_gone(share):
                job.cancel(check=False)


class SlurmJob:
    """What a job calls. Before Slurm ends it, it makes a checkpoint and is put back into the queue."""

    def __init__(self, cores: int):
        self.cores = cores

    def __call__(self, share: Path) -> int:
        warning = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
        requeue = signal.getsignal(warning)  # submitit's own: it submits the job anew, and ends the process
        warned = []

        def stop(number: int, _: Any) -> None:
            warned.append(number)
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(warning, stop)
        code = work_on(share, self.cores)
        if warned and code and callable(requeue):
            requeue(warning, None)
        return code

    def checkpoint(self, share: Path) -> Any:
        """What submitit submits anew: the same share, whose runs go on from what lies in `out`."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, share)


def submitit_executor(cfg: SubmititConfig, folder: Path) -> Any:
    """submitit's executor with the settings of a config, sbatch's options under its own names."""
    import submitit

    executor = submitit.AutoExecutor(folder, cluster=cfg.cluster.name, slurm_max_num_timeout=cfg.requeues)
    common: dict[str, Any] = {"name": "factdpo", "timeout_min": cfg.minutes, "cpus_per_task": cfg.cpus}
    common |= {"tasks_per_node": 1, "stderr_to_stdout": True}
    if cfg.gpus:
        common["gpus_per_node"] = cfg.gpus
    if cfg.memory_gib is not None:
        common["mem_gb"] = cfg.memory_gib
    slurm = {
        "partition": cfg.partition,
        "account": cfg.account,
        "qos": cfg.qos,
        "constraint": cfg.constraint,
        "signal_delay_s": cfg.signal_seconds,
        "array_parallelism": cfg.at_once or 10_000,
        "setup": cfg.setup or None,
        "additional_parameters": {"requeue": True},
    }
    executor.update_parameters(**common, **{f"slurm_{key}": value for key, value in slurm.items() if value is not None})
    return executor


# ------------------------------------------------------------------------------------------------------------------ Ray


class RayWorkers:
    """A task per worker, submitted by a process that speaks with Ray, so that what Ray prints stays out of sight."""

    def __init__(self, cfg: RayConfig, folder: Path):
        self._cfg, self._folder = cfg, folder
        self._drivers: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, shares: list[Path]) -> None:
        self._folder.mkdir(exist_ok=True)
        cfg = self._cfg
        what = [str(os.getpid()), cfg.address or "local", str(cfg.cpus), str(cfg.gpus), *map(str, shares)]
        with (self._folder / "ray.log").open("a") as log:
            driver = subprocess.Popen(
                [sys.executable, "-m", "factdpo.sweep.ray_driver", *what],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._drivers |= dict.fromkeys(shares, driver)

    def is_gone(self, share: Path) -> bool:
        return self._drivers[share].poll() is not None or (share / GONE).exists()

    def stop(self, number: int) -> None:
        for share in self._drivers:
            (share / STOPPED).write_text(str(number))
        for driver in set(self._drivers.values()):
            driver.terminate()

    def kill(self) -> None:
        for driver in set(self._drivers.values()):  # Ray ends the tasks of a driver that is gone
            driver.kill()
            driver.wait()
