"""What an engine is: members in, trained weights out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from factdpo.config.schema import Config
from factdpo.data.pairs import Pairs
from factdpo.models.scoring import PairLogps
from factdpo.store.history import Row
from factdpo.training import adapters


@dataclass(eq=False)
class Member:
    """One run of a batch: what it learns from, what is scored on the way, and who wants to know."""

    key: str  # what it is called in checkpoints
    cfg: Config
    pairs: Pairs
    refs: PairLogps
    curves: dict[str, Pairs]  # scored as eval.every says
    describe: Callable[[dict[str, PairLogps]], Row]  # these scores as a row of the history
    record: Callable[..., None]  # gets the rows of the history as they arise, many at a time
    start: Callable[[], None] = lambda: None  # called when its batch starts; again if the batch begins again
    recorded: int = 0  # rows that it got: a training that begins again does not repeat them


class Weights(Protocol):
    def save(self, folder: Path) -> None: ...


class Trained(NamedTuple):
    """A run that came to its end."""

    adapter: Weights
    facts: dict[str, Any]  # for fit.json
    probe: PairLogps

    def save(self, folder: Path) -> None:
        """adapter/, fit.json and probe.safetensors, as engine trl leaves them."""
        self.adapter.save(folder / "adapter")
        adapters.write_fit(folder, self.facts, self.probe)
