"""A training by engine trl, as a run asks for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from factdpo.config.schema import Config
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.models.scoring import PairLogps
from factdpo.training import trl_engine
from factdpo.training.engine import Member


def train_with_trl(
    base: Base,
    pairs: Pairs,
    refs: PairLogps,
    cfg: Config,
    folder: Path,
    record: Callable[..., None] = lambda *rows: None,
    curves: dict[str, Pairs] | None = None,
    describe: Callable[[dict[str, PairLogps]], dict[str, Any]] = lambda scores: {},
) -> None:
    """Leave in `folder` what a training leaves; raises what ended it."""
    member = Member("0", cfg, pairs, refs, curves or {}, describe, record)
    (((_, ending),),) = trl_engine.fit(base, [member])
    if isinstance(ending, Exception):
        raise ending
    ending.save(folder)
