"""The size of a cohort: limited by memory, which is measured on the base, and by the tokens of a forward."""

import dataclasses
import logging
from pathlib import Path
from typing import cast

import psutil
import torch
from torch import Tensor, nn

from factdpo.config.schema import Config, Executor, MethodName
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.training.batched.adapter import fresh_adapter
from factdpo.training.batched.packing import block_length, pack
from factdpo.training.batched.routing import router_of
from factdpo.training.batched.stacked_lora import stacked

log = logging.getLogger("factdpo")

TOKENS = {"cpu": 2048}  # per forward: where more is no faster (LOG.md); other devices take TOKENS_ELSEWHERE
TOKENS_ELSEWHERE = 65536
MASTERS = 6  # tensors as large as a run's adapter: masters, gradients (twice), update, and AdamW's two moments
USABLE = 0.8  # of the memory that is free
SCORING = 5  # float32 tensors over the vocabulary at a scoring forward's peak: logits, log-probs, what entropy takes
BACKWARD = 1.5  # a backward's peak against the activations that the forward keeps


def tokens_at_once(cfg: Config, device: torch.device) -> int:
    """Tokens per forward: engine.max_tokens, or a size at which the device is fast."""
    return cfg.engine.max_tokens or TOKENS.get(device.type, TOKENS_ELSEWHERE)


def runs_at_once(base: Base, runs: list[tuple[Config, Pairs]]) -> int:
    """How many of these runs, each with the pairs that its steps pack, can train together; at least 1."""
    if len(runs) == 1:
        return 1
    whole = router_of(base) is not None
    tokens, number, rows = max(_largest_step(cfg, pairs, number, whole) for number, (cfg, pairs) in enumerate(runs))
    cfg, pairs = runs[number]
    # Every run is padded to the highest rank, and gets a mask where any has dropout.
    highest = {"rank": max(stacked_rank(cfg) for cfg, _ in runs), "dropout": max(c.lora.dropout for c, _ in runs)}
    cfg = dataclasses.replace(cfg, lora=dataclasses.replace(cfg.lora, **highest))
    shared, state, activations = bytes_needed(base, cfg, pairs, rows)
    by_memory = int((_usable_bytes(cfg, base) - shared) / (state + BACKWARD * activations))
    by_tokens = tokens_at_once(cfg, base.device) // tokens
    limits = {"runs": len(runs), "tokens per forward": by_tokens, "memory": by_memory}
    if cfg.engine.max_runs is not None:
        limits["engine.max_runs"] = cfg.engine.max_runs
    at_once = max(1, min(limits.values()))
    if at_once < len(runs):
        log.info("%d runs at once, limited by %s", at_once, min(limits, key=lambda name: limits[name]))
    return at_once


def tokens_to_score(cfg: Config, base: Base) -> int:
    """Tokens of a forward that scores, of all runs together: those of `tokens_at_once`, as far as memory allows.

    The largest tensors of it are over the vocabulary, with a row for each token that predicts one of an answer's: at
    most all of them.
    """
    head = cast(nn.Module, base.model.get_output_embeddings())
    by_memory = int(_usable_bytes(cfg, base) / (SCORING * 4 * cast(Tensor, head.weight).shape[0]))
    return max(1, min(tokens_at_once(cfg, base.device), by_memory))


def _usable_bytes(cfg: Config, base: Base) -> float:
    """Of the free memory what this process may fill: workers on one machine have the same."""
    return USABLE * free_bytes(base.device) / (cfg.engine.workers if shares_memory(cfg, base.device) else 1)


def stacked_rank(cfg: Config) -> int:
    """The inner width of a run's adapter in the stack: that of SFT lies under that of DPO."""
    return cfg.lora.rank * (2 if cfg.method.name is MethodName.sft_dpo else 1)


def shares_memory(cfg: Config, device: torch.device) -> bool:
    """Whether the workers of a command all have this memory, and not each its own."""
    return device.type == "cpu" and cfg.engine.executor is Executor.local


def _largest_step(cfg: Config, pairs: Pairs, number: int, whole: bool) -> tuple[int, int, list[int]]:
    """The most tokens that an optimizer step of a run can have, the run's number, and the rows of such a step."""
    size = cfg.dpo.batch_size * cfg.dpo.gradient_accumulation_steps
    size += cfg.dpo.retain_batch_size if cfg.dpo.retain_weight else 0
    rows = sorted(range(len(pairs)), key=lambda row: -block_length(pairs, row))[:size]
    return sum(block_length(pairs, row, whole) for row in rows), number, rows


def bytes_needed(base: Base, cfg: Config, pairs: Pairs, rows: list[int]) -> tuple[int, int, int]:
    """The bytes that all runs share besides the base, those of a run's weights and optimizer, and those that a step of
    these pairs needs: what the forward saves for the backward, which is measured, and what it has in passing."""
    adapter = fresh_adapter(cfg, base)
    saved: dict[int, int] = {}  # address of a storage -> its bytes

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    head, whole = cast(nn.Module, base.model.get_output_embeddings()), router_of(base) is not None
    packed = pack([(pairs, rows)], whole=whole).to(base.device)
    with stacked(base, [adapter], adapter.config.r, cfg.dpo.bf16) as stack:
        for layer in stack.layers.values():
            layer.a, layer.b = layer.a.detach().requires_grad_(), layer.b.detach().requires_grad_()
            if cfg.lora.dropout > 0:
                layer.dropout_mask = save(torch.ones(1, packed.ids.numel(), layer.weight.shape[1], device=base.device))
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            answers = stack.answers(packed, with_routers=whole)
        del answers
        weights = {p.untyped_storage().data_ptr() for p in (*base.model.parameters(), stack.masters)}
        weights |= {layer.in_training[0].untyped_storage().data_ptr() for layer in stack.layers.values()}
        activations = sum(size for address, size in saved.items() if address not in weights)
        # Besides the log-probs over the vocabulary, which are saved, a step has two more of that size at its peak.
        activations += 2 * 4 * packed.head.numel() * cast(Tensor, head.weight).shape[0]
        frozen = [(layer.in_training[0], layer.weight) for layer in stack.layers.values()]
        shared = sum(copy.nbytes for copy, weight in frozen if copy.dtype != weight.dtype)  # of dpo.bf16
        return shared, MASTERS * stack.masters.nbytes, activations


def free_bytes(device: torch.device) -> int:
    """Free memory of the device; on a CPU within the limit of the container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit_file, used_file = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit_file.exists() and used_file.exists() and (limit := limit_file.read_text().strip()).isdigit():
        free = min(free, int(limit) - int(used_file.read_text()))
    return free


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory, of a device or the machine, ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
