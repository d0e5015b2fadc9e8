"""A training by engine trl, as a run asks for it, and its pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from factdpo.config.schema import Config
from factdpo.data.load import load_facts
from factdpo.data.pairs import Pairs, tokenise
from factdpo.data.splits import make_splits
from factdpo.models.base import Base
from factdpo.models.scoring import PairLogps
from factdpo.training import trl_engine
from factdpo.training.engine import Member


def training_pairs(cfg: Config, base: Base) -> Pairs:
    """The training split of a config."""
    return tokenise(make_splits(load_facts(cfg.data).facts, cfg.split).splits["train"], base.tokenizer, cfg.data)


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
