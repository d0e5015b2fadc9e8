"""Engine "trl": TRL's DPOTrainer with PEFT, given ready token ids and reference log-probs."""

import os
import tempfile
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from factdpo import signals
from factdpo.config.schema import Config, ConfigError, Method
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.models.scoring import PairLogps, pair_logps
from factdpo.training import adapters, sanity_checks
from factdpo.training.engine import Ended, Member, Trained


def fit(base: Base, members: list[Member]) -> Generator[Ended, None, None]:
    """Train one member, and yield it with its weights or with what ended it (Diverged, a failed sanity check, ...).

    `base.model` is changed: load it anew afterwards. Raises ValueError for more members, which would need a base each.
    """
    (member,) = members
    member.start()
    ending = [_ending(base, member)]
    del base  # it is changed, and its memory is needed for a fresh one
    yield [(member, ending.pop())]


def _ending(base: Base, member: Member) -> Trained | Exception:
    try:
        return _train(base, member)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # which hold the changed model
        return error


def _train(base: Base, member: Member) -> Trained:
    started, cfg = time.monotonic(), member.cfg
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)
    base.model.requires_grad_(cfg.lora.method is Method.full)
    with tempfile.TemporaryDirectory() as scratch:  # TRL insists on an output folder; nothing of it is kept
        trainer = _PairsTrainer(
            model=base.model,
            args=_arguments(cfg, base, scratch),
            train_dataset=_dataset(member.pairs, member.refs),
            processing_class=base.tokenizer,
            peft_config=adapters.lora_config(cfg, base) if cfg.lora.method is Method.lora else None,
        )
        trainer.remove_callback(PrinterCallback)
        watch = _Watch(member, trainer, started)
        trainer.add_callback(watch)
        with signals.released():  # TRL keeps no checkpoint: a signal need not wait for one
            trainer.train()
        sanity_checks.check_end(watch.canaries)
    model: Any = trainer.model
    with _without_autocast(model):
        probe = pair_logps(model, member.pairs.take(adapters.PROBE_PAIRS), cfg.eval.batch_size)
    facts = {
        "steps": trainer.state.global_step,
        "trainable_parameters": watch.trainable,
        "train_seconds": time.monotonic() - started,
        "peak_gib": adapters.peak_gib(base.device),
        "trained_together": 1,
        "canaries": watch.canaries,
    }
    return Trained(_Weights(model), facts, probe, "adapter" if cfg.lora.method is Method.lora else "model")


class _Weights:
    """An adapter or a whole model as the Trainer holds it."""

    def __init__(self, model: Any):
        self.model = model

    def save(self, folder: Path) -> None:
        # PEFT would ask the hub whether the vocabulary was changed; no embedding is ever trained here.
        self.model.save_pretrained(folder, **({"save_embedding_layers": False} if folder.name == "adapter" else {}))
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's blank model card, with a path of this machine


class _Arguments(DPOConfig):
    """A run has one GPU: with more in sight the Trainer would multiply the batch."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


class _PairsTrainer(DPOTrainer):
    """DPOTrainer that takes token ids and reference log-probs as they are: TRL would tokenise strings its own way."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:  # type: ignore[override]
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:  # type: ignore[override]
        return dataset


class _Watch(TrainerCallback):
    """Hands on every row of the history, runs the canary checks, and evaluates as eval.every says."""

    def __init__(self, member: Member, trainer: DPOTrainer, started: float):
        self.member, self.cfg, self.trainer, self.started = member, member.cfg, trainer, started
        self.canaries: dict[str, Any] = {}
        self.parameters = [p for p in trainer.model.parameters() if p.requires_grad]  # type: ignore[union-attr]
        self.trainable = sum(p.numel() for p in self.parameters)
        if self.trainable == 0:
            raise sanity_checks.SanityCheckError(
                f"lora.target_modules={member.cfg.lora.target_modules}: nothing is trainable"
            )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "weights_changed_at_step" not in self.canaries and kwargs["optimizer"].param_groups[0]["lr"] > 0:
            self.before = [p.detach().clone() for p in self.parameters]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (before := self.__dict__.pop("before", None)) is None:
            return
        if all(torch.equal(old, new) for old, new in zip(before, self.parameters, strict=True)):
            raise sanity_checks.SanityCheckError(sanity_checks.NOTHING_CHANGED)
        self.canaries["weights_changed_at_step"] = state.global_step + 1

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return  # the trainer's closing summary
        row = {"step": state.global_step, **logs, "time_seconds": time.monotonic() - self.started}
        self.member.record(row)
        sanity_checks.check_finite(row)
        if state.global_step == 1:  # logged whatever log_every is
            router_loss = self.trainer.router_aux_loss_coef * logs.get("aux_loss", 0.0)
            self.canaries |= sanity_checks.check_first_step(self.cfg, row, router_loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_log = True  # the last steps, when log_every does not divide their number
        every = self.cfg.eval.every
        if every.isdigit() and state.global_step % int(every) == 0:
            self._evaluate(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.cfg.eval.every == "epoch":
            self._evaluate(state)

    def _evaluate(self, state: Any) -> None:
        model: Any = self.trainer.model
        curves, size = self.member.curves.items(), self.cfg.eval.batch_size
        with _without_autocast(model):
            scores = self.member.describe({name: pair_logps(model, pairs, size) for name, pairs in curves})
        seconds = time.monotonic() - self.started
        self.member.record({"step": state.global_step, "epoch": state.epoch, **scores, "time_seconds": seconds})


@contextmanager
def _without_autocast(model: nn.Module) -> Iterator[None]:
    """Score in the weights' own dtype: with bf16, accelerate has wrapped `forward` in autocast for the training."""
    in_training = model.forward
    model.forward = MethodType(type(model).forward, model)
    try:
        yield
    finally:
        if in_training == model.forward:  # it was the class's own: as an attribute it would tie a knot
            del model.forward
        else:
            model.forward = in_training


def _dataset(pairs: Pairs, refs: PairLogps) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": pairs.prompt_ids,
            "chosen_ids": pairs.chosen_ids,
            "rejected_ids": pairs.rejected_ids,
            "ref_chosen_logps": refs.chosen.tolist(),
            "ref_rejected_logps": refs.rejected.tolist(),
        }
    )


def _arguments(cfg: Config, base: Base, scratch: str) -> DPOConfig:
    """TRL's arguments for our config; what we do not name keeps TRL's default."""
    c = cfg.dpo
    if (mixed := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        raise ConfigError(f"ACCELERATE_MIXED_PRECISION={mixed}: would train in it unseen; unset it, use dpo.bf16=true")
    return _Arguments(
        output_dir=scratch,
        # the loss
        loss_type=[loss.name for loss in c.loss],
        loss_weights=c.loss_weights,
        beta=c.beta,
        label_smoothing=c.label_smoothing,
        f_divergence_type=c.f_divergence.name,
        f_alpha_divergence_coef=c.f_alpha,
        discopop_tau=c.discopop_tau,
        ld_alpha=c.ld_alpha,
        use_weighting=c.wpo,
        # the optimizer
        num_train_epochs=c.epochs or 1.0,
        max_steps=c.max_steps or -1,
        per_device_train_batch_size=c.batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps,
        learning_rate=c.learning_rate,
        lr_scheduler_type=c.lr_scheduler.name,
        warmup_steps=c.warmup_ratio,  # below 1 it is a share of the steps
        max_grad_norm=c.max_grad_norm,
        weight_decay=c.weight_decay,
        adam_beta1=c.adam_beta1,
        adam_beta2=c.adam_beta2,
        adam_epsilon=c.adam_epsilon,
        seed=c.seed,
        # D4: TRL's default sets LoRA's dropout to 0 with the rest. The base's own is 0 already (model.load_base).
        disable_dropout=cfg.lora.dropout == 0,
        # The data is ready: nothing is cut, the reference is there; but LD-DPO weighs the reference's tokens too.
        max_length=None,
        precompute_ref_log_probs=c.ld_alpha is None,
        # the machine
        use_cpu=base.device.type == "cpu",
        bf16=c.bf16,
        gradient_checkpointing=c.gradient_checkpointing,
        dataloader_pin_memory=base.device.type == "cuda",
        # the record is ours
        report_to=[],
        save_strategy="no",
        logging_steps=float(cfg.track.log_every),  # as TRL declares it; a whole number of steps
        logging_first_step=True,  # the canary's
        logging_nan_inf_filter=False,  # HF's default logs a NaN loss as 0
        disable_tqdm=True,
    )
