"""What a base says when it is asked, before anything trains: can it be trained at all, and by the batched engine?

The answer is kept in the cache under what was asked of the run, so that the next look at such a run knows it without
loading anything. models/soundness.py and training/batched/interrogation.py ask.
"""

import importlib.metadata
import json
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factdpo.config.schema import Config, ConfigError, EngineName, Method
from factdpo.store import cache

if TYPE_CHECKING:
    from factdpo.data.pairs import Pairs
    from factdpo.models.base import Base
    from factdpo.runs.identity import RunSpec
    from factdpo.runs.stages import Prepared

VERSION = 3  # of what is asked
FILE = "verdict.json"


class Verdict(NamedTuple):
    """Sentences on a base with this data; None where nothing is wrong."""

    unsound: str | None  # why no engine can train it
    needs_trl: str | None  # why the batched engine cannot
    not_by_trl: str | None = None  # why TRL cannot, where it would train it


def stored_verdict(asked: dict[str, Any], cfg: Config) -> Verdict | None:
    """What was found out before; None if the base was not asked yet, or its answer is damaged."""
    folder = _folder(asked, cfg)
    if cache.damage(folder) is not None:
        return None
    return Verdict(**json.loads((folder / FILE).read_text(encoding="utf-8")))


def verdict(run: "Prepared", asked: dict[str, Any], kept: dict[str, Verdict]) -> Verdict:
    """What the base says, asked once per base, targets and data; runs that share `kept` ask no question twice."""
    folder = _folder(asked, run.cfg)

    def ask(target: Path) -> None:
        (target / FILE).write_text(json.dumps(_ask(run, asked, kept)._asdict()), encoding="utf-8")

    cache.fetch(folder, ask)
    return Verdict(**json.loads((folder / FILE).read_text(encoding="utf-8")))


def apply(found: Verdict, spec: "RunSpec") -> None:
    """Have TRL train the run where the batched engine cannot; raises ConfigError where that, or any, is not wanted."""
    model = f"model.id={spec.cfg.model.id or spec.cfg.model.name}"
    if found.unsound:
        raise ConfigError(f"{model}: {found.unsound}")
    if found.needs_trl and found.not_by_trl:
        raise ConfigError(f"{model}: no engine can train it: {found.needs_trl}; and {found.not_by_trl}")
    if found.not_by_trl and spec.trains.engine.name is EngineName.trl:
        raise ConfigError(f"engine=trl: {found.not_by_trl}; use engine=auto, which trains it batched")
    if found.needs_trl and spec.trains.engine.name is EngineName.batched:
        spec.train_with_trl(found.needs_trl)


def _ask(run: "Prepared", asked: dict[str, Any], kept: dict[str, Verdict]) -> Verdict:
    from factdpo import console
    from factdpo.evaluation.generation import NEUTRAL_TOKENS
    from factdpo.models.soundness import extremes, why_unsound
    from factdpo.training.batched.interrogation import Findings, interrogate

    base, cfg = run.base, run.cfg
    probes = extremes(list(run.pairs.values()))
    longest = max(len(p) + max(len(c), len(r)) for p, c, r in probes.token_ids())
    longest = min(base.encoder.longest, max(longest + cfg.eval.max_new_tokens, NEUTRAL_TOKENS))
    asked_with = [base.identity, str(base.device), probes.token_ids(), longest]
    asked_with += _adapters(asked, cfg)
    key = f"verdict {cache.signature(asked_with)}"
    if key not in kept:
        with console.stage(f"asking {base.weights.name} what it computes"):
            unsound = why_unsound(base, probes, longest)
            has_adapters = unsound is None and cfg.lora.method is Method.lora
            found = interrogate(base, cfg, probes) if has_adapters else Findings()
            unsound = unsound or found.no_engine
            by_trl = unsound is None and (found.not_batched is not None or _insists_on_trl(asked))
            kept[key] = Verdict(unsound, found.not_batched, _why_not_by_trl(base, probes) if by_trl else None)
    return kept[key]


def _why_not_by_trl(base: "Base", probes: "Pairs") -> str | None:
    from factdpo.training.trl_interrogation import why_not_by_trl  # TRL takes seconds to import

    return why_not_by_trl(base, probes)


def _adapters(asked: dict[str, Any], cfg: Config) -> list[Any]:
    """What is asked of adapters, and whether TRL is asked whatever the batched engine says."""
    return [cfg.lora.method.name, sorted(cfg.lora.target_modules), cfg.dpo.weight_decay > 0, _insists_on_trl(asked)]


def _insists_on_trl(asked: dict[str, Any]) -> bool:
    return asked["config"]["engine"]["name"] == EngineName.trl.name


def _folder(asked: dict[str, Any], cfg: Config) -> Path:
    config = asked["config"]
    decisive = {
        "asked": [asked["model"], asked["data"], asked.get("chat_template"), config["data"], config["split"]],
        "adapters": _adapters(asked, cfg),
        "length": cfg.eval.max_new_tokens,
        "device": cfg.engine.device,
        "versions": [VERSION, *_versions()],
    }
    return Path(cfg.out) / "cache" / "verdicts" / cache.signature(decisive)


@once
def _versions() -> list[str]:
    return [importlib.metadata.version(package) for package in ("torch", "transformers", "peft")]
