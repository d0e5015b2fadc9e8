"""Engine batched: R runs at once are R runs alone, and each of them is TRL's, row by row and weight by weight."""

import copy
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from factdpo.config.engine_choice import choose_engine
from factdpo.config.schema import (
    BATCHED_LOSSES,
    Attention,
    Config,
    ConfigError,
    Divergence,
    Dtype,
    EngineName,
    LoraConfig,
    Loss,
    Method,
    Schedule,
)
from factdpo.config.validate import validate
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.models.logps import Diverged
from factdpo.models.scoring import PairLogps, pair_logps
from factdpo.runs.identity import can_train_together
from factdpo.store import cache
from factdpo.training.batched import engine as batched
from factdpo.training.batched.adapter import Adapter, fresh_adapter, read_adapter
from factdpo.training.batched.cohort import Cohort
from factdpo.training.batched.inputs import step_inputs
from factdpo.training.batched.stacked_lora import stacked
from factdpo.training.engine import Trained
from factdpo.training.sanity_checks import SanityCheckError
from factdpo.training.schedule import micro_batches
from tests.helpers.tiny import MODELS, tiny_base, tiny_config, tiny_pairs
from tests.helpers.training import train_with_trl

Row = dict[str, Any]
Record = Callable[..., None]

# float32 rounds at 6e-8 relative, and the two sides add up in another order: what is found is about 1e-6.
NUMBERS = 1e-5  # of a row, relative where it is above 1 (the losses of ipo and sppo are 6 and 12, gradient norms 100)
WEIGHTS = 1e-4  # of the norm of each tensor. AdamW divides by the gradient's size, so rounding grows where it is near 0


@dataclass
class Run:
    cfg: Config
    pairs: Pairs
    curves: dict[str, Pairs] = field(default_factory=dict)


class Done(NamedTuple):
    history: list[Row]
    ending: Any  # Trained, or what ended the run

    @property
    def adapter(self) -> Adapter:
        return self.ending.weights


def describe(scores: dict[str, PairLogps]) -> Row:
    return {f"eval/{name}/chosen": found.chosen.mean().item() for name, found in scores.items()}


def references(base: Base, runs: list[Run]) -> list[PairLogps]:
    return [pair_logps(base.model, run.pairs, 64) for run in runs]


def train_together(
    base: Base, runs: list[Run], folder: Path, refs: list[PairLogps] | None = None, record: Record | None = None
) -> list[Done]:
    """What became of each run, in the order given; `record` hears every row, with its run's number."""
    histories: list[list[Row]] = [[] for _ in runs]
    refs = refs or references(base, runs)

    def teller(number: int) -> Record:
        def tell(*rows: Row) -> None:
            histories[number].extend(rows)
            if record:
                record(number, *rows)

        return tell

    members = [
        batched.Member(str(number), run.cfg, run.pairs, ref, run.curves, describe, teller(number))
        for number, (run, ref) in enumerate(zip(runs, refs, strict=True))
    ]
    groups = batched.fit_many(base, members, folder)
    endings = {int(member.key): ending for group in groups for member, ending in group}
    assert sorted(endings) == list(range(len(runs))), "each is handed out, once"
    return [Done(history, endings[number]) for number, history in enumerate(histories)]


def trl_training(base: Base, run: Run, ref: PairLogps, folder: Path) -> tuple[list[Row], Adapter]:
    history: list[Row] = []
    folder.mkdir(parents=True)
    train_with_trl(base, run.pairs, ref, run.cfg, folder, history.append, run.curves, describe)
    return history, read_adapter(folder / "adapter")


def bits(done: Done) -> dict[str, bytes]:
    return {
        f"{name}.{side}": weight.numpy().tobytes()
        for name, both in done.adapter.layers.items()
        for side, weight in zip("AB", both, strict=True)
    }


def timeless(history: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key != "time_seconds"} for row in history]


def apart(one: Adapter, other: Adapter) -> float:
    """Largest difference of a tensor, relative to its norm."""
    assert one.layers.keys() == other.layers.keys()
    return max(
        ((x - y).norm() / y.norm()).item()
        for name in one.layers
        for x, y in zip(one.layers[name], other.layers[name], strict=True)
    )


def rows_apart(one: list[Row], other: list[Row]) -> dict[str, float]:
    """Largest difference of each number of the histories, relative where it is above 1; the same rows, the same keys.

    Where no step has moved the weights yet, policy and reference differ by rounding, and rounding alone decides which
    of two rewards is higher: rewards/accuracies is left out up to there.
    """
    assert [row["step"] for row in one] == [row["step"] for row in other]
    found: dict[str, float] = {}
    moved = False
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"time_seconds"} - ({"rewards/accuracies"} if not moved else set()):
            found[key] = max(found.get(key, 0.0), abs(a[key] - b[key]) / max(1.0, abs(b[key])))
        moved = moved or b.get("learning_rate", 0.0) > 0
    return found


# ------------------------------------------------------------------------------------------------------- the contract

ANYTHING: list[tuple[int, int, dict[str, Any]]] = [  # pairs, longest answer, and what differs from tiny_config
    (13, 1, {"dpo_max_grad_norm": 0.05, "dpo_learning_rate": 3e-3}),
    (
        11,
        4,
        {
            "lora_rank": 8, "lora_alpha": 4.0, "lora_rslora": True, "dpo_beta": 0.5, "dpo_loss": [Loss.ipo],
            "dpo_lr_scheduler": Schedule.cosine, "dpo_warmup_ratio": 0.25, "dpo_seed": 3, "dpo_batch_size": 2,
            "dpo_gradient_accumulation_steps": 3, "dpo_epochs": 2.0, "dpo_max_steps": None, "dpo_max_grad_norm": 0.0,
        },
    ),
    (
        10,
        3,
        {
            "lora_rank": 2, "dpo_beta": 1.0, "dpo_loss": [Loss.sigmoid, Loss.sft], "dpo_loss_weights": [1.0, 0.5],
            "dpo_lr_scheduler": Schedule.constant_with_warmup, "dpo_warmup_ratio": 0.3, "dpo_weight_decay": 0.5,
            "dpo_seed": 5, "track_log_every": 4, "dpo_max_steps": 9,
        },
    ),
    (10, 3, {"dpo_loss": [Loss.sppo_hard], "dpo_lr_scheduler": Schedule.constant, "dpo_batch_size": 3}),
    (16, 1, {"dpo_loss": [Loss.robust], "dpo_label_smoothing": 0.1, "dpo_seed": 2, "dpo_max_steps": 4}),
]  # fmt: skip
OTHER_LOSSES: list[tuple[int, int, dict[str, Any]]] = [
    (9, 3, {"dpo_loss": [Loss.hinge], "dpo_batch_size": 2, "dpo_gradient_accumulation_steps": 2}),
    (9, 2, {"dpo_loss": [Loss.apo_zero], "dpo_beta": 0.1, "dpo_weight_decay": 0.1}),
    (9, 4, {"dpo_loss": [Loss.apo_down], "dpo_seed": 7, "dpo_epochs": 1.5, "dpo_max_steps": None}),
    (9, 1, {"dpo_loss": [Loss.nca_pair], "lora_rank": 1}),
    (9, 4, {"dpo_loss": [Loss.sft], "dpo_gradient_accumulation_steps": 2, "dpo_batch_size": 2, "lora_rslora": True}),
    (9, 2, {"dpo_loss": [Loss.hinge, Loss.nca_pair, Loss.ipo], "dpo_loss_weights": [0.3, 0.0, -0.1]}),
]  # fmt: skip


class Sides(NamedTuple):
    family: str
    runs: list[Run]
    together: list[Done]
    alone: list[Done]
    trl: list[tuple[list[Row], Adapter]]


PLANS = ["gpt_neox", "llama", "qwen2_moe"]
MORE = ["gpt2", "opt", "qwen2", "other losses"]  # OTHER_LOSSES, on a GPT-NeoX


@pytest.fixture(scope="module", params=[*PLANS, *(pytest.param(plan, marks=pytest.mark.slow) for plan in MORE)])
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    """The same runs in one cohort, one by one, and with TRL."""
    folder = tmp_path_factory.mktemp("sides")
    plans = {"gpt_neox": ANYTHING, "other losses": OTHER_LOSSES}
    family = request.param if request.param in MODELS else "gpt_neox"
    plan = plans.get(request.param, ANYTHING[:3])
    # all of a cohort share AdamW's own numbers
    small = {} if family == "gpt_neox" else {"dpo_adam_epsilon": 1e-6, "dpo_adam_beta1": 0.8, "dpo_adam_beta2": 0.99}
    runs = [
        Run(
            tiny_config(**changes, **small, eval_every=["epoch", "4", "never"][number % 3]),
            tiny_pairs(count, longest, number),
            {"train": tiny_pairs(5, longest, number), "test": tiny_pairs(3, 2, 99)},
        )
        for number, (count, longest, changes) in enumerate(plan)
    ]
    refs = references(tiny_base(family), runs)
    base = tiny_base(family)
    together = train_together(base, runs, folder / "together", refs)
    alone = [
        train_together(tiny_base(family), [run], folder / "alone", [ref])[0]
        for run, ref in zip(runs, refs, strict=True)
    ]
    trl = [
        trl_training(tiny_base(family), run, ref, folder / f"trl{number}")
        for number, (run, ref) in enumerate(zip(runs, refs, strict=True))
    ]
    return Sides(family, runs, together, alone, trl)


def parts(history: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of training and those of evaluation; TRL writes them in another order where both are due."""
    return [row for row in history if "loss" in row], [row for row in history if "loss" not in row]


def test_every_row_of_the_history_is_trls(sides: Sides) -> None:
    for done, (history, _) in zip(sides.together, sides.trl, strict=True):
        for ours, theirs in zip(parts(done.history), parts(history), strict=True):
            differences = rows_apart(ours, theirs)
            assert max(differences.values(), default=0.0) < NUMBERS, differences


def test_the_weights_are_trls(sides: Sides) -> None:
    for done, (_, adapter) in zip(sides.together, sides.trl, strict=True):
        assert apart(done.adapter, adapter) < WEIGHTS


def test_together_is_as_alone(sides: Sides) -> None:
    for done, solo in zip(sides.together, sides.alone, strict=True):
        differences = rows_apart(done.history, solo.history)
        assert max(differences.values()) < NUMBERS, differences
        assert apart(done.adapter, solo.adapter) < WEIGHTS
        torch.testing.assert_close(vars(done.ending.probe), vars(solo.ending.probe), rtol=0, atol=1e-4)


def test_the_runs_of_the_contract_try_what_they_should(sides: Sides) -> None:
    """Gradients above the norm that they are clipped to, runs of different lengths, and weights that have moved."""
    norms = [[row["grad_norm"] for row in history if "loss" in row] for history, _ in sides.trl]
    limits = [run.cfg.dpo.max_grad_norm for run in sides.runs]
    assert any(0 < limit < min(of_run) for limit, of_run in zip(limits, norms, strict=True)), "always clipped"
    assert len({history[-1]["step"] for history, _ in sides.trl}) >= 2
    assert any("loss" not in row for history, _ in sides.trl for row in history)
    for run, done in zip(sides.runs, sides.together, strict=True):
        for name, (a, _) in fresh_adapter(run.cfg, tiny_base(sides.family)).layers.items():
            assert (a - done.adapter.layers[name][0]).norm() / a.norm() > 10 * WEIGHTS


def test_every_loss_of_the_engine_is_in_the_contract() -> None:
    plans = [changes.get("dpo_loss", [Loss.sigmoid]) for _, _, changes in ANYTHING + OTHER_LOSSES]
    assert {loss for losses in plans for loss in losses} == set(BATCHED_LOSSES)
    schedules = [changes.get("dpo_lr_scheduler", Schedule.linear) for _, _, changes in ANYTHING]
    assert set(schedules) == set(Schedule)


@pytest.mark.parametrize("half", ["model.dtype", "dpo.bf16"])
def test_in_bfloat16_the_two_engines_agree_as_far_as_its_rounding_goes(half: str, tmp_path: Path) -> None:
    """bfloat16 rounds at 2^-9, autocast and stack not at the same places, and AdamW turns a small gradient's rounding
    into a step: losses agree within 0.02 and each tensor within a quarter, where float32 gives 1e-6 and 1e-5."""
    dtype, changes = (
        (torch.bfloat16, {"model_dtype": Dtype.bfloat16})
        if half == "model.dtype"
        else (torch.float32, {"dpo_bf16": True})
    )
    runs = [
        Run(tiny_config(**changes, dpo_seed=i, dpo_learning_rate=5e-3), tiny_pairs(12, 1 + 3 * i, i)) for i in range(2)
    ]
    refs = references(tiny_base("llama", dtype), runs)
    together = train_together(tiny_base("llama", dtype), runs, tmp_path, refs)
    for number, (run, done) in enumerate(zip(runs, together, strict=True)):
        history, adapter = trl_training(tiny_base("llama", dtype), run, refs[number], tmp_path / str(number))
        for key in ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "entropy"):
            ours, theirs = ([row[key] for row in rows] for rows in (done.history, history))
            assert ours == pytest.approx(theirs, abs=0.02 * max(1.0, max(map(abs, theirs))))
        assert apart(done.adapter, adapter) < 0.25
        assert all(w.dtype == torch.float32 for both in done.adapter.layers.values() for w in both)
        # what is scored is scored in the weights' own dtype, as pair_logps does
        with stacked(tiny_base("llama", dtype), [done.adapter], 4) as stack:
            scores = stack.logps([run.pairs], 512)[0]
        torch.testing.assert_close(
            vars(scores), vars(done.ending.probe), rtol=0, atol=0.1 if dtype.itemsize == 2 else 1e-4
        )


# ------------------------------------------------------------------------------------------------ one run and another


def three_runs(**of_the_second: Any) -> list[Run]:
    return [
        Run(tiny_config(dpo_seed=1), tiny_pairs(9, 3, 1)),
        Run(tiny_config(dpo_seed=2, **of_the_second), tiny_pairs(8, 2, 2)),
        Run(tiny_config(dpo_seed=3, lora_rank=2, dpo_max_steps=7), tiny_pairs(10, 1, 3)),
    ]


def test_runs_that_begin_alike_begin_with_an_adapter_that_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []

    def counted(cfg: Config, base: Base) -> Adapter:
        made.append((cfg.dpo.seed, cfg.lora.rank))
        return fresh_adapter(cfg, base)

    monkeypatch.setattr(batched, "fresh_adapter", counted)
    changes: list[dict[str, Any]] = [
        {},
        {"dpo_seed": 1},
        {"dpo_beta": 0.5},
        {"lora_rank": 2},
        {"dpo_learning_rate": 1e-3},
    ]
    runs = [Run(tiny_config(**change), tiny_pairs(8)) for change in changes]
    together = train_together(tiny_base(), runs, tmp_path / "together")
    assert sorted(made) == [(0, 2), (0, 4), (1, 4)]
    alone = [train_together(tiny_base(), [run], tmp_path / str(number))[0] for number, run in enumerate(runs)]
    for one, other in zip(together, alone, strict=True):
        assert apart(one.adapter, other.adapter) < WEIGHTS


def test_another_learning_rate_of_one_run_leaves_the_others_bit_equal(tmp_path: Path) -> None:
    one = train_together(tiny_base(), three_runs(), tmp_path)
    other = train_together(tiny_base(), three_runs(dpo_learning_rate=0.3, dpo_beta=3.0), tmp_path)
    equal = [bits(a) == bits(b) for a, b in zip(one, other, strict=True)]
    assert equal == [True, False, True]
    assert timeless(one[0].history) == timeless(other[0].history)


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_diverges_ends_so_and_the_others_go_on(step: int, tmp_path: Path) -> None:
    """What is not finite in one run's rows reaches no other: bit for bit while they share forwards (until the next
    fetch: here to the end, or to step 1), and up to rounding in the smaller batch after that."""
    runs = three_runs()
    refs = references(tiny_base(), runs)
    sound = train_together(tiny_base(), runs, tmp_path, refs)
    refs[1] = copy.deepcopy(refs[1])
    first = next(micro_batches(8, runs[1].cfg.dpo))[0]
    refs[1].chosen[first[0] if step == 1 else next(row for row in range(8) if row not in first)] = math.nan
    ended = train_together(tiny_base(), runs, tmp_path, refs)
    assert isinstance(ended[1].ending, Diverged) and str(ended[1].ending) == f"loss is nan at step {step}"
    assert [row["step"] for row in ended[1].history] == list(range(1, step + 1))
    assert math.isnan(ended[1].history[-1]["loss"])
    for number in (0, 2):
        if step == 2:
            assert bits(ended[number]) == bits(sound[number])
            assert timeless(ended[number].history) == timeless(sound[number].history)
        assert timeless(ended[number].history[:1]) == timeless(sound[number].history[:1])
        assert max(rows_apart(ended[number].history, sound[number].history).values()) < NUMBERS
        assert apart(ended[number].adapter, sound[number].adapter) < WEIGHTS


def test_only_the_run_whose_reference_is_another_models_fails_the_sanity_check(tmp_path: Path) -> None:
    runs = three_runs(track_log_every=5)
    refs = references(tiny_base(), runs)
    refs[1].chosen.sub_(1.0)
    done = train_together(tiny_base(), runs, tmp_path, refs)
    assert isinstance(done[1].ending, SanityCheckError)
    assert "should be its own reference, but chosen differs by 1 nats" in str(done[1].ending)
    assert [len(one.history) for one in done] == [6, 1, 7]
    assert all(isinstance(done[number].ending, Trained) for number in (0, 2))
    assert done[0].ending.facts["canaries"] == {
        "first_loss": pytest.approx(math.log(2), abs=1e-5),
        "expected_first_loss": pytest.approx(math.log(2)),
        "first_step_is_the_reference": True,
        "weights_changed_at_step": 1,
    }


def test_rates_that_are_all_0_or_nothing_in_float32_fail_the_sanity_check(tmp_path: Path) -> None:
    runs = [
        Run(tiny_config(dpo_max_steps=1, dpo_warmup_ratio=0.5), tiny_pairs(8)),
        Run(tiny_config(dpo_learning_rate=1e-46), tiny_pairs(8)),
        Run(tiny_config(dpo_warmup_ratio=0.5), tiny_pairs(8)),
    ]
    zero, nothing, late = train_together(tiny_base(), runs, tmp_path)
    assert isinstance(zero.ending, SanityCheckError) and "no optimizer step had a learning rate above 0" in str(
        zero.ending
    )
    assert isinstance(nothing.ending, SanityCheckError) and "changed no weight" in str(nothing.ending)
    assert late.ending.facts["canaries"]["weights_changed_at_step"] == 2


def test_a_gradient_that_overflows_diverges_and_a_large_beta_does_not(tmp_path: Path) -> None:
    """Clipped by its norm, a gradient of infinite norm changes nothing: that is no fault of the training."""
    changes = [{"dpo_beta": 1e38}, {"lora_alpha": 1e30}, {"dpo_beta": 1e6}]
    *infinite, large = train_together(
        tiny_base(), [Run(tiny_config(track_log_every=5, **change), tiny_pairs(8)) for change in changes], tmp_path
    )
    for one in infinite:
        assert isinstance(one.ending, Diverged)
        assert str(one.ending) in ("grad_norm is inf at step 1", "grad_norm is nan at step 1")  # by the processor
    assert isinstance(large.ending, Trained)  # its first loss is off by a million times a rounding error


def test_runs_of_different_length_leave_the_cohort_as_they_end(tmp_path: Path) -> None:
    lengths = (2, 30, 5)  # 30: beyond the 25 steps after which metrics are fetched
    runs = [Run(tiny_config(dpo_max_steps=steps), tiny_pairs(6, 2)) for steps in lengths]
    told: list[tuple[int, int]] = []

    def record(number: int, *rows: Row) -> None:
        told.extend((number, row["step"]) for row in rows)

    done = train_together(tiny_base(), runs, tmp_path, record=record)
    assert [[row["step"] for row in one.history] for one in done] == [list(range(1, n + 1)) for n in lengths]
    assert [one.ending.facts["steps"] for one in done] == list(lengths)
    assert [one.ending.facts["trained_together"] for one in done] == [3, 3, 3]
    for run, one in zip(runs, done, strict=True):
        (alone,) = train_together(tiny_base(), [run], tmp_path)
        assert apart(one.adapter, alone.adapter) < WEIGHTS
    assert told.index((1, 6)) > told.index((0, 2)) and told.index((1, 6)) > told.index((2, 5))


def test_what_a_training_leaves_is_what_engine_trl_leaves(tmp_path: Path) -> None:
    run = Run(tiny_config(dpo_max_steps=2), tiny_pairs(70, 2))
    (ref,) = references(tiny_base(), [run])
    (done,) = train_together(tiny_base(), [run], tmp_path, [ref])
    (tmp_path / "ours").mkdir()
    done.ending.save(tmp_path / "ours")
    trl_training(tiny_base(), run, ref, tmp_path / "theirs")
    files = [
        sorted(p.relative_to(tmp_path / side).as_posix() for p in (tmp_path / side).rglob("*") if p.is_file())
        for side in ("ours", "theirs")
    ]
    assert files[0] == files[1]
    ours, theirs = (json.loads((tmp_path / side / "fit.json").read_text()) for side in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for key in ("steps", "trainable_parameters", "trained_together"):
        assert ours[key] == theirs[key]
    probes = [load_file(tmp_path / side / "probe.safetensors") for side in ("ours", "theirs")]
    torch.testing.assert_close(probes[0], probes[1], rtol=0, atol=1e-4)
    assert len(probes[0]["chosen"]) == 64


def test_weights_that_only_pad_a_rank_stay_exactly_0(tmp_path: Path) -> None:
    runs = [
        Run(tiny_config(lora_rank=2, dpo_weight_decay=0.5, dpo_learning_rate=0.05), tiny_pairs(8, 3, 0)),
        Run(tiny_config(lora_rank=7, dpo_weight_decay=0.1, dpo_learning_rate=0.05), tiny_pairs(8, 3, 1)),
    ]
    base = tiny_base()
    members = [
        batched.Member(str(i), run.cfg, run.pairs, ref, {}, describe, lambda *rows: None)
        for i, (run, ref) in enumerate(zip(runs, references(base, runs), strict=True))
    ]
    fresh = [fresh_adapter(run.cfg, base) for run in runs]
    with stacked(base, fresh, 7) as stack:
        cohort = Cohort(stack, members, fresh, None)
        for _ in range(6):
            cohort.step()
        for name, (a, b) in stack.views(stack.masters).items():
            assert (a[0, 2:] == 0).all() and (b[0, :, 2:] == 0).all()
            assert not torch.equal(a[0, :2], fresh[0].layers[name][0]) and (b[0, :, :2] != 0).any()
            assert (a[1] != 0).any(dim=-1).all()


# ------------------------------------------------------------------------------------------------------------- dropout


def dropout_runs(first: float, second: float = 0.5) -> list[Run]:
    return [
        Run(tiny_config(lora_dropout=first, dpo_seed=1), tiny_pairs(9, 3, 1)),
        Run(tiny_config(lora_dropout=second, dpo_seed=2, dpo_batch_size=7), tiny_pairs(12, 4, 2)),
    ]


@pytest.mark.parametrize("family", ["gpt_neox", "qwen2_moe"])
def test_dropout_draws_the_same_for_a_run_alone_and_among_others(tmp_path: Path, family: str) -> None:
    together = train_together(tiny_base(family), dropout_runs(0.3), tmp_path)
    for number, run in enumerate(dropout_runs(0.3)):
        (alone,) = train_together(tiny_base(family), [run], tmp_path)
        assert apart(together[number].adapter, alone.adapter) < WEIGHTS
        differences = rows_apart(together[number].history, alone.history)
        assert max(differences.values()) < NUMBERS, differences


def test_dropout_changes_the_training_of_its_run_alone(tmp_path: Path) -> None:
    """D4: a sweep over it measures something."""
    without, second = train_together(tiny_base(), dropout_runs(0.0), tmp_path)
    with_it, same = train_together(tiny_base(), dropout_runs(0.3), tmp_path)
    assert without.history[0]["loss"] == pytest.approx(with_it.history[0]["loss"], abs=1e-5), "B is 0: nothing to drop"
    assert apart(without.adapter, with_it.adapter) > 100 * WEIGHTS
    assert apart(second.adapter, same.adapter) < WEIGHTS
    (alone,) = train_together(tiny_base(), dropout_runs(0.0)[:1], tmp_path)
    assert apart(without.adapter, alone.adapter) < WEIGHTS, "no dropout, whatever the others have"


def test_dropout_leaves_scores_alone(tmp_path: Path) -> None:
    """The probe is what the saved weights score, nothing dropped."""
    base = tiny_base()
    done = train_together(base, dropout_runs(0.9), tmp_path)
    for run, one in zip(dropout_runs(0.9), done, strict=True):
        with stacked(base, [one.adapter], one.adapter.config.r) as stack:
            (scores,) = stack.logps([run.pairs.take(64)], 512)
        torch.testing.assert_close(vars(scores), vars(one.ending.probe), rtol=0, atol=1e-4)


def test_dropout_is_as_strong_as_asked(tmp_path: Path) -> None:
    base = tiny_base()
    run = Run(tiny_config(lora_dropout=0.25, dpo_batch_size=64), tiny_pairs(64, 3))
    member = batched.Member("0", run.cfg, run.pairs, references(base, [run])[0], {}, describe, lambda *rows: None)
    fresh = [fresh_adapter(run.cfg, base)]
    with stacked(base, fresh, 4) as stack:
        cohort = Cohort(stack, [member], fresh, None)
        taken = [next(cohort.active[0].micro_batches)]
        first, second = (step_inputs(cohort.active, taken, [1e-3], stack).dropout_masks for _ in range(2))
    assert list(first) == list(stack.layers)
    for name, kept in first.items():
        assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
        assert kept.mean().item() == pytest.approx(1.0, abs=0.03)
        assert not torch.equal(kept, second[name]), "drawn anew at every step"


# ------------------------------------------------------------------------------------------------- what a step may cost


class Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops[str(func)] = self.ops.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_step_runs_as_many_operations_for_8_runs_as_for_2_and_none_waits_for_the_device(dropout: float) -> None:
    counted = []
    for count in (2, 8):
        base = tiny_base()
        runs = [Run(tiny_config(dpo_seed=i, lora_dropout=dropout), tiny_pairs(8, 3, i)) for i in range(count)]
        members = [
            batched.Member(str(i), run.cfg, run.pairs, ref, {}, describe, lambda *rows: None)
            for i, (run, ref) in enumerate(zip(runs, references(base, runs), strict=True))
        ]
        fresh = [fresh_adapter(run.cfg, base) for run in runs]
        with stacked(base, fresh, 4) as stack:
            cohort = Cohort(stack, members, fresh, None)
            taken = [next(state.micro_batches) for state in cohort.active]
            inputs = step_inputs(cohort.active, taken, [1e-3] * count, stack)
            with Counter() as counter:
                cohort.train_step(inputs)
        counted.append(counter.ops)
    assert counted[0] == counted[1]
    assert counted[0]["aten.bmm.default"] > 0
    reads = [name for name in counted[1] if "_local_scalar_dense" in name or "item" in name or "nonzero" in name]
    assert reads == []


# ------------------------------------------------------------------------------------------------------- interruptions


class Killed(BaseException):
    """As abrupt as a test can be in its own process."""


def long_runs(steps: tuple[int, ...] = (8, 8)) -> list[Run]:
    return [
        Run(
            tiny_config(
                dpo_seed=i, dpo_max_steps=n, lora_dropout=0.2 * (i % 2), lora_rank=2 + i, engine_save_every=3,
                track_log_every=1 + i, eval_every="4", dpo_gradient_accumulation_steps=1 + i, dpo_batch_size=2,
            ),
            tiny_pairs(7, 2, i),
            {"train": tiny_pairs(3, 2, i)},
        )
        for i, n in enumerate(steps)
    ]  # fmt: skip


def training_forwards(base: Base) -> list[bool]:
    """From now on an entry for each forward of the base, true for one of packed rows that learns from them."""
    forwards: list[bool] = []

    def count(model: torch.nn.Module, args: Any, given: dict[str, Any]) -> None:
        forwards.append(torch.is_grad_enabled() and "position_ids" in given)

    base.model.register_forward_pre_hook(count, with_kwargs=True)
    return forwards


def interrupted(runs: list[Run], folder: Path, number: int, step: int) -> list[list[Row]]:
    """Trains until a row of that step of that run is recorded; what was told till then."""
    told: list[list[Row]] = [[] for _ in runs]

    def record(of: int, *rows: Row) -> None:
        told[of].extend(rows)
        if of == number and any(row["step"] >= step for row in rows):
            raise Killed

    with pytest.raises(Killed):
        train_together(tiny_base(), runs, folder, record=record)
    return told


def test_a_training_that_was_interrupted_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = train_together(tiny_base(), long_runs(), tmp_path / "whole")
    interrupted(long_runs(), tmp_path / "broken", number=1, step=8)
    again = train_together(tiny_base(), long_runs(), tmp_path / "broken")
    for one, other in zip(whole, again, strict=True):
        assert bits(one) == bits(other)
        assert timeless(one.history) == timeless(other.history)
        assert one.ending.facts["canaries"] == other.ending.facts["canaries"]
    assert list((tmp_path / "broken").iterdir()) == [], "checkpoints go when their batch is done"


def test_going_on_trains_only_what_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(long_runs(), tmp_path, number=0, step=7)
    base = tiny_base()
    forwards = training_forwards(base)
    with caplog.at_level(logging.INFO, logger="factdpo"):
        train_together(base, long_runs(), tmp_path, references(tiny_base(), long_runs()))
    assert sum(forwards) == 2, "steps 7 and 8"
    assert "going on from step 6 of a batch of 2 runs" in caplog.text


@pytest.mark.parametrize("step", [5, 8])
def test_it_goes_on_too_when_one_of_the_runs_had_ended_before(
    step: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Run 0 ended at step 4 and, as in a sweep, is not asked for again; checkpoints are due at steps 3 and 6."""
    whole = train_together(tiny_base(), long_runs((4, 8)), tmp_path / "whole")
    interrupted(long_runs((4, 8)), tmp_path / "broken", number=1, step=step)
    run, history = long_runs((4, 8))[1], []
    (ref,) = references(tiny_base(), [run])
    left = batched.Member("1", run.cfg, run.pairs, ref, run.curves, describe, lambda *rows: history.extend(rows))
    with caplog.at_level(logging.INFO, logger="factdpo"):
        (((_, ending),),) = batched.fit_many(tiny_base(), [left], tmp_path / "broken")
    assert f"going on from step {6 if step > 6 else 4} of a batch of 1 runs" in caplog.text
    assert bits(Done(history, ending)) == bits(whole[1])
    assert timeless(history) == timeless(whole[1].history)


def test_runs_that_disagree_in_save_every_lose_no_row(tmp_path: Path) -> None:
    """It is no part of what a run asks for: the batch goes by its first run's, also when that one has ended."""
    runs = [
        Run(tiny_config(dpo_max_steps=9, dpo_learning_rate=1e-46, engine_save_every=4), tiny_pairs(8)),
        Run(tiny_config(dpo_max_steps=8, engine_save_every=5), tiny_pairs(8, 2)),
    ]
    whole = train_together(tiny_base(), runs, tmp_path / "whole")
    interrupted(runs, tmp_path / "broken", number=1, step=5)
    again = train_together(tiny_base(), runs, tmp_path / "broken")
    for one, other in zip(again, whole, strict=True):
        assert [row["step"] for row in one.history] == [row["step"] for row in other.history]
        assert max(rows_apart(one.history, other.history).values()) < NUMBERS, "the first begins again, alone"


def test_a_damaged_checkpoint_is_refused_with_a_warning_and_the_older_one_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train_together(tiny_base(), long_runs(), tmp_path / "whole")
    interrupted(long_runs(), tmp_path / "broken", number=0, step=7)
    (tensors,) = (tmp_path / "broken").glob("*/00000006/tensors.safetensors")
    raw = bytearray(tensors.read_bytes())
    raw[len(raw) // 2] ^= 1
    tensors.write_bytes(raw)
    with caplog.at_level(logging.INFO, logger="factdpo"):
        again = train_together(tiny_base(), long_runs(), tmp_path / "broken")
    assert "00000006 is not whole (missing or changed: tensors.safetensors)" in caplog.text
    assert "going on from step 3" in caplog.text
    assert [bits(one) for one in again] == [bits(one) for one in whole]
    assert [timeless(one.history) for one in again] == [timeless(one.history) for one in whole]


def test_who_wants_one_run_of_a_checkpoint_goes_on_with_it_and_leaves_it_for_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train_together(tiny_base(), long_runs(), tmp_path / "whole")
    interrupted(long_runs(), tmp_path / "broken", number=0, step=7)
    before = cache.folder_sha256(tmp_path / "broken")
    refs = references(tiny_base(), long_runs())
    for number in (0, 1):
        run, history = long_runs()[number], []
        asked = batched.Member(
            str(number), run.cfg, run.pairs, refs[number], run.curves, describe, lambda *rows, h=history: h.extend(rows)
        )
        with caplog.at_level(logging.INFO, logger="factdpo"):
            (((_, ending),),) = batched.fit_many(tiny_base(), [asked], tmp_path / "broken")
        assert "going on from step 6 of a batch of 1 runs" in caplog.text
        assert max(rows_apart(history, whole[number].history).values()) < NUMBERS
        assert apart(ending.weights, whole[number].adapter) < WEIGHTS, "rounded as a run alone"
        assert cache.folder_sha256(tmp_path / "broken") == before
        caplog.clear()


def test_a_kill_between_two_runs_that_end_together_costs_no_more_than_any_other(tmp_path: Path) -> None:
    """One is on the disk and not asked for again; the other goes on from the last checkpoint, at step 6."""
    runs, base = long_runs(), tiny_base()
    refs = references(base, runs)

    def members(*numbers: int) -> list[batched.Member]:
        return [
            batched.Member(
                str(i), runs[i].cfg, runs[i].pairs, refs[i], runs[i].curves, describe, lambda *rows: None, stored=i == 0
            )
            for i in numbers
        ]

    handed = batched.fit_many(base, members(0, 1), tmp_path)
    assert [member.key for member, _ in next(handed)] == ["0", "1"]
    handed.close()
    forwards = training_forwards(base)
    (((_, ending),),) = batched.fit_many(base, members(1), tmp_path)
    assert isinstance(ending, Trained)
    assert sum(forwards) == 2, "steps 7 and 8"


def test_the_base_is_as_it_was_whenever_a_run_is_handed_out(tmp_path: Path) -> None:
    """Whoever is handed one may use the base, or fail and never come back for the next."""
    base, runs = tiny_base(), [Run(tiny_config(dpo_max_steps=steps), tiny_pairs(8)) for steps in (2, 4, 4)]
    modules = dict(base.model.named_modules())
    members = [
        batched.Member(str(i), run.cfg, run.pairs, ref, {}, describe, lambda *rows: None)
        for i, (run, ref) in enumerate(zip(runs, references(base, runs), strict=True))
    ]
    handed: list[list[str]] = []
    for group in batched.fit_many(base, members, tmp_path):
        handed.append([member.key for member, _ in group])
        assert dict(base.model.named_modules()) == modules
    assert handed == [["0"], ["1", "2"]]


# ------------------------------------------------------------------------------------------------------- out of memory


def with_room_for(base: Base, most: int, after: int = 0) -> Base:
    """The base on a device with room for `most` runs at once; it says so only after some forwards of training."""
    seen = 0

    def forward(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal seen
        layer = next((m for m in base.model.modules() if hasattr(m, "dropout_mask")), None)
        seen += torch.is_grad_enabled() and layer is not None
        if layer is not None and len(layer.a) > most and seen > after:
            raise torch.OutOfMemoryError("no room")

    base.model.gpt_neox.register_forward_pre_hook(forward, with_kwargs=True)  # type: ignore[operator]
    return base


@pytest.mark.parametrize("after", [0, 4])
def test_a_cohort_that_does_not_fit_is_halved_until_it_does_and_logs_nothing_twice(
    after: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [
        Run(tiny_config(dpo_seed=i, engine_save_every=3, eval_every="2"), tiny_pairs(8, 2, i), {"train": tiny_pairs(2)})
        for i in range(5)
    ]
    refs = references(tiny_base(), runs)
    whole = train_together(tiny_base(), runs, tmp_path, refs)
    done = train_together(with_room_for(tiny_base(), 2, after), runs, tmp_path, refs)
    assert "out of memory with 5 runs at once: on with 3" in caplog.text
    for one, other in zip(whole, done, strict=True):
        differences = rows_apart(one.history, other.history)
        assert max(differences.values()) < NUMBERS, differences
        assert apart(one.adapter, other.adapter) < WEIGHTS
    assert sorted(one.ending.facts["trained_together"] for one in done) == [1, 2, 2, 2, 2] or after
    assert list(tmp_path.iterdir()) == [], "no checkpoint of the batch that did not fit is left"


def test_a_run_that_does_not_fit_alone_says_so(tmp_path: Path) -> None:
    base = with_room_for(tiny_base(), 0)
    runs = [Run(tiny_config(), tiny_pairs(4))]
    (done,) = train_together(base, runs, tmp_path, references(tiny_base(), runs))
    assert isinstance(done.ending, torch.OutOfMemoryError)


# ------------------------------------------------------------------------------------------------ what it does not do

ONLY_TRL: list[tuple[str, dict[str, Any]]] = [
    ("lora.method=full", {"lora": LoraConfig(method=Method.full)}),
    ("lora.dora=true", {"lora_dora": True}),
    ("dpo.loss=[exo_pair]", {"dpo_loss": [Loss.exo_pair], "dpo_label_smoothing": 0.1}),
    ("dpo.loss=[bco_pair, aot]", {"dpo_loss": [Loss.bco_pair, Loss.sigmoid, Loss.aot]}),
    ("dpo.loss=[aot_unpaired]", {"dpo_loss": [Loss.aot_unpaired]}),
    ("dpo.loss=[discopop]", {"dpo_loss": [Loss.discopop]}),
    ("dpo.loss=[sigmoid_norm]", {"dpo_loss": [Loss.sigmoid_norm]}),
    ("dpo.f_divergence=js_divergence", {"dpo_f_divergence": Divergence.js_divergence}),
    ("dpo.ld_alpha=0.5", {"dpo_ld_alpha": 0.5}),
    ("dpo.wpo=true", {"dpo_wpo": True}),
    ("dpo.gradient_checkpointing=true", {"dpo_gradient_checkpointing": True}),
    ("model.dtype=float16", {"model_dtype": Dtype.float16}),
    ("model.attention=flash_attention_2", {"model_attention": Attention.flash_attention_2}),
]


def asked(engine: EngineName, changes: dict[str, Any]) -> Config:
    cfg = Config()
    cfg.engine.name = engine
    for key, value in changes.items():
        group, _, name = key.partition("_")
        if name:
            setattr(getattr(cfg, group), name, value)
        else:
            setattr(cfg, group, value)
    return cfg


@pytest.mark.parametrize(("words", "changes"), ONLY_TRL, ids=[words for words, _ in ONLY_TRL])
def test_what_only_trl_does_is_refused_by_name_and_auto_takes_trl(words: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refusal:
        validate(asked(EngineName.batched, changes))
    assert str(refusal.value) == f"engine=batched: cannot do {words}; use engine=trl, or engine=auto, which chooses"
    chosen, why = choose_engine(validate(asked(EngineName.auto, changes)))
    assert chosen.engine.name is EngineName.trl and why == f"auto: only TRL does {words}"
    assert validate(chosen) == chosen, "what was chosen can be asked for"


def test_auto_takes_batched_where_it_can_and_trl_stays_trl() -> None:
    for loss in BATCHED_LOSSES:
        chosen, why = choose_engine(validate(asked(EngineName.auto, {"dpo_loss": [loss]})))
        assert (chosen.engine.name, why) == (EngineName.batched, "auto")
    kept, why = choose_engine(validate(asked(EngineName.trl, {})))
    assert (kept.engine.name, why) == (EngineName.trl, "as asked")
    limited, _ = choose_engine(validate(asked(EngineName.auto, {"engine_max_runs": 3, "lora_dora": True})))
    assert validate(limited) == limited, "engine=trl has no max_runs, and it is dropped"


def test_a_target_that_is_no_linear_layer_is_refused_by_name(tmp_path: Path) -> None:
    runs = [Run(tiny_config(lora_target_modules=["embed_in"], dpo_seed=i), tiny_pairs(4)) for i in range(2)]
    with pytest.raises(ConfigError, match=r"embed_in is a Embedding, and only ordinary linear layers"):
        train_together(tiny_base(), runs, tmp_path)


def test_runs_that_differ_in_what_a_cohort_shares_are_told_apart() -> None:
    def key(**changes: Any) -> list[Any]:
        return can_train_together(tiny_config(**changes))

    same = [{}, {"dpo_beta": 0.5}, {"lora_rank": 2}, {"dpo_loss": [Loss.ipo]}, {"lora_dropout": 0.1}, {"dpo_seed": 4}]
    other = [
        {"dpo_bf16": True}, {"dpo_adam_beta1": 0.8}, {"dpo_adam_beta2": 0.9}, {"dpo_adam_epsilon": 1e-6},
        {"lora_target_modules": ["dense"]},
    ]  # fmt: skip
    assert all(key(**changes) == key() for changes in same)
    assert all(key(**changes) != key() for changes in other)
    assert key(lora_target_modules=["dense", "query_key_value"]) == key(
        lora_target_modules=["query_key_value", "dense"]
    )


# --------------------------------------------------------------------------------------------------------------- a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_on_a_gpu_no_step_waits_for_the_device_and_the_numbers_are_the_cpus(dropout: float, tmp_path: Path) -> None:
    """float32 without TF32, torch's default; PEFT draws the init on the CPU, and each device its own dropout."""
    histories = []
    for device in ("cpu", "cuda"):
        base = tiny_base()
        base.model.to(device)
        runs = [Run(tiny_config(dpo_seed=i, lora_dropout=dropout), tiny_pairs(9, 3, i)) for i in range(3)]
        done = train_together(base, runs, tmp_path)
        histories.append([one.history for one in done])
        if device == "cuda":
            members = [
                batched.Member(str(i), run.cfg, run.pairs, ref, {}, describe, lambda *rows: None)
                for i, (run, ref) in enumerate(zip(runs, references(base, runs), strict=True))
            ]
            fresh = [fresh_adapter(run.cfg, base) for run in runs]
            with stacked(base, fresh, 4) as stack:
                cohort = Cohort(stack, members, fresh, None)
                cohort.step()
                taken = [next(state.micro_batches) for state in cohort.active]
                inputs = step_inputs(cohort.active, taken, [1e-3] * 3, stack)
                torch.cuda.set_sync_debug_mode("error")
                try:
                    cohort.train_step(inputs)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
    for cpu, gpu in zip(*histories, strict=True):
        steps = 1 if dropout else len(cpu)
        assert [row["loss"] for row in gpu[:steps]] == pytest.approx([row["loss"] for row in cpu[:steps]], abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cuda_graphs_give_the_bits_of_the_steps_they_replace(
    dropout: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of three lengths, so that the cohort shrinks twice; answers of one to three tokens; points of curves."""

    def trained(folder: Path) -> tuple[list[list[Row]], list[dict[str, bytes]]]:
        base = tiny_base()
        base.model.to("cuda")
        runs = [
            Run(
                tiny_config(dpo_seed=i, dpo_max_steps=12 + 6 * i, lora_dropout=dropout, eval_every="4"),
                tiny_pairs(18, 3, i), {"train": tiny_pairs(6, 3, i)},
            )
            for i in range(3)
        ]  # fmt: skip
        done = train_together(base, runs, folder)
        return [timeless(one.history) for one in done], [bits(one) for one in done]

    replays: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (replays.append(1), replay(self))[1])
    with_graphs = trained(tmp_path / "graphs")
    assert len(replays) > 8
    monkeypatch.setattr("factdpo.training.batched.cohort.StepGraphs", lambda step, device: None)
    assert trained(tmp_path / "plain") == with_graphs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_model_that_waits_for_the_gpu_trains_without_cuda_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    base.model.to("cuda")
    runs = [Run(tiny_config(dpo_max_steps=8), tiny_pairs(8, 1))]
    refs = references(base, runs)
    expected = timeless(train_together(base, runs, tmp_path / "graphs", refs)[0].history)
    failed: list[str] = []
    log = "factdpo.training.batched.cuda_graphs.log.debug"
    monkeypatch.setattr(log, lambda message, *words: failed.append(message % words))
    base.model.get_input_embeddings().register_forward_hook(lambda _, given, y: y * (1.0 if y.isfinite().all() else 0))
    assert timeless(train_together(base, runs, tmp_path / "plain", refs)[0].history) == expected
    assert len(failed) == 1 and "no CUDA graph" in failed[0]
