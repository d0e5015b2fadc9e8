"""Many runs' training and scoring at once, into the cache where each run then finds its own."""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from factdpo import signals
from factdpo.config.schema import Config, identity, to_dict
from factdpo.data.pairs import join
from factdpo.evaluation import generation
from factdpo.models.scoring import is_finite
from factdpo.runs.identity import can_train_together
from factdpo.runs.pipeline import keep, member
from factdpo.runs.progress_bars import BatchBar
from factdpo.runs.stages import Ready, Texts, kept_texts, prepare, trained_logps
from factdpo.store import cache
from factdpo.store.history import Row
from factdpo.training.batched import engine
from factdpo.training.batched.capacity import tokens_at_once
from factdpo.training.batched.stacked_lora import read_adapter, stacked
from factdpo.training.schedule import planned_steps

log = logging.getLogger("factdpo")

SCORED_TOGETHER = 16  # runs whose scores are made at once


class Wanted(NamedTuple):
    """A run whose training is wanted, where it writes, and who hears of it."""

    cfg: Config
    out: Path
    start: Callable[[], None]  # called when its batch starts to train; again if that begins again
    log: Callable[..., None]  # gets the rows of its history


Ending = tuple[int, Exception | None]  # a run, by its number in the list, and what ended it if it went wrong


def train(runs: list[Wanted]) -> Generator[Ending, None, None]:
    """Train and score together what of these runs the batched engine can; `run` then finds it in the cache.

    Each run is handed out as soon as that is so: a batch's runs before the next batch begins. Whoever wants no more of
    them closes the generator, which leaves a checkpoint of what trains; so does a signal.
    """
    bases: dict[str, list[int]] = {}  # one of them in memory at a time
    for number, (cfg, *_) in enumerate(runs):
        bases.setdefault(cache.signature([to_dict(cfg.model), cfg.engine.device.name, cfg.out]), []).append(number)
    for numbers in bases.values():
        yield from _train_on_one_base(runs, numbers)


def _train_on_one_base(runs: list[Wanted], numbers: list[int]) -> Iterator[Ending]:
    ready: dict[int, Ready] = {}
    groups: dict[str, dict[Path, list[int]]] = {}  # what can train together -> a training -> the runs that want it
    for number in numbers:
        cfg = runs[number].cfg
        try:
            ready[number] = prepare(cfg)
        except Exception as error:  # of this run alone; the others go on
            yield number, error
            continue
        key = cache.signature(can_train_together(cfg))
        groups.setdefault(key, {}).setdefault(ready[number].trained, []).append(number)
    for group in groups.values():
        missing = [numbers for folder, numbers in group.items() if cache.damage(folder) is not None]
        yield from ((number, None) for numbers in group.values() if numbers not in missing for number in numbers)
        if missing:
            yield from _train_group(ready, runs, missing)
            signals.raise_waiting()


def _train_group(ready: dict[int, Ready], runs: list[Wanted], missing: list[list[int]]) -> Iterator[Ending]:
    """Train what is missing; a training that several runs want is made once and tells all of them."""
    one = ready[missing[0][0]]
    with BatchBar(len(missing), one.cfg.track.progress) as bar, signals.held():
        names = labels([runs[numbers[0]].cfg for numbers in missing])
        trainings = {
            training.member.key: training
            for training in (
                _Training(ready[numbers[0]], {number: runs[number] for number in numbers}, bar, name)
                for numbers, name in zip(missing, names, strict=True)
            )
        }
        while trainings:
            members = [training.member for training in trainings.values()]
            try:
                with closing(engine.fit_many(one.base, members, one.cache_dir / "batches")) as groups:
                    for group in groups:
                        ended = [(trainings.pop(member.key), ending) for member, ending in group]
                        bar.turn()
                        for training, ending in ended:
                            training.end(ending)
                        with signals.released():
                            _score([training.ready for training, _ in ended if training.sound()])
                            for training, _ in ended:
                                yield from training.endings()
            except Exception as error:  # ends the runs that had begun to train, or all if none had; on with the rest
                for training in [each for each in trainings.values() if each.begun] or list(trainings.values()):
                    trainings.pop(training.member.key).end(error)
                    with signals.released():
                        yield from training.endings()


class _Training:
    """A training and the runs that want it. What goes wrong with one of these costs no other."""

    def __init__(self, ready: Ready, wanting: dict[int, Wanted], bar: BatchBar, name: str):
        self.ready, self.wanting, self.bar = ready, wanting, bar
        self.failed: dict[int, Exception] = {}
        self.begun = False
        show = bar.run(name, planned_steps(len(ready.training), ready.cfg.dpo))
        self.member = member(ready, [self._log, show], self._start)

    def sound(self) -> list[int]:
        return [number for number in self.wanting if number not in self.failed]

    def end(self, ending: engine.Trained | Exception) -> None:
        """Keep what it came to."""
        error = ending if isinstance(ending, Exception) else None
        if isinstance(ending, engine.Trained) and (sound := self.sound()):
            try:
                cache.fetch(self.ready.trained, lambda target: keep(ending, self.wanting[sound[0]].out, target))
            except Exception as not_kept:
                error = not_kept
        if error is not None:
            self.failed = dict.fromkeys(self.wanting, error) | self.failed

    def endings(self) -> Iterator[Ending]:
        yield from ((number, self.failed.get(number)) for number in self.wanting)

    def _start(self) -> None:
        self.begun = True
        self.bar.turn()
        with signals.released():
            self._each(lambda wanted: wanted.start())

    def _log(self, *rows: Row) -> None:
        """Raises if nobody wants the training any more."""
        self._each(lambda wanted: wanted.log(*rows))
        if not self.sound():
            raise next(iter(self.failed.values()))

    def _each(self, call: Callable[[Wanted], None]) -> None:
        for number in self.sound():
            try:
                call(self.wanting[number])
            except Exception as error:
                self.failed[number] = error


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
        try:
            _score_at_once(some)
        except Exception as error:  # NaN in a text, no memory, no disk: of one of them, perhaps
            log.warning("%d runs could not be scored together (%s): each scores itself", len(some), error)


def _score_at_once(some: list[Ready]) -> None:
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
    retained = generation.retention_nats_per_token(base.model, base.tokenizer, len(some))
    prompts = [[prompt for prompt, _, _ in ready.prompts] for ready in some]
    most, any_one = max(map(len, prompts)), [prompt for of_run in prompts for prompt in of_run][:1]
    rows = [prompt for of_run in prompts for prompt in (of_run + any_one * most)[:most]]
    said = generation.continuations(base.model, base.tokenizer, rows, max(r.cfg.eval.max_new_tokens for r in some))
    return [Texts(n, said[r * most :][: len(p)]) for r, (n, p) in enumerate(zip(retained, prompts, strict=True))]
