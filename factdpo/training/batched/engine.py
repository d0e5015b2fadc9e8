"""Engine "batched": many LoRA-DPO runs train together on one frozen base, each exactly as if alone.

One forward and one backward serve R runs (stacked_lora.py, packing.py). Each run has its own loss, rate, clipping, data
order and dropout; the loss of a run is a mean over its own pairs (and its routers' tokens), and the runs' losses are
added up, so that no gradient of one meets another's. AdamW's state is one tensor for all of them. What leaves the
device while training are the metrics, in blocks: no step waits for the host.
"""

import logging
import traceback
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import torch

from factdpo import signals
from factdpo.models.base import Base
from factdpo.training.batched import checkpoints
from factdpo.training.batched.adapter import Adapter, fresh_adapter, read_adapter
from factdpo.training.batched.capacity import is_out_of_memory, runs_at_once
from factdpo.training.batched.cohort import Cohort
from factdpo.training.batched.member import packed_pairs
from factdpo.training.batched.stacked_lora import stacked
from factdpo.training.engine import Ended, Member, Trained
from factdpo.training.schedule import planned_steps

log = logging.getLogger("factdpo")


def fit(base: Base, members: list[Member]) -> Generator[Ended, None, None]:
    """`fit_many`, with its checkpoints in the cache."""
    return fit_many(base, members, Path(members[0].cfg.out) / "cache" / "batches")


def fit_many(base: Base, members: list[Member], folder: Path) -> Generator[Ended, None, None]:
    """Train all members, in cohorts that fit into memory; yields those that ended at the same step.

    The members agree in `identity.can_train_together`. Resumes them from checkpoints in `folder`. The base is as it was
    whenever the generator yields. Closing it early checkpoints the members still in training; so does a signal that
    waits (signals.held), which is then raised. Out of memory, a cohort is halved and begins again. Any other error ends
    the members that had begun, and no others.
    """
    cohorts = _cohorts(base, members, folder)
    while cohorts:
        cohort, saved = cohorts.pop(0)
        if saved is not None and len(saved.state["keys"]) == len(cohort):
            home = saved.home
        else:  # a checkpoint with more members stays for whoever wants the others
            home = checkpoints.Home.new(folder, [member.key for member in cohort])
        ended: set[str] = set()
        trained: list[Member] = []  # of these
        try:
            for member in cohort:
                member.start()
            with closing(_fit_cohort(base, cohort, saved, home)) as groups:
                for group in groups:
                    ended.update(member.key for member, _ in group)
                    trained += [member for member, ending in group if isinstance(ending, Trained)]
                    yield group
        except Exception as error:
            left = [member for member in cohort if member.key not in ended]
            if is_out_of_memory(error) and len(left) > 1:
                home.forget()
                half = (len(left) + 1) // 2
                log.warning("out of memory with %d runs at once: on with %d", len(left), half)
                cohorts[:0] = [(left[:half], None), (left[half:], None)]
            else:
                traceback.clear_frames(error.__traceback__)  # which hold the cohort's memory
                yield [(member, error) for member in left]
        finally:
            if len(ended) == len(cohort) and _can_go(trained):
                home.forget()
            home.release()
            if saved is not None:
                saved.home.release()  # once more, where it could not be read
        if base.device.type == "cuda":
            torch.cuda.empty_cache()


def _can_go(trained: list[Member]) -> bool:
    """Whether no checkpoint is needed for these members, which were handed out with their weights."""
    return all(member.stored is not False for member in trained)


Queued = tuple[list[Member], checkpoints.Checkpoint | None]  # a cohort to train, and what it resumes from


def _cohorts(base: Base, members: list[Member], folder: Path) -> list[Queued]:
    """The members, by checkpoint where they have one; the others, the longest first, in even parts that fit."""
    waiting = {member.key: member for member in members}
    cohorts: list[Queued] = []
    for saved in checkpoints.find(folder, set(waiting)):
        cohorts.append(([waiting.pop(key) for key in saved.state["keys"] if key in waiting], saved))
        log.info("going on from step %d of a batch of %d runs", saved.state["step"], len(cohorts[-1][0]))
    fresh = sorted(waiting.values(), key=lambda member: -planned_steps(len(member.pairs), member.cfg.dpo))
    if fresh:
        at_once = runs_at_once(base, [(m.cfg, packed_pairs(m.cfg, m.pairs, m.retained)) for m in fresh])
        even = -(-len(fresh) // -(-len(fresh) // at_once))
        cohorts += [(fresh[i : i + even], None) for i in range(0, len(fresh), even)]
    return cohorts


def _fit_cohort(
    base: Base, members: list[Member], saved: checkpoints.Checkpoint | None, home: checkpoints.Home
) -> Generator[Ended, None, None]:
    """Train these members at once, from the beginning or from a checkpoint."""
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)
    fresh = _first_adapters(members, base)
    rank = saved.state["rank"] if saved else max(adapter.config.r for adapter in fresh)
    with stacked(base, fresh, rank, bf16_products=members[0].cfg.dpo.bf16) as stack:
        cohort = Cohort(stack, members, fresh, saved)
        if saved is not None and saved.home is not home:
            saved.home.release()  # it is read: others may want the other members
        trained: list[Member] = []
        while cohort.active:
            cohort.step()
            stop = signals.waiting()
            gone = cohort.collect(flush=stop)
            if gone:
                stack.take_off()
            try:
                if gone:
                    trained += [state.member for state in gone if isinstance(state.outcome, Trained)]
                    yield [(state.member, state.outcome) for state in gone if state.outcome is not None]
            finally:  # also if whoever was handed these does not come back
                # When some have ended, a checkpoint without them: who goes on from here has fewer to train.
                is_due = gone or stop or cohort.steps % cohort.save_every == 0
                if cohort.active and is_due and _can_go(trained):
                    _save(home, cohort)
            if gone:
                stack.put_on()
            if cohort.active and stop:
                signals.raise_waiting()


def _first_adapters(members: list[Member], base: Base) -> list[Adapter]:
    """What each member's training starts with: a fresh adapter, on top of the weights that it begins with.

    Those that begin alike have the same one, since PEFT takes longer to make one than a GPU to train ten steps.
    """
    drawn: dict[str, Adapter] = {}
    adapters = []
    for member in members:
        key = repr((member.cfg.lora, member.cfg.dpo.seed))
        fresh = drawn[key] = drawn.get(key) or fresh_adapter(member.cfg, base)
        start = member.begins_with
        adapters.append(fresh.on_top_of(read_adapter(start / "adapter")) if start else fresh)
    return adapters


def _save(home: checkpoints.Home, cohort: Cohort) -> None:
    """A checkpoint; without one a kill costs more, but no result."""
    try:
        home.save(*cohort.state())
    except OSError as error:
        log.warning("no checkpoint at step %d: %s", cohort.steps, error)
