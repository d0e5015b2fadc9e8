"""Which pairs an optimizer step takes, and at which rate: what the Hugging Face Trainer itself does, step by step."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from factdpo.config.schema import DpoConfig, Schedule
from factdpo.training.schedule import epochs_done, learning_rate, micro_batches, planned_steps, steps_per_epoch

# pairs, and what of dpo.* decides the steps
PLANS = [
    (16, {"epochs": 2.0, "batch_size": 4}),
    (13, {"epochs": 2.0, "batch_size": 4}),  # a short last batch
    (13, {"epochs": 2.0, "batch_size": 2, "gradient_accumulation_steps": 3}),  # 7 batches: steps of 3, 3 and 1
    (10, {"epochs": 1.5, "batch_size": 4, "lr_scheduler": Schedule.cosine}),
    (10, {"epochs": 0.3, "batch_size": 2, "gradient_accumulation_steps": 2}),
    (10, {"max_steps": 8, "batch_size": 4, "warmup_ratio": 0.3}),  # ends within the third epoch
    (9, {"max_steps": 7, "batch_size": 2, "gradient_accumulation_steps": 2, "lr_scheduler": Schedule.constant}),
    (3, {"max_steps": 4, "batch_size": 8, "gradient_accumulation_steps": 4}),  # less than a batch
    (7, {"max_steps": 6, "batch_size": 1, "lr_scheduler": Schedule.constant_with_warmup, "warmup_ratio": 0.34}),
    (12, {"epochs": 2.0, "batch_size": 5, "lr_scheduler": Schedule.cosine, "warmup_ratio": 0.5, "seed": 7}),
]


def config(**dpo: Any) -> DpoConfig:
    return DpoConfig(**({"epochs": None, "seed": 0} | dpo))


class Recorder(Trainer):
    """The real Trainer on one weight; keeps the rows of each micro-batch, in whose turn it came."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        self.__dict__.setdefault("seen", []).append((self.state.global_step, inputs["row"].tolist()))
        return model(inputs["row"][:, None].float()).mean()


def trained(pairs: int, cfg: DpoConfig, folder: Path) -> tuple[list[list[list[int]]], list[dict[str, float]]]:
    """Rows of each step's micro-batches, and the log, under the arguments that train.py gives."""
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=cfg.epochs or 1.0, max_steps=cfg.max_steps or -1,
        per_device_train_batch_size=cfg.batch_size, gradient_accumulation_steps=cfg.gradient_accumulation_steps,
        learning_rate=cfg.learning_rate, lr_scheduler_type=cfg.lr_scheduler.name, warmup_steps=cfg.warmup_ratio,
        seed=cfg.seed, use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Recorder(model=torch.nn.Linear(1, 1), args=arguments, train_dataset=[{"row": i} for i in range(pairs)])
    trainer.train()
    steps = [
        [rows for _, rows in of_step] for _, of_step in itertools.groupby(trainer.__dict__["seen"], lambda one: one[0])
    ]
    return steps, [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(("pairs", "dpo"), PLANS)
def test_every_step_is_the_trainers(
    pairs: int, dpo: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(**dpo)
    steps, logged = trained(pairs, cfg, tmp_path)
    total = planned_steps(pairs, cfg)
    assert total == len(steps) == len(logged)
    assert list(itertools.islice(micro_batches(pairs, cfg), total)) == steps
    assert [epochs_done(step, pairs, cfg) for step in range(1, total + 1)] == pytest.approx(
        [row["epoch"] for row in logged], abs=1e-12
    )
    assert [learning_rate(step, total, cfg) for step in range(total)] == pytest.approx(
        [row["learning_rate"] for row in logged], rel=1e-12, abs=1e-18
    )


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_every_rate_is_that_of_transformers_schedule(schedule: Schedule, warmup: float, total: int) -> None:
    cfg = config(lr_scheduler=schedule, warmup_ratio=warmup, learning_rate=1.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    steps = TrainingArguments(warmup_steps=warmup, use_cpu=True).get_warmup_steps(total)
    scheduler = get_scheduler(schedule.name, optimizer, num_warmup_steps=steps, num_training_steps=total)
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [learning_rate(step, total, cfg) for step in range(total)] == pytest.approx(rates, rel=1e-12, abs=1e-15)


def test_the_first_rates_by_hand() -> None:
    linear = config(learning_rate=1.0)
    assert [learning_rate(step, 4, linear) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    warm = config(learning_rate=1.0, warmup_ratio=0.5)
    assert [learning_rate(step, 4, warm) for step in range(4)] == [0.0, 0.5, 1.0, 0.5]
    cosine = config(learning_rate=1.0, lr_scheduler=Schedule.cosine)
    assert [learning_rate(step, 4, cosine) for step in (0, 2)] == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize(("pairs", "dpo"), PLANS)
def test_the_order_can_be_taken_up_at_any_step(pairs: int, dpo: dict[str, Any]) -> None:
    """As a training from a checkpoint does."""
    cfg = config(**dpo)
    whole = list(itertools.islice(micro_batches(pairs, cfg), 12))
    for first in range(12):
        assert list(itertools.islice(micro_batches(pairs, cfg, first), 12 - first)) == whole[first:]


def test_an_epoch_takes_every_pair_once_and_the_next_in_another_order() -> None:
    cfg = config(batch_size=4, gradient_accumulation_steps=2)
    assert steps_per_epoch(10, cfg) == 2
    steps = list(itertools.islice(micro_batches(10, cfg), 4))
    assert [[len(batch) for batch in step] for step in steps] == [[4, 4], [2], [4, 4], [2]]
    first, second = (
        [row for step in of_epoch for batch in step for row in batch] for of_epoch in (steps[:2], steps[2:])
    )
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
