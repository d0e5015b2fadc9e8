"""What one command knows while it does its runs: passed to whatever needs it, and gone with the command."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from factdpo.config.schema import Config, to_dict
from factdpo.console import console
from factdpo.runs.identity import RunSpec

if TYPE_CHECKING:
    from factdpo.models.base import Base
    from factdpo.runs.stages import Inputs

KEPT_INPUTS = 8  # inputs in memory: the runs of a sweep mostly share them


@dataclass
class Job:
    """A job of a sweep as it was planned: composed once, looked up once."""

    config: bytes  # the composed config, Hydra's node included, pickled: a tenth of its size in memory
    spec: RunSpec | None  # None where only the job itself can know its run


@dataclass
class Session:
    """The command as it was typed, the base in memory, what the runs share, and the planned jobs."""

    command: list[str] = field(default_factory=list)  # empty where it was none, as in a worker process
    jobs: dict[tuple[str, ...], Job] = field(default_factory=dict)  # by overrides: a sweeper plans, its launcher takes
    facts: dict[str, Any] = field(default_factory=dict)  # read and checked, for `look_up` and `prepare`
    screen: Console = console  # that shows bars and how runs ended; a worker's shows nothing, its command does
    requested: list[RunSpec] = field(default_factory=list)  # what the command asked for, a sweep's in its order
    error: Exception | None = None  # of a run alone, which Hydra is not to see
    verdicts: dict[str, Any] = field(default_factory=dict)  # what bases said when they were asked
    _inputs: "dict[str, Inputs]" = field(default_factory=dict)
    _base: "tuple[Any, Base] | None" = None  # and the settings it was loaded by

    def base(self, cfg: Config) -> "Base":
        """The base model of this config, reusing the loaded one if it is the same; one is in memory at a time.

        Whoever is about to change it calls `drop_base` first.
        """
        from factdpo.models import base
        from factdpo.models.devices import pick_device

        device = pick_device(cfg.engine.device)
        settings = (to_dict(cfg.model), device, cfg.out)
        if self._base is None or self._base[0] != settings:
            self.drop_base()
            self._base = settings, base.load_base(cfg.model, device, Path(cfg.out) / "cache")
        return self._base[1]

    def drop_base(self) -> None:
        """Forget the base: it is about to change, or its memory is needed."""
        self._base = None

    def inputs(self, key: str) -> "Inputs | None":
        """The inputs that were kept under this key, now the last to be dropped."""
        inputs = self._inputs.pop(key, None)
        if inputs is not None:
            self._inputs[key] = inputs
        return inputs

    def keep_inputs(self, key: str, inputs: "Inputs") -> None:
        self._inputs[key] = inputs
        while len(self._inputs) > KEPT_INPUTS:
            del self._inputs[next(iter(self._inputs))]


# Hydra calls its task function with a config and nothing else: there the session is read from here.
_current: ContextVar[Session] = ContextVar("factdpo_session")


@contextmanager
def opened(session: Session | None = None) -> Iterator[Session]:
    """A session, a new one if none is given, is the current one for as long as the context lasts."""
    session = session or Session()
    token = _current.set(session)
    try:
        yield session
    finally:
        _current.reset(token)


def current() -> Session:
    """The session of this command; in a launcher's worker process, one for all jobs that it gets."""
    session = _current.get(None)
    if session is None:
        session = Session()
        _current.set(session)
    return session
