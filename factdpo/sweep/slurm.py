"""Which jobs have left Slurm's queue: asked of `squeue`, which every cluster has; `sacct` needs accounting."""

import subprocess
import time
from collections import Counter
from collections.abc import Collection

QUEUE_SECONDS = 15.0  # between two looks
LOOKS = 2  # in which a job must be missing: what it wrote last may come late over the network


class Queue:
    """The queue as it was seen lately."""

    def __init__(self) -> None:
        self._next = 0.0  # when it may be looked at again, monotonic seconds
        self._missing: Counter[str] = Counter()  # job -> looks in which it was not there

    def has_left(self, job: str, all_jobs: Collection[str]) -> bool:
        """Whether a job of the user's, of all that are watched, is neither waiting nor running any more."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + QUEUE_SECONDS
            command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
            done = subprocess.run(command, capture_output=True, text=True)
            there = set(done.stdout.split())
            if done.returncode == 0:  # else Slurm's controller does not answer, and nobody knows
                for other in all_jobs:
                    self._missing[other] = 0 if other in there else self._missing[other] + 1
        return self._missing[job] >= LOOKS
