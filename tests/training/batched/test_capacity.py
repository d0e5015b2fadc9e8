"""How many runs train at once: each limit by its name, and a probe that measures and leaves nothing behind."""

import logging
from typing import Any

import pytest
import torch

from factdpo.config.schema import Config
from factdpo.data.pairs import Pairs
from factdpo.training.batched import capacity
from factdpo.training.batched.capacity import (
    MASTERS,
    USABLE,
    bytes_needed,
    free_bytes,
    is_out_of_memory,
    runs_at_once,
    tokens_at_once,
    tokens_to_score,
)
from factdpo.training.batched.packing import block_length
from tests.helpers.tiny import VOCABULARY, tiny_base, tiny_config, tiny_pairs

CPU = torch.device("cpu")
PLENTY = 10**12


@pytest.fixture(autouse=True)
def plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "free_bytes", lambda device: PLENTY)


def runs(count: int, **changes: Any) -> list[tuple[Config, Pairs]]:
    return [(tiny_config(dpo_seed=i, **changes), tiny_pairs(8, 1, seed=0)) for i in range(count)]


def largest_step(pairs: Pairs, size: int) -> int:
    return sum(sorted((block_length(pairs, row) for row in range(len(pairs))), reverse=True)[:size])


def test_all_at_once_where_nothing_is_in_the_way() -> None:
    assert runs_at_once(tiny_base(), runs(7)) == 7


@pytest.mark.parametrize(
    ("changes", "expected", "limit"),
    [({"engine_max_runs": 3}, 3, "engine.max_runs"), ({"engine_max_tokens": 100}, 3, "tokens per forward")],
)
def test_what_limits_is_said(changes: dict[str, Any], expected: int, limit: str, caplog: Any) -> None:
    assert largest_step(tiny_pairs(8), 4) == 8 + 8 + 7 + 6
    with caplog.at_level(logging.INFO, logger="factdpo"):
        assert runs_at_once(tiny_base(), runs(7, **changes)) == expected
    assert f"{expected} runs at once, limited by {limit}" in caplog.text


def test_memory_limits_by_what_was_measured(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    base, some = tiny_base(), runs(7)
    rows = sorted(range(8), key=lambda row: -block_length(some[0][1], row))[:4]
    _, state, activations = bytes_needed(base, *some[0], rows)
    room = int((state + capacity.BACKWARD * activations) * 2.5 / capacity.USABLE)
    monkeypatch.setattr(capacity, "free_bytes", lambda device: room)
    with caplog.at_level(logging.INFO, logger="factdpo"):
        assert runs_at_once(base, some) == 2
    assert "limited by memory" in caplog.text
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 0)
    assert runs_at_once(base, some) == 1, "it is tried, and says itself that it does not fit"


def test_the_run_with_the_largest_step_and_the_highest_rank_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    real = capacity.bytes_needed

    def spy(base: Any, cfg: Config, pairs: Pairs, rows: list[int]) -> tuple[int, int, int]:
        asked.append((cfg.lora.rank, len(rows)))
        return real(base, cfg, pairs, rows)

    monkeypatch.setattr(capacity, "bytes_needed", spy)
    small, wide, long = (
        runs(1, **changes)[0]
        for changes in ({}, {"lora_rank": 9}, {"dpo_batch_size": 3, "dpo_gradient_accumulation_steps": 2})
    )
    tokens = largest_step(long[1], 6)
    most = runs_at_once(tiny_base(), [small, wide, long])
    assert asked == [(9, 6)] and most == 3
    long[0].engine.max_tokens = 2 * tokens
    assert runs_at_once(tiny_base(), [small, wide, long]) == 2


def test_a_run_alone_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "bytes_needed", lambda *_: pytest.fail("measured"))
    assert runs_at_once(tiny_base(), runs(1)) == 1


def test_the_probe_counts_what_a_run_holds_and_leaves_the_base_as_it_was() -> None:
    base, (cfg, pairs) = tiny_base(), runs(1)[0]
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    shared, state, one = bytes_needed(base, cfg, pairs, [0])
    assert shared == 0
    # rank 4 of both layers' four matrices: query_key_value, dense, dense_h_to_4h, dense_4h_to_h; float32
    assert state == MASTERS * 4 * 4 * 2 * ((32 + 96) + (32 + 32) + (32 + 64) + (64 + 32))
    *_, eight = bytes_needed(base, cfg, pairs, list(range(8)))
    tokens = [sum(block_length(pairs, row) for row in rows) for rows in ([0], range(8))]
    assert eight / one == pytest.approx(tokens[1] / tokens[0], rel=0.5), "about as many bytes per token"
    after = base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_probe_counts_dropouts_masks_and_the_copy_in_bfloat16() -> None:
    base, (cfg, pairs) = tiny_base(), runs(1)[0]
    tokens, inputs = largest_step(pairs, 4), 2 * (32 + 32 + 32 + 64)  # features that the eight matrices take
    rows = sorted(range(8), key=lambda row: -block_length(pairs, row))[:4]
    *_, without = bytes_needed(base, cfg, pairs, rows)
    *_, with_masks = bytes_needed(base, runs(1, lora_dropout=0.1)[0][0], pairs, rows)
    assert with_masks >= without + 4 * tokens * inputs
    shared, *_ = bytes_needed(base, runs(1, dpo_bf16=True)[0][0], pairs, rows)
    assert shared == 2 * 2 * (32 * 96 + 32 * 32 + 2 * 32 * 64), "two bytes for each weight of both layers' matrices"


def test_tokens_per_forward_are_the_devices_unless_told() -> None:
    assert tokens_at_once(tiny_config(), CPU) == 2048
    assert tokens_at_once(tiny_config(), torch.device("cuda")) == 65536
    assert tokens_at_once(tiny_config(engine_max_tokens=5), CPU) == 5


def test_a_forward_that_scores_has_no_more_tokens_than_memory_for_their_predictions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, each = tiny_base(), 5 * 4 * VOCABULARY  # bytes
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 100 * each / USABLE)
    assert tokens_to_score(tiny_config(), base) == 100
    assert tokens_to_score(tiny_config(engine_workers=4), base) == 25
    monkeypatch.setattr(capacity, "free_bytes", lambda device: PLENTY)
    assert tokens_to_score(tiny_config(), base) == 2048
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 0)
    assert tokens_to_score(tiny_config(), base) == 1


def test_free_memory_is_some_of_the_machines() -> None:
    assert 0 < free_bytes(CPU) < 2**50


def test_an_error_that_means_no_memory_is_known_as_such() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**60)
    assert is_out_of_memory(torchs.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
