"""The command line in this process, in an empty folder: a tenth of the time of a process of its own."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from factdpo.commands import main
from factdpo.runs import session
from tests.helpers.runs import new_session


@contextmanager
def in_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """call("-m", "seed=0,1"): the exit code of that command."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level  # Hydra sets up logging for every job
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which the command line sets to 1
    monkeypatch.setattr(session, "Session", new_session)  # facts are read once

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["factdpo", *arguments])
        try:
            main.main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0

    yield call
    GlobalHydra.instance().clear()
    root.handlers[:] = handlers
    root.setLevel(level)
