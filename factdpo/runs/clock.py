"""Divides the time of a command among its runs, so that their totals add up to what a wall clock shows."""

import time
from collections.abc import Collection

from factdpo.runs.attempt import Attempt


class Clock:
    """Every moment since it was made is charged once to the runs that it was spent on, in equal parts, or to nobody."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def charge(self, groups: Collection[Collection[Attempt]]) -> None:
        """Charge the time since the last charge to the stage that each of these runs is in, s.

        Each group gets an equal part, divided among its runs: those that share one training are a group. Without any
        group the time is left to the next charge.
        """
        if not groups:
            return
        now = time.monotonic()
        for group in groups:
            for attempt in group:
                attempt.seconds[attempt.stage] += (now - self._last) / len(groups) / len(group)
        self._last = now

    def skip(self) -> None:
        """Charge the time since the last charge to nobody."""
        self._last = time.monotonic()
