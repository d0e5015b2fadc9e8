"""The process that speaks with Ray for a command: a task for each share, on whichever node has room for it.

Ray runs none of them again by itself: a worker that is lost is the command's to replace (sweep/parallel.py).
"""

import signal
import sys
import threading
from pathlib import Path

from factdpo import signals
from factdpo.sweep.worker import GONE, SAID, STOPPED, work_on


def drive(address: str, cpus: int, gpus: float, shares: list[Path]) -> None:
    """Have the shares done, and mark each whose task has ended, however it did; SIGTERM cancels all tasks."""
    import ray  # pyright: ignore[reportMissingImports]  # an extra

    stop = threading.Event()
    ray.init(address=address, log_to_driver=False)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())  # only now: Ray has its own
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)(work_on)
    tasks = {task.remote(share, cpus): share for share in shares}
    left, cancelled = list(tasks), False
    while left:
        done, left = ray.wait(left, timeout=0.5)
        for each in done:
            (tasks[each] / GONE).touch()
        if stop.is_set() and not cancelled:
            cancelled = True
            for each in left:
                if not (tasks[each] / STOPPED).exists():  # the command is gone, and said nothing
                    (tasks[each] / STOPPED).write_text(str(int(signal.SIGTERM)))
                ray.cancel(each)  # to its worker it looks like Ctrl-C


def main(address: str, cpus: str, gpus: str, *shares: str) -> None:
    """Arguments as the command line has them; what goes wrong with Ray itself is said as if a worker did."""
    folders = [Path(share) for share in shares]
    try:
        drive(address, int(cpus), float(gpus), folders)
    except Exception as error:
        for folder in folders:
            with (folder / SAID).open("a", encoding="utf-8") as said:
                said.write(f"Ray at {address}: {type(error).__name__}: {error}\n")
        raise


if __name__ == "__main__":
    signals.end_with(int(sys.argv[1]))
    main(*sys.argv[2:])
