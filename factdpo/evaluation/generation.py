"""Greedy continuations, and retention: the negative log-likelihood of a neutral text."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from factdpo import console

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEUTRAL = Path(__file__).parents[1] / "data" / "neutral.txt"
NEUTRAL_TOKENS = 128  # tokens per row of the neutral text


@torch.no_grad()
def retention_nats_per_token(model: nn.Module, tokenizer: "PreTrainedTokenizerBase", runs: int = 1) -> list[float]:
    """Retention: mean negative log-likelihood per token of the package's neutral text; rises as English is forgotten.

    One number per run, for a model that takes the rows of `runs` runs one after the other; not finite if it diverged.
    """
    ids = tokenizer(NEUTRAL.read_text(encoding="utf-8"))["input_ids"]
    device = next(model.parameters()).device
    total, count = torch.zeros(runs, dtype=torch.float64), 0
    with console.stage("reading the neutral text", total=len(ids) - 1) as advance:
        for start in range(0, len(ids) - 1, NEUTRAL_TOKENS):
            row = torch.tensor(ids[start : start + NEUTRAL_TOKENS + 1], device=device)  # type: ignore[index]
            logits = model(input_ids=row[:-1].repeat(runs, 1), use_cache=False).logits.float()
            losses = nn.functional.cross_entropy(logits.mT, row[1:].repeat(runs, 1), reduction="none")
            total += losses.double().sum(1).cpu()
            count += len(row) - 1
            advance(len(row) - 1)
    return (total / count).tolist()


@torch.no_grad()
def continuations(
    model: Any, tokenizer: "PreTrainedTokenizerBase", prompts: list[str], max_new_tokens: int
) -> list[str]:
    """The model's greedy continuation of each prompt, without the prompt; one batch, padded on the left."""
    if not prompts:
        return []
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    longest, device = max(map(len, ids)), next(model.parameters()).device
    pad = tokenizer.pad_token_id
    with console.stage(f"continuing {len(prompts)} prompts"):
        out = model.generate(
            input_ids=torch.tensor([[pad] * (longest - len(row)) + row for row in ids], device=device),  # type: ignore[operator]
            attention_mask=torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
        )
    return tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
