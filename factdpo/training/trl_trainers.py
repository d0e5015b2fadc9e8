"""TRL's DPOTrainer and SFTTrainer, given ready token ids and reference log-probs, and their arguments."""

import os
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import set_seed
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from factdpo.config.schema import Config, ConfigError, Method, MethodName
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.models.scoring import PairLogps
from factdpo.training import adapters
from factdpo.training.batched.adapter import Adapter, adapter_of, read_adapter
from factdpo.training.engine import Member
from factdpo.training.schedule import retained_rows

PATIENCE_SECONDS = 86_400  # that processes of one training may wait for another, which scores
SFT = "sft"  # PEFT's name of the frozen adapter under the trained one


def make_trainer(base: Base, member: Member, scratch: str) -> "Trainer":
    """The trainer of a member; training changes `base.model`. TRL insists on an output folder: `scratch`."""
    cfg = member.cfg
    model, peft_config = base.model, None
    if member.begins_with and cfg.lora.method is Method.full:
        model = adapters.load_trained(base, member.begins_with).requires_grad_(True)  # type: ignore[assignment]
    elif member.begins_with:
        model = _with_two_adapters(base, cfg, member.begins_with)
    elif cfg.lora.method is Method.lora:
        peft_config = adapters.lora_config(cfg, base)
    options: dict[str, Any] = {"model": model, "processing_class": base.tokenizer, "peft_config": peft_config}
    trainer: Trainer
    if cfg.method.name is MethodName.sft:
        options["train_dataset"] = _answers(member.pairs)
        trainer = _AnswersTrainer(args=_sft_arguments(cfg, base, scratch), **options)
    else:
        options["train_dataset"] = _dataset(member.pairs, member.refs)
        trainer = _PairsTrainer(args=_dpo_arguments(cfg, base, scratch), **options)
    trainer.retain(member)
    return trainer


class _Retaining:
    """Adds to a trainer's loss the neutral text's, dpo.retain_weight times its nats per token."""

    state: Any
    _metrics: Any
    current_gradient_accumulation_steps: int
    _text = torch.empty(0, dtype=torch.long)  # [rows, tokens]

    def retain(self, member: Member) -> None:
        self._cfg, text = member.cfg.dpo, member.retained
        rows = [] if text is None else [p + c for p, c in zip(text.prompt_ids, text.chosen_ids, strict=True)]
        self._text = torch.tensor(rows, dtype=torch.long)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        if len(self._text) == 0:
            return loss
        rows = next(retained_rows(0, len(self._text), self._cfg, self.state.global_step))
        ids = self._text[rows].to(next(model.parameters()).device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        nats = nn.functional.cross_entropy(logits.mT, ids[:, 1:])
        self._metrics["train"]["retain_nats_per_token"].append(nats.item())
        # With `num_items_in_batch` the Trainer leaves the mean over accumulated batches to the loss.
        shares = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        return loss + self._cfg.retain_weight * nats / shares


class _PairsTrainer(_Retaining, DPOTrainer):
    """DPOTrainer that takes token ids and reference log-probs as they are: TRL would tokenise strings its own way."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:  # type: ignore[override]
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:  # type: ignore[override]
        return dataset


class _AnswersTrainer(_Retaining, SFTTrainer):
    """SFTTrainer, whose data are token ids with labels."""


Trainer = _PairsTrainer | _AnswersTrainer


def _with_two_adapters(base: Base, cfg: Config, begins_with: Path) -> PeftModel:
    """A fresh adapter to train and, under it and frozen, the one in `begins_with`; both are active."""
    set_seed(cfg.dpo.seed)  # as the trainers do before they build an adapter
    model = cast(PeftModel, get_peft_model(base.model, adapters.lora_config(cfg, base)))  # type: ignore[arg-type]
    model.load_adapter(str(begins_with / "adapter"), SFT)
    cast(Any, model.base_model).set_adapter(["default", SFT])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name and ".default." in name)
    for module in model.modules():
        if isinstance(module, LoraLayer) and SFT in module.lora_dropout:
            module.lora_dropout[SFT] = nn.Identity()
    return model


def trained_adapter(model: PeftModel, begins_with: Path) -> Adapter:
    """What such a model computes, as one adapter."""
    return adapter_of(model, "default").on_top_of(read_adapter(begins_with / "adapter"))


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


def _answers(pairs: Pairs) -> Dataset:
    """Prompt and true answer; the loss is over the answer, whose labels are not -100."""
    both = list(zip(pairs.prompt_ids, pairs.chosen_ids, strict=True))
    return Dataset.from_dict(
        {
            "input_ids": [prompt + chosen for prompt, chosen in both],
            "labels": [[-100] * len(prompt) + chosen for prompt, chosen in both],
        }
    )


class _OneGpu:
    """A run has one GPU: with more in sight the Trainer would multiply the batch."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)  # type: ignore[misc]


class _DPOArguments(_OneGpu, DPOConfig):
    pass


class _SFTArguments(_OneGpu, SFTConfig):
    pass


def _sft_arguments(cfg: Config, base: Base, scratch: str) -> SFTConfig:
    return _SFTArguments(**_arguments(cfg, base, scratch), dataset_kwargs={"skip_prepare_dataset": True})


def _dpo_arguments(cfg: Config, base: Base, scratch: str) -> DPOConfig:
    c = cfg.dpo
    return _DPOArguments(
        **_arguments(cfg, base, scratch),
        loss_type=[loss.name for loss in c.loss],
        loss_weights=c.loss_weights,
        beta=c.beta,
        label_smoothing=c.label_smoothing,
        f_divergence_type=c.f_divergence.name,
        f_alpha_divergence_coef=c.f_alpha,
        discopop_tau=c.discopop_tau,
        ld_alpha=c.ld_alpha,
        use_weighting=c.wpo,
        # D4: TRL's default sets LoRA's dropout to 0 with the rest. The base's own is 0 already (model.load_base).
        disable_dropout=cfg.lora.dropout == 0,
        # The reference is there; but LD-DPO weighs the reference's tokens too.
        precompute_ref_log_probs=c.ld_alpha is None,
    )


def _arguments(cfg: Config, base: Base, scratch: str) -> dict[str, Any]:
    """What both trainers take; what we do not name keeps TRL's default."""
    c = cfg.dpo
    if (mixed := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        raise ConfigError(f"ACCELERATE_MIXED_PRECISION={mixed}: would train in it unseen; unset it, use dpo.bf16=true")
    return {
        "output_dir": scratch,
        # the optimizer
        "num_train_epochs": c.epochs or 1.0,
        "max_steps": c.max_steps or -1,
        "per_device_train_batch_size": c.batch_size // cfg.engine.processes,
        "gradient_accumulation_steps": c.gradient_accumulation_steps,
        "learning_rate": c.learning_rate,
        "lr_scheduler_type": c.lr_scheduler.name,
        "warmup_steps": c.warmup_ratio,  # below 1 it is a share of the steps
        "max_grad_norm": c.max_grad_norm,
        "weight_decay": c.weight_decay,
        "adam_beta1": c.adam_beta1,
        "adam_beta2": c.adam_beta2,
        "adam_epsilon": c.adam_epsilon,
        "seed": c.seed,
        "max_length": None,  # the data is ready: nothing is cut
        # the machine
        "use_cpu": base.device.type == "cpu",
        "bf16": c.bf16,
        "gradient_checkpointing": c.gradient_checkpointing,
        "ddp_timeout": PATIENCE_SECONDS,
        "dataloader_pin_memory": base.device.type == "cuda",
        # the record is ours
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": float(cfg.track.log_every),  # as TRL declares it; a whole number of steps
        "logging_first_step": True,  # the canary's
        "logging_nan_inf_filter": False,  # HF's default logs a NaN loss as 0
        "disable_tqdm": True,
    }
