"""What an engine is: it trains members on a base, and yields each with its trained weights or with what ended it."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from factdpo.config.schema import Config
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.models.scoring import PairLogps
from factdpo.store.history import Row
from factdpo.training import adapters


@dataclass(eq=False)
class Member:
    """One training of a cohort: what it learns from, what is scored on the way, and who gets its history."""

    key: str  # its name in checkpoints
    cfg: Config
    pairs: Pairs
    refs: PairLogps
    curves: dict[str, Pairs]  # scored as eval.every says
    describe: Callable[[dict[str, PairLogps]], Row]  # these scores as a row of the history
    record: Callable[..., None]  # gets the rows of the history as they arise, many at a time
    start: Callable[[], None] = lambda: None  # called when its training starts; again if that begins again
    stored: bool | None = None  # are its weights on the disk? Its checkpoint stays while False; None: nobody stores it
    recorded: int = 0  # rows that were recorded: a training that begins again does not repeat them
    go_on: Callable[[Row], None] = lambda row: None  # called with each row of scores; what it raises ends the training
    begins_with: Path | None = None  # folder of trained weights that it starts from; they are its reference too
    retained: Pairs | None = None  # rows of neutral text, as chosen answers, whose likelihood is part of the loss


@runtime_checkable
class Weights(Protocol):
    """Trained weights in memory."""

    def save(self, folder: Path) -> None: ...


class Trained(NamedTuple):
    """What a training that came to its end leaves."""

    weights: Weights
    facts: dict[str, Any]  # how it went, for fit.json
    probe: PairLogps  # scores of the first training pairs, which the reloaded weights must reproduce
    kind: str = "adapter"  # the folder's name: adapter (PEFT's format), or model (a whole model)

    def save(self, folder: Path) -> None:
        """Write adapter/ or model/, fit.json and probe.safetensors."""
        self.weights.save(folder / self.kind)
        adapters.write_fit(folder, self.facts, self.probe)


Ended = list[tuple[Member, Trained | Exception]]  # members that ended at the same step, to be scored together


@runtime_checkable
class Engine(Protocol):
    """`fit` trains all members, yields those that ended together, and leaves a checkpoint if it keeps any.

    A checkpoint is removed only once all that it could restore is `stored`.
    Signals are held (`signals.held`) while it runs. Closing the generator early stops the members still in training.
    """

    def __call__(self, base: Base, members: list[Member]) -> Generator[Ended, None, None]: ...
