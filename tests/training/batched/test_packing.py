"""Packed rows: literal ids, who sees whom, and the numbers of plain forwards."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from factdpo.data.facts import Fact
from factdpo.data.pairs import Pairs, collate
from factdpo.models.logps import answer_logps, completion_logps
from factdpo.training.batched.packing import ROOM, Packed, block_length, moved, pack, shared_lengths
from tests.helpers.tiny import MODELS, tiny_base, tiny_pairs


def pairs_of(*rows: tuple[list[int], list[int], list[int]]) -> Pairs:
    prompts, chosen, rejected = zip(*rows, strict=True)
    facts = [Fact(i, f"p{i}", "a", "b") for i in range(len(rows))]
    return Pairs(facts, list(prompts), list(chosen), list(rejected), pad_id=0)


ONE_TOKEN = pairs_of(([5, 6, 7], [20], [30]), ([8, 9], [21], [31]))
MANY = pairs_of(([5, 6], [20, 40, 41], [30, 43]), ([8, 9, 10], [21], [31, 44]))


def sees(packed: Packed) -> list[str]:
    """One line per token of the first row: `x` where it sees the other."""
    return [
        "".join("x" if value == 0 else "." for value in line)
        for line in packed.attention_mask(torch.float32)[0, 0].tolist()
    ]


def test_one_token_answers_are_predicted_from_the_prompts_end() -> None:
    packed = pack([(ONE_TOKEN, [0, 1])])
    assert packed.ids.tolist() == [[5, 6, 7, 8, 9]]
    assert packed.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert packed.end.tolist() == [[3, 3, 3, 5, 5]]
    assert packed.token_number.tolist() == [[0, 1, 2, 3, 4]]
    assert packed.head.tolist() == [[2, 4]]
    assert packed.answer_at.tolist() == [[[[0], [1]]], [[[0], [1]]]]  # both answers of a pair from one position
    assert packed.answer_ids.tolist() == [[[[20], [21]]], [[[30], [31]]]]
    assert packed.answer_mask.all()


def test_longer_answers_follow_the_prompt_and_the_rejected_one_restarts_where_it_ended() -> None:
    packed = pack([(MANY, [0, 1])])
    # the longest block first: 5 6 | 20 40 | 30, then 8 9 10 | nothing | 31
    assert packed.ids.tolist() == [[5, 6, 20, 40, 30, 8, 9, 10, 31]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2, 3]]
    assert packed.end.tolist() == [[5, 5, 4, 4, 5, 9, 9, 9, 9]]
    assert packed.head.tolist() == [[1, 2, 3, 4, 7, 8]]
    # of M: 0 predicts 20 and 30; 1 -> 40; 2 -> 41; 3 -> 43; 4 predicts 21 and 31; 5 -> 44
    assert packed.answer_at.tolist() == [[[[0, 1, 2], [4, 0, 0]]], [[[0, 3, 0], [4, 5, 0]]]]
    assert packed.answer_ids.tolist() == [[[[20, 40, 41], [21, 0, 0]]], [[[30, 43, 0], [31, 44, 0]]]]
    assert packed.answer_mask.tolist() == [
        [[[True, True, True], [True, False, False]]],
        [[[True, True, False], [True, True, False]]],
    ]


def test_a_token_sees_its_own_prompt_and_its_own_answer_and_nothing_after_itself() -> None:
    assert sees(pack([(MANY, [0, 1])])) == [
        "x........",  # 5
        "xx.......",  # 6
        "xxx......",  # 20, chosen
        "xxxx.....",  # 40, chosen
        "xx..x....",  # 30, rejected: not the chosen ones before it
        ".....x...",  # 8, of the next pair
        ".....xx..",
        ".....xxx.",
        ".....xxxx",  # 31, rejected; nothing of its chosen answer stands in the row
    ]


def test_padding_sees_padding_and_is_seen_by_nothing_else() -> None:
    packed = pack([(ONE_TOKEN, [0, 1]), (ONE_TOKEN, [1])])  # the second run has less
    assert packed.ids.tolist() == [[5, 6, 7, 8, 9], [8, 9, 0, 0, 0]]
    assert packed.end.tolist()[1] == [2, 2, 5, 5, 5]
    assert packed.token_number.tolist()[1] == [0, 1, 2, 2, 2]
    own = packed.attention_mask(torch.float32)[1, 0]
    lines = ["".join("x" if value == 0 else "." for value in line) for line in own.tolist()]
    assert lines == ["x....", "xx...", "..x..", "..xx.", "..xxx"]
    assert own[own != 0].unique().tolist() == [torch.finfo(torch.float32).min]


def test_runs_of_different_sizes_fill_as_many_rows_each_and_miss_what_they_lack() -> None:
    packed = pack([(ONE_TOKEN, [1]), (MANY, [1, 0]), (ONE_TOKEN, [])])
    assert packed.ids.tolist() == [
        [8, 9, 0, 0, 0, 0, 0, 0, 0],
        [5, 6, 20, 40, 30, 8, 9, 10, 31],  # placed by size, numbered in the order given
        [0] * 9,
    ]
    assert packed.end.tolist()[1:] == [[5, 5, 4, 4, 5, 9, 9, 9, 9], [9] * 9]
    assert packed.token_number.tolist()[1:] == [[4, 5, 6, 7, 8, 0, 1, 2, 3], [0] * 9]
    assert packed.answer_mask[:, :, :, 0].tolist() == [[[True, False], [True, True], [False, False]]] * 2
    assert packed.answer_ids[0, 1].tolist() == [[21, 0, 0], [20, 40, 41]]


def test_a_run_with_fewer_predictions_predicts_from_where_nothing_depends_on_it() -> None:
    packed = pack([(MANY, [0, 1]), (ONE_TOKEN, [1])])
    assert packed.ids.tolist()[1] == [8, 9, 0, 0, 0, 0, 0, 0, 0]
    assert packed.head.tolist() == [[1, 2, 3, 4, 7, 8], [10, 9, 9, 9, 9, 9]]  # 9: not where 21 and 31 are predicted
    assert packed.answer_at[:, 1, 0, 0].tolist() == [6, 6]


def test_rows_are_as_many_for_each_run_and_about_as_long_as_there_is_room() -> None:
    pairs = tiny_pairs(64)
    packed = pack([(pairs, list(range(64))), (pairs, list(range(8)))])
    tokens = sum(block_length(pairs, row) for row in range(64))
    rows = round(tokens / ROOM)
    assert packed.ids.shape[0] == 2 * rows > 2
    assert packed.ids.shape[1] <= tokens / rows + 9  # as even as blocks of at most 9 tokens go
    no_padding = packed.token_number[:rows] < tokens
    assert packed.token_number[:rows][no_padding].sort().values.tolist() == list(range(tokens))


ALIKE = pairs_of(
    ([5, 6], [20, 40], [30]),
    ([5, 6, 7], [21], [31, 44]),
    ([5, 6, 7], [22], [32]),
    ([5, 9], [23], [33]),
    ([8], [24], [34]),
)


def test_with_share_prompts_share_their_common_beginning() -> None:
    packed = pack([(ALIKE, [0, 1, 2, 3, 4])], share=True)
    # 5 6 | 20, then 7 | 31 after 5 6, the same prompt again, 9 after 5, and 8
    assert packed.ids.tolist() == [[5, 6, 20, 7, 31, 9, 8]]
    assert packed.positions.tolist() == [[0, 1, 2, 2, 3, 1, 0]]
    assert shared_lengths(ALIKE, [0, 1, 2, 3, 4]) == [3, 2, 0, 1, 1]
    assert packed.head[0][packed.answer_at[:, 0, :, 0]].tolist() == [[1, 3, 3, 5, 6]] * 2
    assert packed.head[0][packed.answer_at[:, 0, :, 1][packed.answer_mask[:, 0, :, 1]]].tolist() == [
        2,
        4,
    ]  # predict 40 and 44
    assert sees(packed) == [
        "x......",  # 5
        "xx.....",  # 6
        "xxx....",  # 20, chosen
        "xx.x...",  # 7: not the answer between
        "xx.xx..",  # 31, rejected
        "x....x.",  # 9: of 5 alone
        "......x",  # 8: of nothing
    ]
    assert pack([(ALIKE, [0, 1, 2, 3, 4])]).ids.numel() == sum(block_length(ALIKE, row) for row in range(5)) == 13


def test_what_is_shared_stands_in_each_row_that_needs_it_and_nothing_is_lost() -> None:
    pairs = pairs_of(*(([5, 6, number], [20], [30]) for number in range(100, 100 + 3 * ROOM)))
    packed = pack([(pairs, list(range(len(pairs)))), (pairs, [7])], share=True)
    assert packed.ids.shape[0] == 6 and packed.ids.shape[1] <= ROOM + 3
    assert packed.ids[:3, :2].tolist() == [[5, 6]] * 3
    assert [i for i in packed.ids[:3, 2:].flatten().tolist() if i] == list(range(100, 100 + 3 * ROOM))
    assert packed.ids[3:].unique().tolist() == [0, 5, 6, 107]


@pytest.mark.parametrize("repeated", [10, 3])
def test_runs_of_which_one_repeats_a_prompt_more_often_than_it_has_places(repeated: int) -> None:
    """Equal prompts share all their places, so that a run can predict more often than it has tokens."""
    pairs = pairs_of(*(([5, 6, 7], [20 + number], [40 + number]) for number in range(repeated)))
    runs = [(pairs, list(range(repeated))), (pairs, [0, 1])]
    packed = pack(runs, share=True)
    assert packed.head.shape == (2, repeated) and packed.ids.shape == (2, 3)
    found = packed_logps("gpt_neox", runs, share=True)
    torch.testing.assert_close(found[:, 0], plain_logps("gpt_neox", *runs[0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[:, 1, :2], plain_logps("gpt_neox", *runs[1]), rtol=0, atol=1e-5)


def packed_logps(
    family: str, runs: list[tuple[Pairs, list[int]]], attention: str = "sdpa", share: bool = False, multiple: int = 1
) -> torch.Tensor:
    """[2, R, B] from one packed forward of a plain model: every position predicts, the head's are picked."""
    model, packed = tiny_base(family).model, pack(runs, share, multiple=multiple)
    model.set_attn_implementation(attention)
    with torch.inference_mode():
        logits = model(
            input_ids=packed.ids, attention_mask=packed.attention_mask(torch.float32), position_ids=packed.positions
        ).logits
    logps = logits.flatten(0, 1)[packed.head.flatten()].log_softmax(-1)
    return answer_logps(logps, packed.answer_at, packed.answer_ids, packed.answer_mask)


def plain_logps(family: str, pairs: Pairs, rows: list[int]) -> torch.Tensor:
    """[2, B] from forwards of whole rows, one each: prompt + chosen and prompt + rejected."""
    model, logps = tiny_base(family).model, []
    with torch.inference_mode():
        for row in rows:
            batch = collate(pairs, [row])
            for side in range(2):
                ids = batch.ids[side : side + 1, : int(batch.attention[side].sum())]
                logits = model(input_ids=ids).logits
                logps.append(completion_logps(logits, ids, batch.completion[side : side + 1, : ids.shape[1]]))
    return torch.cat(logps).view(-1, 2).T


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("longest", [1, 4])
@pytest.mark.parametrize("family", MODELS)
def test_a_packed_forward_gives_the_numbers_of_two_plain_ones(family: str, longest: int, attention: str) -> None:
    """float32 rounds log-probs around 15 nats at 1e-6; five architectures with their own positions and masks."""
    pairs = tiny_pairs(24, longest)
    first, second = list(range(23, -1, -1)), [3, 17, 5]
    packed = packed_logps(family, [(pairs, first), (pairs, second), (pairs, [])], attention)
    torch.testing.assert_close(packed[:, 0], plain_logps(family, pairs, first), rtol=0, atol=1e-5)
    torch.testing.assert_close(packed[:, 1, :3], plain_logps(family, pairs, second), rtol=0, atol=1e-5)
    assert (packed[:, 1, 3:] == 0).all() and (packed[:, 2] == 0).all(), "no token, no log-prob"


@pytest.mark.parametrize("longest", [1, 4])
@pytest.mark.parametrize("family", MODELS)
def test_shared_beginnings_change_no_number(family: str, longest: int) -> None:
    """24 prompts of which many begin alike, or are the beginning of another, in two orders."""
    pairs = tiny_pairs(24, longest)
    for row, prompt in enumerate(pairs.prompt_ids):
        prompt[: row % 5] = [1, 2, 3, 4][: min(row % 5, len(prompt) - 1)]
    ordered, any_order = sorted(range(24), key=lambda row: pairs.prompt_ids[row]), [3, 23, 5, 13]
    assert sum(shared_lengths(pairs, ordered)) < sum(block_length(pairs, row) for row in ordered) - 20
    packed = packed_logps(family, [(pairs, ordered), (pairs, any_order)], share=True)
    torch.testing.assert_close(packed[:, 0], plain_logps(family, pairs, ordered), rtol=0, atol=1e-5)
    torch.testing.assert_close(packed[:, 1, :4], plain_logps(family, pairs, any_order), rtol=0, atol=1e-5)


@pytest.mark.parametrize("longest", [1, 4])
def test_shapes_rounded_up_change_no_number_and_are_few(longest: int) -> None:
    pairs, shapes = tiny_pairs(24, longest), [set(), set()]
    for start in range(0, 24, 3):
        runs = [(pairs, list(range(start, start + 3))), (pairs, [start])]
        packed = pack(runs, multiple=8)
        for of_multiple, found in zip(shapes, (pack(runs), packed), strict=True):
            of_multiple.add((found.longest, *(tensor.shape for tensor in found.tensors())))
        assert all(size % 8 == 0 for size in (packed.longest, packed.ids.shape[1], packed.answer_at.shape[-1]))
        logps = packed_logps("gpt_neox", runs, multiple=8)
        torch.testing.assert_close(logps[:, 0], plain_logps("gpt_neox", *runs[0]), rtol=0, atol=1e-5)
        torch.testing.assert_close(logps[:, 1, :1], plain_logps("gpt_neox", *runs[1]), rtol=0, atol=1e-5)
    assert len(shapes[1]) <= 5 < len(shapes[0])


def test_no_more_places_are_rounded_up_to_than_there_are() -> None:
    text = pairs_of(([5], list(range(20, 31)), [30]))  # as neutral text: each of its tokens predicts
    packed = pack([(text, [0])])
    assert packed.head.shape == (1, 11) and sorted(packed.head.flatten().tolist()) == list(range(11))
    padded = pack([(text, [0])], multiple=8)
    assert padded.head.shape == (1, 16) and sorted(padded.head[0, :11].tolist()) == list(range(11))
    assert padded.head[0, 11:].tolist() == [11] * 5, "a place of padding"


@pytest.mark.parametrize("other", ["chosen", "another pair", "another run"])
def test_no_answer_depends_on_what_it_may_not_see(other: str) -> None:
    def logps(change: int) -> torch.Tensor:
        def changed(token: int, where: str) -> int:
            return token + change if where == other else token

        pairs = pairs_of(
            ([5, 6, 7], [20, changed(40, "chosen"), 41], [30, 43, 45]),
            ([8, 9], [21, changed(50, "another pair")], [31, 51]),
        )
        elsewhere = pairs_of(([8, 9], [changed(21, "another run"), 12], [31, 51]))
        return packed_logps("gpt_neox", [(pairs, [0, 1]), (elsewhere, [0])])

    before, after = logps(0), logps(1)
    assert torch.equal(before[1, 0, 0], after[1, 0, 0]), "the rejected answer of the first pair"
    assert not torch.equal(before, after)


def test_long_pairs_have_a_row_each_and_none_is_left_empty() -> None:
    long = pairs_of(*(([1] * 150, [20], [30]) for _ in range(8)))
    assert pack([(long, list(range(8)))]).ids.shape == (8, 150)
    assert pack([(long, list(range(8))), (long, [0])]).ids.shape == (16, 150)


class Copies(TorchDispatchMode):
    """The bytes of each copy to the device `meta`, which has no numbers, but shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []
        self.content: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.bytes.append(args[0].nbytes)
            self.content = args[0].tolist()
        return func(*args, **(kwargs or {}))


def test_tensors_reach_a_device_by_one_copy_each_with_its_shape_and_type() -> None:
    given = [torch.tensor([[True, False, True]]), torch.tensor([[7], [8]]), torch.tensor(0.5), torch.zeros(0, 2)]
    assert all(a is b for a, b in zip(moved(given, torch.device("cpu")), given, strict=True))
    with Copies() as copies:
        there = moved(given, torch.device("meta"))
    assert [(t.device.type, t.dtype, t.shape) for t in there] == [("meta", t.dtype, t.shape) for t in given]
    assert copies.bytes == [2 * 8 + 4 + 3]
    assert copies.content == [7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 63, 1, 0, 1], "largest first"
