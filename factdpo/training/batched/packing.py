"""Pairs of many runs in one forward: a prompt passes once, several pairs share a row, and no pair sees another.

A pair is a block of tokens `prompt | chosen[:-1] | rejected[:-1]`: an answer's last token predicts nothing (with
`whole`, for a router's loss, it is kept). The rejected part restarts where the prompt ends and does not see the
chosen one. For one-token answers the block is the prompt alone. In scoring, prompts that begin alike share that too. So
a row is a forest of tokens, each of which sees itself and what it comes from. Every run gets the same number of rows,
as full as they go: less is padded than with one row per pair.
"""

import heapq
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from factdpo.data.pairs import Pairs
from factdpo.data.tokens import common_prefix

ROOM = 64  # tokens that a row aims at: short enough that attention across a row costs little


class Packed(NamedTuple):
    """B pairs of each of R runs in rows of T tokens, as many rows for each run; each run predicts from H positions.

    `answer_at`, `answer_ids` and `answer_mask` are the answers' tokens: side 0 is chosen, 1 rejected; A is the longest
    answer; a run with fewer than B pairs has some whose mask is all false.
    """

    ids: Int[Tensor, "rows T"]
    positions: Int[Tensor, "rows T"]
    end: Int[Tensor, "rows T"]  # a token is seen by itself and what follows it up to here; padding is last
    token_number: Int[Tensor, "rows T"]  # among its run's tokens, in the order of the pairs; padding has the last one
    head: Int[Tensor, "R H"]  # positions to predict from, in the flattened rows; shorter runs are padded, see _pad_head
    answer_at: Int[Tensor, "2 R B A"]  # which of the R * H positions predicts the token
    answer_ids: Int[Tensor, "2 R B A"]
    answer_mask: Bool[Tensor, "2 R B A"]
    longest: int  # positions that any pair takes

    def to(self, device: torch.device) -> "Packed":
        return self.with_tensors(moved(self.tensors(), device))

    def tensors(self) -> list[Tensor]:
        return list(self[:-1])  # type: ignore[arg-type]

    def with_tensors(self, tensors: list[Tensor]) -> "Packed":
        """The same with these in place of `tensors`, as on another device."""
        return Packed(*tensors, self.longest)  # type: ignore[arg-type]

    def attention_mask(
        self, dtype: torch.dtype, window: int | None = None, chunk: int | None = None
    ) -> Float[Tensor, "rows 1 T T"]:
        """What attention adds: 0 where a token sees another (its own pair's prompt and part, up to itself).

        Of these only the last `window` positions, or those in the same `chunk` of positions, as
        `transformers.masking_utils` has them, which counts in the row.
        """
        column = torch.arange(self.ids.shape[1], device=self.ids.device)
        sees = (column <= column[:, None]) & (column[:, None] < self.end[:, None, :])
        if window is not None:
            sees &= self.positions[:, :, None] - self.positions[:, None, :] < window
        if chunk is not None:
            sees &= self.positions[:, :, None] // chunk == self.positions[:, None, :] // chunk
        zero = torch.zeros((), dtype=dtype, device=sees.device)
        return torch.where(sees, zero, torch.finfo(dtype).min)[:, None]


def moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """These tensors of the CPU on the device, by one copy of their bytes: each copy of its own would make it wait.

    On a GPU the copy is from pinned memory, and so the CPU does not wait for it either.
    """
    if device.type == "cpu":
        return tensors
    largest_first = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())  # so that each is aligned
    parts = [tensors[i].contiguous().view(-1).view(torch.uint8) for i in largest_first]
    whole = torch.cat(parts)
    whole = (whole.pin_memory() if device.type == "cuda" else whole).to(device, non_blocking=True)
    there = dict(zip(largest_first, whole.split([len(part) for part in parts]), strict=True))
    return [there[i].view(tensor.dtype).view(tensor.shape) for i, tensor in enumerate(tensors)]


def block_length(pairs: Pairs, row: int, whole: bool = False) -> int:
    """Tokens of a pair's block."""
    tokens = len(pairs.prompt_ids[row]) + len(pairs.chosen_ids[row]) + len(pairs.rejected_ids[row])
    return tokens if whole else tokens - 2


def shared_lengths(pairs: Pairs, rows: list[int]) -> list[int]:
    """Tokens of each block that are its own, if it shares the beginning of its prompt with the block before it."""
    prompts = [[], *(pairs.prompt_ids[row] for row in rows)]
    return [
        block_length(pairs, row) - common_prefix(before, prompt)
        for row, before, prompt in zip(rows, prompts, prompts[1:], strict=False)
    ]


def pack(
    runs: list[tuple[Pairs, list[int]]],
    share: bool = False,
    rows_each: int | None = None,
    multiple: int = 1,
    whole: bool = False,
) -> Packed:
    """The given rows of each run's pairs, in `rows_each` rows of tokens per run (None: as ROOM says); on the CPU.

    T, H, A and `longest` are rounded up to a `multiple`. With `share`, what a prompt begins with is not repeated where
    the pair before it begins alike: for pairs sorted by their prompts, and never under dropout, which is drawn for each
    pair apart. With `whole`, which does not go with `share`, answers have their last tokens too.
    """
    lengths = [
        shared_lengths(pairs, rows) if share else [block_length(pairs, row, whole) for row in rows]
        for pairs, rows in runs
    ]
    rows_each = rows_each or max(1, min(max(map(len, lengths)), round(max(map(sum, lengths)) / ROOM)))
    distribute = _in_order if share else _evenly
    packed = [
        _pack_run(pairs, rows, of_run, distribute(of_run, rows_each), share, whole)
        for (pairs, rows), of_run in zip(runs, lengths, strict=True)
    ]
    width = _round_up(max(len(row.ids) for run in packed for row in run.rows), multiple)
    for run, of_run in zip(packed, lengths, strict=True):
        for row in run.rows:
            row.pad(width, sum(of_run))
    rows = [row for run in packed for row in run.rows]
    head = _pad_head([run.head for run in packed], rows_each, width, multiple)
    return Packed(
        _tensor([row.ids for row in rows]),
        _tensor([row.positions for row in rows]),
        _tensor([row.end for row in rows]),
        _tensor([row.token_number for row in rows]),
        head,
        *_pad_answers([run.answers for run in packed], head.shape[1], multiple),
        _round_up(1 + max(position for row in rows for position in row.positions), multiple),
    )


def _tensor(nested: list[Any]) -> Tensor:
    """`torch.tensor` of lists of integers, in a fifth of its time."""
    return torch.from_numpy(np.array(nested, np.int64))


Place = tuple[int, int]  # a row of the run and a column
AnswerToken = tuple[int, int]  # the place that predicts it, by its index in the run's head, and the token's id
AnswerPair = tuple[list[AnswerToken], list[AnswerToken]]  # chosen, rejected
NO_TOKEN: AnswerToken = (0, -1)


class _PackedRun(NamedTuple):
    """One run's pairs in rows of different lengths, before they are padded to those of the other runs."""

    rows: list["_Row"]
    head: list[Place]  # to predict from
    answers: list[AnswerPair]  # of each pair


def _pack_run(
    pairs: Pairs, selected: list[int], lengths: list[int], blocks: list[list[int]], share: bool, whole: bool
) -> _PackedRun:
    """Fill one run's rows: `blocks` names, for each row, the blocks in it by their number in `selected`."""
    first_number = [0, *accumulate(lengths)]  # of the tokens before a block
    rows, head = [_Row() for _ in blocks], []
    answers: dict[int, AnswerPair] = {}
    for row, (filled, of_row) in enumerate(zip(rows, blocks, strict=True)):
        for block in of_row:
            pair = selected[block]
            chosen, rejected = pairs.chosen_ids[pair], pairs.rejected_ids[pair]
            columns = filled.add(pairs.prompt_ids[pair], chosen, rejected, first_number[block], share, whole)
            start, rejected_start = len(head), len(head) + len(chosen)
            head += [(row, column) for column in columns]
            answers[block] = (
                list(zip(range(start, rejected_start), chosen, strict=True)),
                list(zip([start, *range(rejected_start, len(head))], rejected, strict=True)),
            )
    return _PackedRun(rows, head, [answers[block] for block in range(len(selected))])


class _Row:
    """One row of tokens, filled block by block."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.end: list[int] = []
        self.token_number: list[int] = []
        self.prompt: list[int] = []  # of the last block
        self.prompt_columns: list[int] = []  # where that prompt's tokens stand

    def add(
        self, prompt: list[int], chosen: list[int], rejected: list[int], first_number: int, share: bool, whole: bool
    ) -> list[int]:
        """Append a block and return the columns that predict: the prompt's end, then chosen[:-1] and rejected[:-1]."""
        shared = common_prefix(self.prompt, prompt) if share else 0
        last = 0 if whole else 1  # tokens at an answer's end that are left out
        p, c, r = len(prompt), len(chosen) - last, len(rejected) - last
        start = len(self.ids)
        prompt_stop = start + p - shared
        stop = prompt_stop + c + r
        self.ids += [*prompt[shared:], *chosen[:c], *rejected[:r]]
        self.positions += [*range(shared, p + c), *range(p, p + r)]
        self.end += [stop] * (p - shared) + [prompt_stop + c] * c + [stop] * r
        self.token_number += range(first_number, first_number + stop - start)
        for column in self.prompt_columns[:shared]:
            self.end[column] = stop
        self.prompt, self.prompt_columns = prompt, [*self.prompt_columns[:shared], *range(start, prompt_stop)]
        chosen_columns, rejected_columns = range(prompt_stop, prompt_stop + c), range(prompt_stop + c, stop)
        return [self.prompt_columns[-1], *chosen_columns[: len(chosen) - 1], *rejected_columns[: len(rejected) - 1]]

    def pad(self, width: int, token_number: int) -> None:
        padding = width - len(self.ids)
        self.ids += [0] * padding
        self.positions += [0] * padding
        self.end += [width] * padding
        self.token_number += [token_number] * padding


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _pad_head(heads: list[list[Place]], rows_each: int, width: int, multiple: int) -> Int[Tensor, "R H"]:
    """Each run's places in the flattened rows; a run with fewer repeats its first place that predicts nothing.

    Its outputs are ignored. A place that predicts something is repeated only where the run has no other.
    """
    longest = max(map(len, heads))
    most = max(longest, min(_round_up(longest, multiple), rows_each * width))  # equal prompts share a place
    padded = []
    for run, head in enumerate(heads):
        places = [row * width + column for row, column in head]
        if len(places) < most:
            unused = min(set(range(rows_each * width)) - set(places), default=0)
            places += [unused] * (most - len(places))
        padded.append([run * rows_each * width + place for place in places])
    return _tensor(padded)


def _pad_answers(
    runs: list[list[AnswerPair]], predictions: int, multiple: int
) -> tuple[Int[Tensor, "2 R B A"], Int[Tensor, "2 R B A"], Bool[Tensor, "2 R B A"]]:
    """The answers' tokens as Packed.answer_at, .answer_ids and .answer_mask; `predictions` is H."""
    most = max(map(len, runs))
    longest = _round_up(max(len(answer) for answers in runs for both in answers for answer in both), multiple)

    def padded(answer: list[AnswerToken]) -> list[AnswerToken]:
        return answer + [NO_TOKEN] * (longest - len(answer))

    tokens = _tensor(
        [
            [[padded(both[side]) for both in answers] + [padded([])] * (most - len(answers)) for answers in runs]
            for side in range(2)
        ]
    )
    at, ids = tokens.unbind(-1)
    at = at + predictions * torch.arange(len(runs))[:, None, None]
    return at, ids.clamp(min=0), ids >= 0


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
