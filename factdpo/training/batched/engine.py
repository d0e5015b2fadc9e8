"""Engine "batched": many LoRA-DPO runs train together on one frozen base, each exactly as if alone.

One forward and one backward serve R runs (stack.py, packing.py). Each run has its own loss, rate, clipping, data order
and dropout; the loss of a run is the mean over its own pairs, and the runs' losses are added up, so that no gradient of
one meets another's. AdamW's state is one tensor for all of them. What leaves the device while training are the metrics,
in blocks: no step waits for the host.
"""

import logging
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import torch

from factdpo import signals
from factdpo.models.base import Base
from factdpo.training.batched import checkpoints
from factdpo.training.batched.batch import _Batch
from factdpo.training.batched.capacity import is_out_of_memory, runs_at_once
from factdpo.training.batched.stacked_lora import fresh_adapter, stacked
from factdpo.training.engine import Member, Trained
from factdpo.training.schedule import planned_steps

log = logging.getLogger("factdpo")


Ended = list[tuple[Member, Trained | Exception]]  # runs that ended at the same step


def fit_many(base: Base, members: list[Member], folder: Path) -> Generator[Ended, None, None]:
    """Train all members, in batches that fit; each is handed out when it ends, with its weights or with what ended it.

    The members agree in `identity.can_train_together`. Checkpoints of unfinished batches lie in `folder`: what there is
    of the members is gone on with. The base is as it was whenever members are handed out; who is handed some and never
    comes back for the others closes the generator, which leaves a checkpoint of these. So does a signal that waits
    (signals.held); it is then raised. An out-of-memory error halves the batch and starts it again; raises it when a run
    alone does not fit.
    """
    waiting = {member.key: member for member in members}
    batches: list[tuple[list[Member], checkpoints.Checkpoint | None]] = []
    for saved in checkpoints.find(folder, set(waiting)):
        batches.append(([waiting.pop(key) for key in saved.state["keys"] if key in waiting], saved))
        log.info("going on from step %d of a batch of %d runs", saved.state["step"], len(batches[-1][0]))
    fresh = sorted(waiting.values(), key=lambda member: -planned_steps(len(member.pairs), member.cfg.dpo))
    if fresh:
        at_once = runs_at_once(base, [(member.cfg, member.pairs) for member in fresh])
        even = -(-len(fresh) // -(-len(fresh) // at_once))  # as many batches as needed, of like size
        batches += [(fresh[i : i + even], None) for i in range(0, len(fresh), even)]
    while batches:
        batch, saved = batches.pop(0)
        if saved is not None and len(saved.state["keys"]) == len(batch):
            home = saved.home
        else:  # a checkpoint that has runs besides these stays, for who wants them
            home = checkpoints.Home.new(folder, [member.key for member in batch])
        ended = set()
        try:
            for member in batch:
                member.start()
            with closing(_fit_batch(base, batch, saved, home)) as groups:
                for group in groups:
                    ended.update(member.key for member, _ in group)
                    yield group
            home.forget()
        except Exception as error:
            left = [member for member in batch if member.key not in ended]
            if not is_out_of_memory(error) or len(left) < 2:
                raise
            home.forget()
            half = (len(left) + 1) // 2
            log.warning("out of memory with %d runs at once: on with %d", len(left), half)
            batches[:0] = [(left[:half], None), (left[half:], None)]
        finally:
            home.release()
            if saved is not None:
                saved.home.release()
        if base.device.type == "cuda":
            torch.cuda.empty_cache()


def _fit_batch(
    base: Base, members: list[Member], saved: checkpoints.Checkpoint | None, home: checkpoints.Home
) -> Generator[Ended, None, None]:
    """Train these members at once, from the beginning or from a checkpoint."""
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    fresh = [fresh_adapter(member.cfg, base) for member in members]
    rank = saved.state["rank"] if saved else max(adapter.config.r for adapter in fresh)
    with stacked(base, fresh, rank, bf16_products=members[0].cfg.dpo.bf16) as stack:
        batch = _Batch(stack, members, fresh, saved)
        while batch.runs:
            batch.step()
            stop = signals.waiting()
            gone = batch.leave(all_is_told=stop)
            if gone:
                stack.take_off()
            try:
                if gone:
                    yield [(run.member, run.ending) for run in gone if run.ending is not None]
            finally:  # also if whoever was handed these does not come back
                # When some have ended, a checkpoint without them: who goes on from here has fewer to train.
                if batch.runs and (gone or stop or batch.count % batch.save_every == 0):
                    _save(home, batch)
            if gone:
                stack.put_on()
            if batch.runs and stop:
                signals.raise_waiting()


def _save(home: checkpoints.Home, batch: "_Batch") -> None:
    """A checkpoint; without one a kill costs more, but no result."""
    try:
        home.save(*batch.state())
    except OSError as error:
        log.warning("no checkpoint at step %d: %s", batch.count, error)
