"""The order of pairs and the learning rate of each optimizer step, as the Hugging Face Trainer has them."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat

from factdpo.config.schema import Config, DpoConfig, MethodName, Schedule


def steps_per_epoch(pairs: int, cfg: DpoConfig) -> int:
    """Optimizer steps of one pass; a short last batch counts as one, and so does a short last accumulation."""
    return math.ceil(math.ceil(pairs / cfg.batch_size) / cfg.gradient_accumulation_steps)


def planned_steps(pairs: int, cfg: DpoConfig) -> int:
    """Optimizer steps of a training."""
    if cfg.max_steps is not None:
        return cfg.max_steps
    assert cfg.epochs is not None
    return math.ceil(cfg.epochs * steps_per_epoch(pairs, cfg))


def sft_steps(pairs: int, cfg: Config) -> int:
    """Optimizer steps of the SFT that a run begins with; 0 unless method=sft_dpo."""
    if cfg.method.name is not MethodName.sft_dpo:
        return 0
    return planned_steps(pairs, replace(cfg.dpo, epochs=cfg.method.sft_epochs, max_steps=cfg.method.sft_max_steps))


def steps_of_run(pairs: int, cfg: Config) -> int:
    """All optimizer steps of a run, those of an SFT before DPO included."""
    return sft_steps(pairs, cfg) + planned_steps(pairs, cfg.dpo)


def micro_batches(pairs: int, cfg: DpoConfig, first_step: int = 0) -> Iterator[list[list[int]]]:
    """Yields the row numbers of the micro-batches of each optimizer step from `first_step` on, without end.

    Each epoch is a new permutation: accelerate's SeedableRandomSampler seeds it with dpo.seed + epoch.
    """
    import torch  # only now: `factdpo status` counts steps without it

    per_epoch, accumulate = steps_per_epoch(pairs, cfg), cfg.gradient_accumulation_steps
    epoch, first = divmod(first_step, per_epoch)
    while True:
        order = torch.randperm(pairs, generator=torch.Generator().manual_seed(cfg.seed + epoch)).tolist()
        batches = [order[i : i + cfg.batch_size] for i in range(0, pairs, cfg.batch_size)]
        for step in range(first, per_epoch):
            yield batches[step * accumulate : (step + 1) * accumulate]
        epoch, first = epoch + 1, 0


def retained_rows(pairs: int, retained: int, cfg: DpoConfig, first_step: int = 0) -> Iterator[list[int]]:
    """Yields the rows of neutral text of each optimizer step, numbered after the pairs; [] where there are none."""
    if retained == 0:
        yield from repeat([])
    text = replace(cfg, batch_size=cfg.retain_batch_size, gradient_accumulation_steps=1)
    for (batch,) in micro_batches(retained, text, first_step):
        yield [pairs + row for row in batch]


def epochs_done(step: int, pairs: int, cfg: DpoConfig) -> float:
    """Passes over the pairs after `step` optimizer steps, counted in micro-batches as the Trainer counts."""
    per_epoch = steps_per_epoch(pairs, cfg)
    epoch, within = divmod(step, per_epoch)
    batches = math.ceil(pairs / cfg.batch_size)
    return epoch + min(1.0, within * cfg.gradient_accumulation_steps / batches)


def learning_rate(step: int, total: int, cfg: DpoConfig) -> float:
    """The rate of optimizer step `step` (from 0) of `total`: transformers' schedules of the same names."""
    warmup = math.ceil(total * cfg.warmup_ratio)
    if cfg.lr_scheduler is Schedule.constant:
        return cfg.learning_rate
    if step < warmup:
        return cfg.learning_rate * step / max(1, warmup)
    if cfg.lr_scheduler is Schedule.constant_with_warmup:
        return cfg.learning_rate
    progress = (step - warmup) / max(1, total - warmup)
    if cfg.lr_scheduler is Schedule.cosine:
        return cfg.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return cfg.learning_rate * max(0.0, 1.0 - progress)
