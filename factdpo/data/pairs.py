"""Tokenises facts, checks the boundary between prompt and answer (D1), and collates batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from factdpo.config.schema import Boundary, ConfigError, DataConfig
from factdpo.data.facts import Fact


@dataclass(frozen=True)
class Pairs:
    """The token ids of one split: N prompts, each with its chosen and rejected completion, and their facts."""

    facts: list[Fact]
    prompt_ids: list[list[int]]
    chosen_ids: list[list[int]]
    rejected_ids: list[list[int]]
    pad_id: int

    def __len__(self) -> int:
        return len(self.facts)

    def take(self, count: int) -> "Pairs":
        """The first `count` pairs, a random sample since the order is random."""
        return Pairs(
            self.facts[:count],
            self.prompt_ids[:count],
            self.chosen_ids[:count],
            self.rejected_ids[:count],
            self.pad_id,
        )


def join(parts: list[Pairs]) -> Pairs:
    """The parts concatenated."""
    return Pairs(
        [fact for part in parts for fact in part.facts],
        [ids for part in parts for ids in part.prompt_ids],
        [ids for part in parts for ids in part.chosen_ids],
        [ids for part in parts for ids in part.rejected_ids],
        parts[0].pad_id,
    )


class Batch(NamedTuple):
    """B pairs as 2B padded rows, the chosen first. The last `keep` positions hold every completion."""

    ids: Int[Tensor, "2B T"]
    attention: Int[Tensor, "2B T"]
    completion: Bool[Tensor, "2B T"]
    keep: int


def tokenise(
    facts: list[Fact], tokenizer: PreTrainedTokenizerBase, cfg: DataConfig, boundary: Boundary = Boundary.space
) -> Pairs:
    """The token ids of a split: prompt, one space, answer, and EOS if data.eos is set.

    The tokens of the prompt must be a prefix of the tokens of prompt + answer, else training and evaluation would see
    another prompt than the model does. Raises ConfigError with file and line for that, and for a row too long.
    boundary=none reproduces a mistake that TRL makes with strings: no space, and where the prompt's last token merges
    with an answer, the completion starts at the first token that differs.
    """
    if cfg.eos and tokenizer.eos_token_id is None:
        raise ConfigError("data.eos=true: the model's tokenizer has no end-of-text token; leave it at false")
    eos: list[int] = [tokenizer.eos_token_id] if cfg.eos else []  # type: ignore[list-item]
    space = " " if boundary is Boundary.space else ""
    limit = min(cfg.max_length or tokenizer.model_max_length, tokenizer.model_max_length)
    prompts = _encode(tokenizer, [fact.prompt for fact in facts])
    chosen = _encode(tokenizer, [f"{fact.prompt}{space}{fact.chosen}" for fact in facts])
    rejected = _encode(tokenizer, [f"{fact.prompt}{space}{fact.rejected}" for fact in facts])
    # any padding id works: padding is masked and comes last
    pairs = Pairs(facts, [], [], [], pad_id=tokenizer.pad_token_id or 0)  # type: ignore[arg-type]
    for fact, prompt, *rows in zip(facts, prompts, chosen, rejected, strict=True):
        start = min(common_prefix(prompt, row) for row in rows)
        for row, answer in zip(rows, (fact.chosen, fact.rejected), strict=True):
            where = f"{fact.where}: '{fact.prompt}' + '{space}{answer}'"
            if (start < len(prompt) and boundary is Boundary.space) or start in (0, len(row)):
                raise ConfigError(
                    f"{where}: the prompt's tokens {tokenizer.convert_ids_to_tokens(prompt)} are not a prefix of the "
                    f"whole's {tokenizer.convert_ids_to_tokens(row)}; end the prompt where a token ends"
                )
            if len(row) + len(eos) > limit:
                raise ConfigError(
                    f"{where}: {len(row) + len(eos)} tokens, and the limit is {limit} (the model's own, or "
                    "data.max_length if that is less); shorten the row or leave it out"
                )
        pairs.prompt_ids.append(prompt[:start])
        pairs.chosen_ids.append(rows[0][start:] + eos)
        pairs.rejected_ids.append(rows[1][start:] + eos)
    return pairs


def show(pairs: Pairs, tokenizer: PreTrainedTokenizerBase, row: int = 0) -> str:
    """The tokens of one pair as they are trained on, with the boundary marked; a run prints it at its start."""
    columns = (pairs.prompt_ids, pairs.chosen_ids, pairs.rejected_ids)
    prompt, chosen, rejected = (" ".join(repr(tokenizer.decode([i])) for i in column[row]) for column in columns)
    return f"{prompt}  →  {chosen}  not  {rejected}"


def collate(pairs: Pairs, rows: list[int]) -> Batch:
    """The given pairs, padded on the right, which changes no log-probability: padding is masked and comes last."""
    sequences, answers = [], []
    for column in (pairs.chosen_ids, pairs.rejected_ids):
        sequences += [pairs.prompt_ids[i] + column[i] for i in rows]
        answers += [len(column[i]) for i in rows]
    length = max(map(len, sequences))
    ids = torch.full((len(sequences), length), pairs.pad_id)
    attention = torch.zeros((len(sequences), length), dtype=torch.long)
    completion = torch.zeros((len(sequences), length), dtype=torch.bool)
    for i, (row, answer) in enumerate(zip(sequences, answers, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        attention[i, : len(row)] = 1
        completion[i, len(row) - answer : len(row)] = True
    shortest = min(len(row) - answer for row, answer in zip(sequences, answers, strict=True))
    return Batch(ids, attention, completion, keep=length - shortest + 1)


def batches(pairs: Pairs, size: int) -> Iterator[tuple[list[int], Batch]]:
    """(row numbers, batch) over all pairs, sorted by prompt length to keep padding small."""
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs.prompt_ids[i]), i))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, collate(pairs, rows)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts)["input_ids"]  # type: ignore[return-value]


def common_prefix(a: list[int], b: list[int]) -> int:
    """The number of tokens with which both begin."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
