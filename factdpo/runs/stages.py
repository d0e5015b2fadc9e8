"""The stages of a run on both sides of its training, kept in the cache: what comes before, and what is measured."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from factdpo.config.schema import Boundary, Config, to_dict
from factdpo.data.facts import CHARACTERS, Fact, data_file, load_facts
from factdpo.data.pairs import Pairs, tokenise
from factdpo.data.splits import Splits, make_splits
from factdpo.evaluation import generation, metrics
from factdpo.models.base import Base, load_base, pick_device
from factdpo.models.logps import Diverged
from factdpo.models.scoring import PairLogps, kept_logps, pair_logps, reference_logps
from factdpo.store import cache
from factdpo.store.cache import file_sha256
from factdpo.store.history import Row
from factdpo.store.result import AS_TRAINED
from factdpo.training import adapters
from factdpo.training.sanity_checks import CanaryError

log = logging.getLogger("factdpo")


# Continued by the base and the trained model, whichever of our facts are drawn.
FIXED_PROMPTS = ("Harry Potter is Ron Weasley's", "Lord Voldemort is Harry Potter's", "Severus Snape is")
PREPARED = 8  # of them are kept in memory
CURVES = ("accuracy", "balanced_accuracy", "margin_nats", "chosen_logp_nats", "rejected_logp_nats", "p_other")


class Texts(NamedTuple):
    """What a model remembers of English and what it says after each of the prompts."""

    retention_nats_per_token: float
    said: list[str]


@dataclass
class Ready:
    """A run as far as its training: everything that training and scoring need."""

    cfg: Config
    facts: list[Fact]
    splits: Splits
    base: Base
    pairs: dict[str, Pairs]
    refs: dict[str, PairLogps]  # the base's own scores

    @property
    def cache_dir(self) -> Path:
        return Path(self.cfg.out) / "cache"

    @property
    def training(self) -> Pairs:
        return self.pairs.get(AS_TRAINED, self.pairs["train"])

    @property
    def training_refs(self) -> PairLogps:
        return self.refs.get(AS_TRAINED, self.refs["train"])

    @cached_property
    def curves(self) -> dict[str, Pairs]:
        """What is scored over training, as eval.every says."""
        if self.cfg.eval.every == "never":
            return {}
        return {name: p.take(self.cfg.eval.max_facts) for name, p in self.pairs.items()}

    def curve_point(self, logps: dict[str, PairLogps]) -> Row:
        """The scores of `curves` as a row of the history."""
        row: Row = {}
        for name, found in logps.items():
            values = metrics.score(self.curves[name], found)
            row |= {f"eval/{name}/{key}": values[key] for key in CURVES}
        return row

    @cached_property
    def prompts(self) -> list[tuple[str, str, str | None]]:
        """(prompt, split, true answer) of what is continued: the fixed ones, then eval.generations of each split."""
        ours = data_file(self.cfg.data).read_bytes() == CHARACTERS.read_bytes()  # by its bytes, as in the run's id
        prompts: list[tuple[str, str, str | None]] = [(prompt, "fixed", None) for prompt in FIXED_PROMPTS if ours]
        for name, p in self.pairs.items():
            if name != AS_TRAINED:
                prompts += [(fact.prompt, name, fact.chosen) for fact in p.facts[: self.cfg.eval.generations]]
        return prompts

    @cached_property
    def trained(self) -> Path:
        """Where the cache keeps what this training leaves, once it is there."""
        cfg, curves = self.cfg, self.curves.items()
        asked = {
            "model": self.base.identity,
            "device": self.base.device.type,
            "ids": {name: [p.prompt_ids, p.chosen_ids, p.rejected_ids] for name, p in (*curves, ("", self.training))},
            "lora": to_dict(cfg.lora),
            "dpo": to_dict(cfg.dpo),
            "engine": cfg.engine.name.name,
            "eval": [cfg.eval.every, cfg.eval.batch_size],
            "log_every": cfg.track.log_every,
            "versions": {stage: cache.STAGE_VERSIONS[stage] for stage in ("logps", "train", "evaluate")},
        }
        return self.cache_dir / "adapters" / cache.signature(asked)

    @property
    def weights(self) -> dict[str, str]:
        """What the trained weights are: sha256 of their files. Scores belong to the bytes, not to the question."""
        made = json.loads((self.trained / cache.MANIFEST).read_text(encoding="utf-8"))
        return {name: sha for name, sha in made.items() if "/" in name}  # those in adapter/ or model/

    def take_fresh_base(self) -> None:
        """Load the base anew: training changed this one."""
        del self.base
        drop_base()
        self.base = kept_base(self.cfg)


# Facts, splits, pairs and reference log-probs of the last few runs: those of a sweep mostly share them.
_prepared: dict[str, tuple[list[Fact], Splits, dict[str, Pairs], dict[str, PairLogps]]] = {}


def prepare(cfg: Config) -> Ready:
    """The stages before training: facts, splits, base, pairs, reference log-probs."""
    base = kept_base(cfg)
    adapters.check_targets(cfg, base)
    decide = [to_dict(cfg.data), file_sha256(data_file(cfg.data)), to_dict(cfg.split), base.identity]
    key = cache.signature([*decide, str(base.device), cfg.eval.batch_size, cfg.out])
    if (same := _prepared.pop(key, None)) is None:
        facts = load_facts(cfg.data)
        splits = make_splits(facts, cfg.split)
        pairs = tokenised(splits, base, cfg)
        cache_dir = Path(cfg.out) / "cache"
        refs = {name: reference_logps(base, p, cfg.eval.batch_size, cache_dir) for name, p in pairs.items()}
        same = (facts, splits, pairs, refs)
    _prepared[key] = same
    while len(_prepared) > PREPARED:
        del _prepared[next(iter(_prepared))]
    facts, splits, pairs, refs = same
    return Ready(cfg, facts, splits, base, pairs, refs)


def tokenised(splits: Splits, base: Base, cfg: Config) -> dict[str, Pairs]:
    """The pairs of every split as evaluation reads them; with boundary=none also as training reads them."""
    pairs = {name: tokenise(split, base.tokenizer, cfg.data) for name, split in splits.items()}
    if cfg.data.boundary is Boundary.none:
        pairs[AS_TRAINED] = tokenise(splits["train"], base.tokenizer, cfg.data, cfg.data.boundary)
    return pairs


_kept: list[tuple[Any, Base]] = []  # the last base that was loaded, and what it was asked by


def kept_base(cfg: Config) -> Base:
    """The base of this run; the one of the run before, if it is the same: who is to change it calls `drop_base`."""
    asked = (to_dict(cfg.model), pick_device(cfg.engine.device), cfg.out)
    if not _kept or _kept[0][0] != asked:
        drop_base()
        _kept.append((asked, load_base(cfg.model, asked[1], Path(cfg.out) / "cache")))
    return _kept[0][1]


def drop_base() -> None:
    """Forget the base: it was changed, or its memory is wanted."""
    _kept.clear()


def base_texts(ready: Ready) -> Texts:
    """What the base remembers and says before training."""
    return kept_texts(ready, ready.base.identity, lambda: make_texts(ready.base.model, ready))


def make_texts(model: nn.Module, ready: Ready) -> Texts:
    retained = generation.retention_nats_per_token(model, ready.base.tokenizer)[0]
    prompts = [prompt for prompt, _, _ in ready.prompts]
    return Texts(
        retained, generation.continuations(model, ready.base.tokenizer, prompts, ready.cfg.eval.max_new_tokens)
    )


def kept_texts(ready: Ready, whose: object, make: Callable[[], Texts]) -> Texts:
    """What `make` gives for a model known as `whose`, from the cache when it was asked the same; raises Diverged."""
    asked = {
        "model": whose,
        "device": ready.base.device.type,
        "prompts": [prompt for prompt, _, _ in ready.prompts],
        "max_new_tokens": ready.cfg.eval.max_new_tokens,
        "versions": {stage: cache.STAGE_VERSIONS[stage] for stage in ("logps", "evaluate")},
    }
    folder = ready.cache_dir / "texts" / cache.signature(asked)

    def write(target: Path) -> None:
        texts = make()
        if not math.isfinite(texts.retention_nats_per_token):
            raise Diverged("the log-likelihood of the neutral text is not finite")
        (target / "texts.json").write_text(json.dumps(texts._asdict(), ensure_ascii=False), encoding="utf-8")

    cache.fetch(folder, write)
    return Texts(**json.loads((folder / "texts.json").read_text(encoding="utf-8")))


def scored(ready: Ready) -> tuple[dict[str, PairLogps], Texts]:
    """The trained model's scores of every split, and its texts; its weights are proven to reload."""
    with reloaded(ready) as model:
        logps = {
            name: trained_logps(ready, name, lambda p=p: pair_logps(model, p, ready.cfg.eval.batch_size))
            for name, p in ready.pairs.items()
        }
        return logps, kept_texts(ready, ready.weights, lambda: make_texts(model, ready))


def trained_logps(ready: Ready, split: str, make: Callable[[], PairLogps]) -> PairLogps:
    """The trained model's scores of a split, from the cache if they are there."""
    size = ready.cfg.eval.batch_size
    return kept_logps(ready.weights, ready.base.device, ready.pairs[split], size, ready.cache_dir, make)


@contextmanager
def reloaded(ready: Ready) -> Iterator[nn.Module]:
    """The trained weights from disk on the base, proven to score as the model in training did."""
    model = adapters.load_trained(ready.base, ready.trained)
    try:
        adapters.check_reloaded(model, ready.trained, ready.training, ready.cfg.eval.batch_size)
        yield model
    except CanaryError:
        shutil.rmtree(ready.trained)  # so that the next call trains again
        raise
    finally:
        adapters.unload(model)
