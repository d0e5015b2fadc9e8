"""Pairs of many runs in one forward: a prompt passes once, several pairs share a row, and no pair sees another.

A pair is a block of tokens `prompt | chosen[:-1] | rejected[:-1]`: an answer's last token predicts nothing. The
rejected part restarts where the prompt ends and does not see the chosen one. For one-token answers the block is the
prompt alone. Every run gets the same number of rows, as full as they go: less is padded than with one row per pair.
"""

import heapq
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from factdpo.pairs import Pairs

ROOM = 64  # tokens that a row aims at: short enough that attention across a row costs little
PAD, PROMPT, CHOSEN, REJECTED = -1, 0, 1, 2


class Packed(NamedTuple):
    """B pairs of each of R runs in rows of T tokens, as many for each run; M positions are predicted from.

    `at`, `token` and `there` say where the log-probs of the answers' tokens are: side 0 is chosen, 1 rejected; A is the
    longest answer; a run with fewer than B pairs has some without any token.
    """

    ids: Int[Tensor, "rows T"]
    positions: Int[Tensor, "rows T"]
    segment: Int[Tensor, "rows T"]  # which pair of its run a token belongs to; -1 is padding
    part: Int[Tensor, "rows T"]  # PROMPT, CHOSEN or REJECTED
    rank: Int[Tensor, "rows T"]  # a token's number among its run's, in the order of the pairs; padding has the last
    head: Int[Tensor, " M"]  # positions to predict from, in the flattened rows
    at: Int[Tensor, "2 R B A"]  # which of the M predicts the token
    token: Int[Tensor, "2 R B A"]
    there: Bool[Tensor, "2 R B A"]

    def to(self, device: torch.device) -> "Packed":
        return Packed(*(tensor.to(device, non_blocking=True) for tensor in self))

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "rows 1 T T"]:
        """What attention adds: 0 where a token sees another (its own pair's prompt and part, up to itself)."""
        t = self.ids.shape[1]
        seen_part = (self.part[:, None, :] == PROMPT) | (self.part[:, None, :] == self.part[:, :, None])
        sees = (self.segment[:, :, None] == self.segment[:, None, :]) & seen_part
        sees = sees & torch.ones(t, t, dtype=torch.bool, device=sees.device).tril()
        zero = torch.zeros((), dtype=dtype, device=sees.device)
        return torch.where(sees, zero, torch.finfo(dtype).min)[:, None]


def block_length(pairs: Pairs, row: int) -> int:
    """Tokens of a pair's block."""
    return len(pairs.prompt_ids[row]) + len(pairs.chosen_ids[row]) + len(pairs.rejected_ids[row]) - 2


def pack(runs: list[tuple[Pairs, list[int]]]) -> Packed:
    """The given rows of each run's pairs; on the CPU."""
    lengths = [[block_length(pairs, row) for row in rows] for pairs, rows in runs]
    most = max(len(rows) for _, rows in runs)
    rows_each = max(1, min(most, round(max(sum(of_run) for of_run in lengths) / ROOM)))
    placed = [_place(of_run, rows_each) for of_run in lengths]
    width = max(end for of_run in placed for _, _, end in of_run)
    count = len(runs) * rows_each
    ids, positions, part = ([[0] * width for _ in range(count)] for _ in range(3))
    segment = [[PAD] * width for _ in range(count)]
    rank = [[sum(lengths[row // rows_each])] * width for row in range(count)]
    head: list[int] = []
    answers: list[list[list[list[tuple[int, int]]]]] = [[[[] for _ in range(most)] for _ in runs] for _ in range(2)]
    for run, (pairs, rows) in enumerate(runs):
        before = 0
        for number, (pair, (bin_number, start, end)) in enumerate(zip(rows, placed[run], strict=True)):
            prompt, chosen, rejected = pairs.prompt_ids[pair], pairs.chosen_ids[pair], pairs.rejected_ids[pair]
            p, c, r = len(prompt), len(chosen) - 1, len(rejected) - 1
            row = run * rows_each + bin_number
            ids[row][start:end] = [*prompt, *chosen[:-1], *rejected[:-1]]
            positions[row][start:end] = [*range(p + c), *range(p, p + r)]
            part[row][start:end] = [PROMPT] * p + [CHOSEN] * c + [REJECTED] * r
            segment[row][start:end] = [number] * (end - start)
            rank[row][start:end] = range(before, before + end - start)
            before += end - start
            first, at_prompt = len(head), row * width + start + p - 1
            head.extend(range(at_prompt, at_prompt + 1 + c + r))
            answers[0][run][number] = list(zip(range(first, first + 1 + c), chosen, strict=True))
            answers[1][run][number] = list(
                zip([first, *range(first + 1 + c, first + 1 + c + r)], rejected, strict=True)
            )
    longest = max(len(answer) for side in answers for of_run in side for answer in of_run)
    filled = torch.tensor(
        [[[answer + [(0, -1)] * (longest - len(answer)) for answer in of_run] for of_run in side] for side in answers]
    )
    at, token = filled.unbind(-1)
    return Packed(
        torch.tensor(ids),
        torch.tensor(positions),
        torch.tensor(segment),
        torch.tensor(part),
        torch.tensor(rank),
        torch.tensor(head),
        at,
        token.clamp(min=0),
        token >= 0,
    )


def _place(lengths: list[int], rows: int) -> list[tuple[int, int, int]]:
    """(row, start, end) of each block: the longest first, each into the row that is emptiest."""
    filled = [(0, row) for row in range(rows)]
    places = [(0, 0, 0)] * len(lengths)
    for block in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        start, row = heapq.heappop(filled)
        end = start + lengths[block]
        places[block] = (row, start, end)
        heapq.heappush(filled, (end, row))
    return places
