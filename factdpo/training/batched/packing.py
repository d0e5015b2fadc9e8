"""Pairs of many runs in one forward: a prompt passes once, several pairs share a row, and no pair sees another.

A pair is a block of tokens `prompt | chosen[:-1] | rejected[:-1]`: an answer's last token predicts nothing. The
rejected part restarts where the prompt ends and does not see the chosen one. For one-token answers the block is the
prompt alone. In scoring, prompts that begin alike share that too. So a row is a forest of tokens, each of which sees
itself and what it comes from. Every run gets the same number of rows, as full as they go: less is padded than with one
row per pair.
"""

import heapq
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from factdpo.data.pairs import Pairs, common_prefix

ROOM = 64  # tokens that a row aims at: short enough that attention across a row costs little


class Packed(NamedTuple):
    """B pairs of each of R runs in rows of T tokens, as many for each run; each predicts from H of its positions.

    `at`, `token` and `there` say where the log-probs of the answers' tokens are: side 0 is chosen, 1 rejected; A is the
    longest answer; a run with fewer than B pairs has some without any token.
    """

    ids: Int[Tensor, "rows T"]
    positions: Int[Tensor, "rows T"]
    end: Int[Tensor, "rows T"]  # a token is seen by itself and what follows it up to here; padding is last
    rank: Int[Tensor, "rows T"]  # a token's number among its run's, in the order of the pairs; padding has the last
    head: Int[Tensor, "R H"]  # positions to predict from, in the flattened rows; a run with fewer has one of no use
    at: Int[Tensor, "2 R B A"]  # which of the R * H predicts the token
    token: Int[Tensor, "2 R B A"]
    there: Bool[Tensor, "2 R B A"]

    def to(self, device: torch.device) -> "Packed":
        return Packed(*(tensor.to(device, non_blocking=True) for tensor in self))

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "rows 1 T T"]:
        """What attention adds: 0 where a token sees another (its own pair's prompt and part, up to itself)."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        sees = (place <= place[:, None]) & (place[:, None] < self.end[:, None, :])
        zero = torch.zeros((), dtype=dtype, device=sees.device)
        return torch.where(sees, zero, torch.finfo(dtype).min)[:, None]


def block_length(pairs: Pairs, row: int) -> int:
    """Tokens of a pair's block."""
    return len(pairs.prompt_ids[row]) + len(pairs.chosen_ids[row]) + len(pairs.rejected_ids[row]) - 2


def shared_lengths(pairs: Pairs, rows: list[int]) -> list[int]:
    """Tokens of each block that are its own, if each shares what its prompt begins with with the one before it."""
    prompts = [[], *(pairs.prompt_ids[row] for row in rows)]
    return [
        block_length(pairs, row) - common_prefix(before, prompt)
        for row, before, prompt in zip(rows, prompts, prompts[1:], strict=False)
    ]


def pack(runs: list[tuple[Pairs, list[int]]], share: bool = False) -> Packed:
    """The given rows of each run's pairs; on the CPU.

    With `share`, what a prompt begins with is not repeated where the pair before it begins alike: for pairs sorted by
    their prompts, and never under dropout, which is drawn for each pair apart.
    """
    lengths = [
        shared_lengths(pairs, rows) if share else [block_length(pairs, row) for row in rows] for pairs, rows in runs
    ]
    most = max(map(len, lengths))
    rows_each = max(1, min(most, round(max(map(sum, lengths)) / ROOM)))
    lines = [line for of_run in lengths for line in (_in_order if share else _evenly)(of_run, rows_each)]
    ids, positions, end, rank = ([[] for _ in lines] for _ in range(4))
    head: list[list[tuple[int, int]]] = [[] for _ in runs]  # line and column
    answers: list[list[list[list[tuple[int, int]]]]] = [[[[] for _ in range(most)] for _ in runs] for _ in range(2)]
    for line, blocks in enumerate(lines):
        run = line // rows_each
        pairs, rows = runs[run]
        before, path = [], []  # the last prompt of the line, and the columns of its tokens
        for block in blocks:
            row = rows[block]
            prompt, chosen, rejected = pairs.prompt_ids[row], pairs.chosen_ids[row], pairs.rejected_ids[row]
            same = common_prefix(before, prompt) if share else 0
            p, c, r, start = len(prompt), len(chosen) - 1, len(rejected) - 1, len(ids[line])
            answer = start + p - same
            stop = answer + c + r
            ids[line] += [*prompt[same:], *chosen[:-1], *rejected[:-1]]
            positions[line] += [*range(same, p + c), *range(p, p + r)]
            end[line] += [stop] * (p - same) + [answer + c] * c + [stop] * r
            rank[line] += range(first := sum(lengths[run][:block]), first + stop - start)
            before, path = prompt, path[:same] + list(range(start, answer))
            for column in path[:same]:
                end[line][column] = stop
            first = len(head[run])
            head[run] += [(line, column) for column in (path[-1], *range(answer, stop))]
            answers[0][run][block] = list(zip(range(first, first + 1 + c), chosen, strict=True))
            answers[1][run][block] = list(zip([first, *range(first + 1 + c, first + 1 + c + r)], rejected, strict=True))
    width = max(map(len, ids))
    for line, row in enumerate(ids):
        padding = width - len(row)
        row += [0] * padding
        positions[line] += [0] * padding
        end[line] += [width] * padding
        rank[line] += [sum(lengths[line // rows_each])] * padding
    heads = max(map(len, head))
    for run, places in enumerate(head):
        if len(places) == heads:
            continue
        free = {(run * rows_each + i // width, i % width) for i in range(rows_each * width)} - set(places)
        places += [min(free, default=(run * rows_each, 0))] * (heads - len(places))
    longest = max(len(answer) for side in answers for of_run in side for answer in of_run)
    filled = torch.tensor(
        [[[answer + [(0, -1)] * (longest - len(answer)) for answer in of_run] for of_run in side] for side in answers]
    )
    at, token = filled.unbind(-1)
    at = at + heads * torch.arange(len(runs))[:, None, None]
    return Packed(
        torch.tensor(ids),
        torch.tensor(positions),
        torch.tensor(end),
        torch.tensor(rank),
        torch.tensor([[line * width + column for line, column in places] for places in head]),
        at,
        token.clamp(min=0),
        token >= 0,
    )


def _evenly(lengths: list[int], rows: int) -> list[list[int]]:
    """The blocks of each row: the longest first, each into the row that is emptiest."""
    placed: list[list[int]] = [[] for _ in range(rows)]
    filled = [(0, row) for row in range(rows)]
    for block in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        taken, row = heapq.heappop(filled)
        placed[row].append(block)
        heapq.heappush(filled, (taken + lengths[block], row))
    return placed


def _in_order(lengths: list[int], rows: int) -> list[list[int]]:
    """The blocks of each row: one after the other, in rows of like length."""
    placed: list[list[int]] = [[] for _ in range(rows)]
    total, done = max(1, sum(lengths)), 0
    for block, length in enumerate(lengths):
        placed[min(rows - 1, (2 * done + length) * rows // (2 * total))].append(block)
        done += length
    return placed
