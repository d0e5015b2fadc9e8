"""The token ids of a split's pairs: made of facts, shown, and collated to batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from factdpo.config.schema import Boundary, ConfigError, DataConfig
from factdpo.data.encoder import Encoder
from factdpo.data.facts import Fact
from factdpo.data.tokens import ROW_TOKENS, encoded_rows, text_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_TOKENS = 40  # of a prompt, its last, in what `show` returns


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
        return self.select(range(min(count, len(self))))

    def select(self, rows: Sequence[int]) -> "Pairs":
        """The pairs with these numbers."""
        columns = (self.facts, self.prompt_ids, self.chosen_ids, self.rejected_ids)
        return Pairs(*([column[row] for row in rows] for column in columns), self.pad_id)  # type: ignore[arg-type]

    def token_ids(self) -> list[tuple[list[int], list[int], list[int]]]:
        """Prompt, chosen and rejected of each pair."""
        return list(zip(self.prompt_ids, self.chosen_ids, self.rejected_ids, strict=True))


def join(parts: list[Pairs]) -> Pairs:
    """The parts concatenated."""
    return Pairs(
        [fact for part in parts for fact in part.facts],
        [ids for part in parts for ids in part.prompt_ids],
        [ids for part in parts for ids in part.chosen_ids],
        [ids for part in parts for ids in part.rejected_ids],
        parts[0].pad_id,
    )


def text_rows(text: str, encoder: Encoder, key: str = "dpo.retain_path") -> Pairs:
    """A text as rows of ROW_TOKENS tokens, each the true answer to the token before it; a last shorter one is left out.

    So its log-probs are computed as those of facts are. Raises ConfigError, with its key, for a text that fills no row.
    """
    ids = text_tokens(text, encoder, key)
    starts = range(0, len(ids) - ROW_TOKENS, ROW_TOKENS)
    rows = [ids[start + 1 : start + 1 + ROW_TOKENS] for start in starts]
    facts = [Fact(number, "", "", "") for number in range(len(rows))]
    return Pairs(facts, [[ids[start]] for start in starts], rows, [row[:1] for row in rows], pad_id=0)


class Batch(NamedTuple):
    """B pairs as 2B padded rows, the chosen first. The last `keep` positions hold every completion."""

    ids: Int[Tensor, "2B T"]
    attention: Int[Tensor, "2B T"]
    completion: Bool[Tensor, "2B T"]
    keep: int


def tokenise(
    facts: list[Fact], tokenizer: "PreTrainedTokenizerBase", cfg: DataConfig, boundary: Boundary = Boundary.space
) -> Pairs:
    """The token ids of a split, as `encoded_rows` makes them.

    Raises ConfigError, with file and line, for a fact that `check_tokens` would have refused or dropped.
    """
    # any padding id works: padding is masked and comes last
    pairs = Pairs(facts, [], [], [], pad_id=tokenizer.pad_token_id or 0)  # type: ignore[arg-type]
    for row in encoded_rows(facts, Encoder.of(tokenizer), cfg, boundary):
        if row.problem:
            raise ConfigError(": ".join(row.problem))
        pairs.prompt_ids.append(row.prompt)
        pairs.chosen_ids.append(row.chosen)
        pairs.rejected_ids.append(row.rejected)
    return pairs


def show(pairs: Pairs, tokenizer: "PreTrainedTokenizerBase", row: int = 0) -> str:
    """The tokens of one pair as they are trained on, with the boundary marked; a run prints it at its start."""
    prompt = pairs.prompt_ids[row]
    first = max(0, len(prompt) - SHOWN_TOKENS)
    before = ("… " if first else "") + " ".join(_pieces(tokenizer, [], prompt[first:]))
    chosen, rejected = (
        " ".join(_pieces(tokenizer, prompt[first:], column[row])) for column in (pairs.chosen_ids, pairs.rejected_ids)
    )
    return f"{before}  →  {chosen}  not  {rejected}"


def _pieces(tokenizer: "PreTrainedTokenizerBase", before: list[int], ids: list[int]) -> list[str]:
    """What each token adds to the text, in quotes; tokens that are a character only together are one piece.

    A token alone is not decoded: SentencePiece's would lose their space, and parts of a character have no text.
    """

    def text(stop: int) -> str:
        return str(tokenizer.decode([*before, *ids[:stop]], clean_up_tokenization_spaces=False))

    pieces, done = [], text(0)
    for stop in range(1, len(ids) + 1):
        whole = text(stop)
        if whole.endswith("\ufffd") and stop < len(ids):
            continue
        pieces.append(repr(whole.removeprefix(done)))
        done = whole
    return pieces


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
