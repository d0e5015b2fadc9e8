"""Continuations, and retention: the negative log-likelihood of a neutral text."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from factdpo import console

if TYPE_CHECKING:
    from factdpo.models.base import Base

NEUTRAL = Path(__file__).parents[1] / "data" / "neutral.txt"
NEUTRAL_TOKENS = 128  # tokens per row of the neutral text


@torch.no_grad()
def retention_nats_per_token(model: nn.Module, base: "Base", runs: int = 1) -> list[float]:
    """Retention: mean negative log-likelihood per token of the package's neutral text; rises as English is forgotten.

    `model` is the base or has its tokenizer. One number per run, for a model that takes the rows of `runs` runs one
    after the other; not finite if it diverged.
    """
    (ids,) = base.encoder.encode([NEUTRAL.read_text(encoding="utf-8")])
    length = min(NEUTRAL_TOKENS, base.encoder.longest)
    device = next(model.parameters()).device
    total, count = torch.zeros(runs, dtype=torch.float64), 0
    with console.stage("reading the neutral text", total=len(ids) - 1) as advance:
        for start in range(0, len(ids) - 1, length):
            row = torch.tensor(ids[start : start + length + 1], device=device)
            logits = model(input_ids=row[:-1].repeat(runs, 1), use_cache=False).logits.float()
            losses = nn.functional.cross_entropy(logits.mT, row[1:].repeat(runs, 1), reduction="none")
            total += losses.double().sum(1).cpu()
            count += len(row) - 1
            advance(len(row) - 1)
    return (total / count).tolist()


@torch.no_grad()
def continuations(
    model: Any, base: "Base", prompts: list[list[int]], max_new_tokens: int, temperature: float | None = None
) -> list[str]:
    """The model's continuation of each prompt (token ids), without the prompt; one batch, padded on the left.

    Greedy: the most probable token each time; with a temperature drawn from all tokens, by torch's own generator.
    Nothing of the model's own generation config is used (beams, a repetition penalty, top_k).
    Of a prompt that leaves no room for `max_new_tokens`, the beginning is cut off.
    """
    if not prompts:
        return []
    room = base.encoder.longest - max_new_tokens
    rows = [prompt[-room:] for prompt in prompts]
    longest, device = max(map(len, rows)), next(model.parameters()).device
    pad = base.tokenizer.pad_token_id or 0  # any will do: it is masked
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with console.stage(f"continuing {len(prompts)} prompts"), _plain(model):
        out = model.generate(
            input_ids=torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device),
            attention_mask=torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device),
            max_new_tokens=max_new_tokens,
            **({"do_sample": False} if temperature is None else drawn),
            pad_token_id=pad,
        )
    return base.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)


@contextmanager
def _plain(model: Any) -> Iterator[None]:
    """The model's generation config is one that knows nothing but its special tokens."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = inner.generation_config
    special = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id")}
    inner.generation_config = type(own)(**special)
    try:
        yield
    finally:
        inner.generation_config = own
