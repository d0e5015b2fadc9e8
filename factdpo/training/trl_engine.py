"""Engine "trl": TRL's trainers with PEFT (trl_trainers.py), one run at a time, and what is watched meanwhile."""

import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import PrinterCallback, TrainerCallback

from factdpo import signals
from factdpo.config.schema import Keep, Method
from factdpo.models.base import Base
from factdpo.models.scoring import pair_logps
from factdpo.training import adapters, sanity_checks
from factdpo.training.engine import Ended, Member, Trained, Weights
from factdpo.training.selection import Selection
from factdpo.training.trl_trainers import Trainer, make_trainer, trained_adapter


def fit(base: Base, members: list[Member]) -> Generator[Ended, None, None]:
    """Train one member in this process; see `fit_by`."""
    yield from fit_by(train, base, members)


def fit_by(train: Callable[[Base, Member], Trained], base: Base, members: list[Member]) -> Generator[Ended, None, None]:
    """Train one member, and yield it with its weights or with what ended it (Diverged, a failed sanity check, ...).

    `base.model` is changed: load it anew afterwards. Raises ValueError for more members, which would need a base each.
    """
    (member,) = members
    member.start()
    ending = [_ending(train, base, member)]
    del base  # it is changed, and its memory is needed for a fresh one
    yield [(member, ending.pop())]


def _ending(train: Callable[[Base, Member], Trained], base: Base, member: Member) -> Trained | Exception:
    try:
        return train(base, member)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # which hold the changed model
        return error


def train(base: Base, member: Member) -> Trained:
    """One training, in this process; of several that train together the first alone scores the curves."""
    started, cfg = time.monotonic(), member.cfg
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)
    base.model.requires_grad_(cfg.lora.method is Method.full)
    with tempfile.TemporaryDirectory() as scratch:  # TRL insists on an output folder; nothing of it is kept
        trainer = make_trainer(base, member, scratch)
        trainer.remove_callback(PrinterCallback)
        watch = _Watch(member, trainer, started)
        trainer.add_callback(watch)
        with signals.released():  # TRL keeps no checkpoint: a signal need not wait for one
            trainer.train()
        sanity_checks.check_end(watch.canaries)
        watch.restore_best()
    model: Any = trainer.model
    with _without_autocast(model):
        probe = pair_logps(model, member.pairs.take(adapters.PROBE_PAIRS), cfg.eval.batch_size)
    facts = {
        **watch.selection.facts(cfg, trainer.state.global_step),
        "trainable_parameters": watch.trainable,
        "train_seconds": time.monotonic() - started,
        "peak_gib": adapters.peak_gib(base.device),
        "trained_together": 1,
        "canaries": watch.canaries,
    }
    if cfg.lora.method is Method.full:
        return Trained(_Weights(model), facts, probe, "model")
    weights: Weights = trained_adapter(model, member.begins_with) if member.begins_with else _Weights(model)
    return Trained(weights, facts, probe)


class _Weights:
    """An adapter or a whole model as the Trainer holds it."""

    def __init__(self, model: Any):
        self.model = model

    def save(self, folder: Path) -> None:
        # PEFT would ask the hub whether the vocabulary was changed; no embedding is ever trained here.
        self.model.save_pretrained(folder, **({"save_embedding_layers": False} if folder.name == "adapter" else {}))
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's blank model card, with a path of this machine


class _Watch(TrainerCallback):
    """Hands on every row of the history, runs the canary checks, and evaluates as eval.every says."""

    def __init__(self, member: Member, trainer: Trainer, started: float):
        self.member, self.cfg, self.trainer, self.started = member, member.cfg, trainer, started
        self.selection = Selection()
        self.best: list[Tensor] = []  # the parameters of selection.best_step, where these may be kept
        self.canaries: dict[str, Any] = {}
        self.changed = True  # whether the first step with a rate above 0 changed anything
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
        pairs = zip(before, self.parameters, strict=True)
        self.changed = not all(torch.equal(old, new) for old, new in pairs)  # judged with its gradient, once logged
        self.canaries["weights_changed_at_step"] = state.global_step + 1

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return  # the trainer's closing summary
        row = {"step": state.global_step, **logs, "time_seconds": time.monotonic() - self.started}
        self.member.record(row)
        sanity_checks.check_finite(row)
        sanity_checks.check_changed(self.changed, row["grad_norm"])
        if state.global_step == 1:  # logged whatever log_every is
            router_loss = self.trainer.router_aux_loss_coef * logs.get("aux_loss", 0.0)
            self.canaries |= sanity_checks.check_first_step(self.member, row, router_loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_log = True  # the last steps, when log_every does not divide their number
        every = self.cfg.eval.every
        if every.isdigit() and state.global_step % int(every) == 0:
            self._evaluate(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.cfg.eval.every == "epoch":
            self._evaluate(state, control)

    def restore_best(self) -> None:
        """Put the weights of the best step back, where they are kept."""
        for parameter, best in zip(self.parameters, self.best, strict=False):  # none without eval.keep=best
            parameter.data.copy_(best)

    def _evaluate(self, state: Any, control: Any) -> None:
        if _is_first():
            self._score(state)
        control.should_training_stop |= _as_the_first(self.selection.stops(self.cfg))

    def _score(self, state: Any) -> None:
        model: Any = self.trainer.model
        curves, size = self.member.curves.items(), self.cfg.eval.batch_size
        with _without_autocast(model):
            scores = self.member.describe({name: pair_logps(model, pairs, size) for name, pairs in curves})
        seconds = time.monotonic() - self.started
        row = {"step": state.global_step, "epoch": state.epoch, **scores, "time_seconds": seconds}
        self.member.record(row)
        if self.selection.judge(self.cfg, row) and self.cfg.eval.keep is Keep.best:
            self.best = [parameter.detach().cpu().clone() for parameter in self.parameters]
        self.member.go_on(row)


def _is_first() -> bool:
    """Whether this process is the only one of its training, or the first."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def _as_the_first(value: bool) -> bool:
    """What the first process of the training has here."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


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
