"""Many runs' training and scoring at once, into the cache where each run then finds its own."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from factdpo import batched, cache, evaluate
from factdpo.config import Config, ConfigError, identity, to_dict
from factdpo.display import BatchBar
from factdpo.logps import Diverged
from factdpo.pairs import join
from factdpo.planner import is_out_of_memory, tokens_at_once
from factdpo.reference import is_finite
from factdpo.run import keep, member
from factdpo.stack import read_adapter, stacked
from factdpo.stages import Ready, Texts, kept_texts, prepare, trained_logps
from factdpo.steps import planned_steps
from factdpo.tracker import Trackers

log = logging.getLogger("factdpo")

SCORED_TOGETHER = 16  # runs whose scores are made at once


class Wanted(NamedTuple):
    """A run whose training is wanted, where it writes, and who hears of it."""

    cfg: Config
    out: Path
    tracker: Trackers


def warm(runs: list[Wanted]) -> dict[int, Exception]:
    """Train and score together what of these runs the batched engine can: `run` then finds it in the cache.

    Returns what ended a run, by its number in the list; a run that is not in it came through its training.
    """
    bases: dict[str, list[int]] = {}  # one of them in memory at a time
    for number, (cfg, *_) in enumerate(runs):
        bases.setdefault(cache.signature([to_dict(cfg.model), cfg.engine.device.name, cfg.out]), []).append(number)
    endings: dict[int, Exception] = {}
    for numbers in bases.values():
        endings |= _warm(runs, numbers)
    return endings


def _warm(runs: list[Wanted], of_one_base: list[int]) -> dict[int, Exception]:
    ready: dict[int, Ready] = {}
    endings: dict[int, Exception] = {}
    groups: dict[str, dict[Path, list[int]]] = {}  # what can train together -> a training -> the runs that want it
    for number in of_one_base:
        cfg = runs[number].cfg
        try:
            ready[number] = prepare(cfg)
        except Exception as error:  # of this run alone; the others go on
            endings[number] = error
            continue
        key = cache.signature([batched.can_train_together(cfg), cfg.eval.max_new_tokens])
        groups.setdefault(key, {}).setdefault(ready[number].trained, []).append(number)
    for group in groups.values():
        missing = [numbers for folder, numbers in group.items() if cache.damage(folder) is not None]
        if missing:
            endings |= _train(ready, runs, missing)
            done = [ready[numbers[0]] for numbers in missing if numbers[0] not in endings]
            try:
                _score(done)
            except Exception as error:
                if not (isinstance(error, Diverged) or is_out_of_memory(error)):
                    raise
                log.warning("%d runs could not be scored together (%s): each scores itself", len(done), error)
    return endings


def _train(ready: dict[int, Ready], runs: list[Wanted], missing: list[list[int]]) -> dict[int, Exception]:
    """Train what is missing; a training that several runs want is made once and tells all of them."""
    one, endings = ready[missing[0][0]], {}
    with BatchBar(len(missing), one.cfg.track.progress) as bar:
        members, wanting = [], {}
        names = labels([runs[numbers[0]].cfg for numbers in missing])
        for numbers, name in zip(missing, names, strict=True):
            first = ready[numbers[0]]
            show = bar.run(name, planned_steps(len(first.training), first.cfg.dpo))
            members.append(member(first, [*(runs[number].tracker.log for number in numbers), show]))
            wanting[members[-1].key] = numbers
        try:
            for ended, ending in batched.fit_many(one.base, members, one.cache_dir / "batches"):
                numbers = wanting.pop(ended.key)
                if isinstance(ending, Exception):
                    endings |= dict.fromkeys(numbers, ending)
                else:
                    cache.fetch(
                        ready[numbers[0]].trained, lambda target, e=ending, n=numbers[0]: keep(e, runs[n].out, target)
                    )
        except Exception as error:
            if not (isinstance(error, ConfigError) or is_out_of_memory(error)):
                raise
            endings |= {number: error for numbers in wanting.values() for number in numbers}  # and of no other group
    return endings


def labels(cfgs: list[Config]) -> list[str]:
    """What tells each of these runs from the others: the keys in which they differ, as key=value."""
    flat = [dict(_leaves(identity(cfg))) for cfg in cfgs]
    keys = [key for key in flat[0] if any(one[key] != flat[0][key] for one in flat)]
    if all(one["split.seed"] == one["dpo.seed"] for one in flat) and "split.seed" in keys:
        keys.remove("split.seed")  # one `seed` sets both
    return [" ".join(f"{key.rsplit('.', 1)[-1]}={one[key]}" for key in keys) for one in flat]


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _score(done: list[Ready]) -> None:
    """Score these runs' trained weights, as they lie on the disk, and let them speak, in shared forwards."""
    for start in range(0, len(done), SCORED_TOGETHER):
        some = done[start : start + SCORED_TOGETHER]
        adapters = [read_adapter(ready.trained / "adapter") for ready in some]
        whole = [join(list(ready.pairs.values())) for ready in some]
        with stacked(some[0].base, adapters, max(adapter.config.r for adapter in adapters)) as stack:
            logps = stack.logps(whole, tokens_at_once(some[0].cfg, some[0].base.device))
            texts = _texts(some)
        for ready, found, said in zip(some, logps, texts, strict=True):
            if not is_finite(found):
                continue  # the run itself will find that, and end as DIVERGED
            parts = found.split([len(p) for p in ready.pairs.values()])
            for split, part in zip(ready.pairs, parts, strict=True):
                trained_logps(ready, split, lambda part=part: part)
            kept_texts(ready, ready.weights, lambda said=said: said)


def _texts(some: list[Ready]) -> list[Texts]:
    """What each run's model remembers and says: the rows of the runs one after the other, as many for each."""
    base = some[0].base
    retained = evaluate.retention_nats_per_token(base.model, base.tokenizer, len(some))
    prompts = [[prompt for prompt, _, _ in ready.prompts] for ready in some]
    most, any_one = max(map(len, prompts)), [prompt for of_run in prompts for prompt in of_run][:1]
    rows = [prompt for of_run in prompts for prompt in (of_run + any_one * most)[:most]]
    said = evaluate.continuations(base.model, base.tokenizer, rows, max(r.cfg.eval.max_new_tokens for r in some))
    return [Texts(n, said[r * most :][: len(p)]) for r, (n, p) in enumerate(zip(retained, prompts, strict=True))]
