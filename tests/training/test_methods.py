"""SFT, SFT then DPO, a neutral text in the loss, the best step's weights, early stopping: batched is TRL's, each."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from factdpo.config.schema import Config, Keep, MethodName, Schedule
from factdpo.config.validate import validate
from factdpo.data.pairs import Pairs
from factdpo.models.scoring import PairLogps, pair_logps
from factdpo.training import adapters, trl_engine
from factdpo.training.batched import engine as batched
from factdpo.training.batched.adapter import Adapter, read_adapter
from factdpo.training.engine import Engine, Member, Trained
from factdpo.training.sanity_checks import SanityCheckError, check_first_step
from tests.helpers.tiny import tiny_base, tiny_config, tiny_pairs

NUMBERS = 1e-5  # of a row, relative where it is above 1
WEIGHTS = 1e-4  # of the norm of each tensor
SAME = ("loss", "grad_norm", "learning_rate", "num_tokens", "mean_token_accuracy", "entropy", "epoch", "aux_loss")
FAMILIES = ["gpt_neox", "qwen2_moe"]  # with a router's loss


class Ended(NamedTuple):
    rows: list[dict[str, Any]]
    trained: Trained
    folder: Path

    @property
    def adapter(self) -> Adapter:
        return read_adapter(self.folder / "adapter")


def describe(scores: dict[str, PairLogps]) -> dict[str, Any]:
    """A row of scores as the pipeline writes them, in so far as it decides anything."""
    return {
        f"eval/{name}/accuracy": (found.chosen > found.rejected).float().mean().item() for name, found in scores.items()
    }


def train(
    engine: Engine, folder: Path, *cfgs: Config, pairs: Pairs | None = None, begins_with: Path | None = None,
    retained: Pairs | None = None, curves: dict[str, Pairs] | None = None, refs: PairLogps | None = None,
    family: str = "gpt_neox",
) -> list[Ended]:  # fmt: skip
    """These runs on the same pairs, each with its history and what it left in a folder of its own."""
    pairs = pairs or tiny_pairs(12, longest=3)
    histories: list[list[dict[str, Any]]] = [[] for _ in cfgs]
    endings: dict[str, Any] = {}
    for part in [list(enumerate(cfgs))] if engine is not trl_engine.fit else [[item] for item in enumerate(cfgs)]:
        base = tiny_base(family)
        of_base = refs or pair_logps(base.model, pairs, 64)
        members = [
            Member(
                str(number), cfg, pairs, of_base, curves or {}, describe,
                lambda *rows, number=number: histories[number].extend(rows),
                begins_with=begins_with, retained=retained,
            )
            for number, cfg in part
        ]  # fmt: skip
        if engine is trl_engine.fit:
            groups = engine(base, members)
        else:
            groups = batched.fit_many(base, members, folder / "batches")
        endings |= {member.key: ending for group in groups for member, ending in group}
    done = []
    for number, rows in enumerate(histories):
        ending = endings[str(number)]
        if isinstance(ending, Exception):
            raise ending
        place = folder / str(number)
        place.mkdir(parents=True)
        ending.save(place)
        done.append(Ended(rows, ending, place))
    return done


def assert_same(found: Ended, wanted: Ended) -> None:
    assert len(found.rows) == len(wanted.rows)
    for ours, theirs in zip(found.rows, wanted.rows, strict=True):
        for name in SAME:
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=NUMBERS, abs=NUMBERS), (name, ours["step"])
    ours, theirs = found.adapter, wanted.adapter
    assert ours.config.r == theirs.config.r and ours.scale == theirs.scale
    assert ours.layers.keys() == theirs.layers.keys()
    for name, both in ours.layers.items():
        for weight, other in zip(both, theirs.layers[name], strict=True):
            assert (weight - other).norm() <= WEIGHTS * other.norm(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"dpo_gradient_accumulation_steps": 2, "dpo_weight_decay": 0.1}])
def test_sft_is_sfttrainers(tmp_path: Path, changes: dict[str, Any], family: str) -> None:
    cfgs = [tiny_config(method_name=MethodName.sft, dpo_seed=seed, **changes) for seed in (0, 1)]
    ours = train(batched.fit, tmp_path / "ours", *cfgs, tiny_config(**changes), family=family)  # beside a run of DPO
    for found, wanted in zip(ours, train(trl_engine.fit, tmp_path / "trl", *cfgs, family=family), strict=False):
        assert_same(found, wanted)
        assert ("aux_loss" in found.rows[0]) == (family == "qwen2_moe")
    assert not [name for name in ours[0].rows[0] if name.startswith("rewards/")], "there is no reference to reward"


@pytest.mark.parametrize("family", FAMILIES)
def test_dpo_begins_with_what_sft_left_and_the_two_are_one_adapter(tmp_path: Path, family: str) -> None:
    pairs = tiny_pairs(12, longest=3)
    (sft,) = train(
        batched.fit,
        tmp_path / "sft",
        tiny_config(method_name=MethodName.sft, lora_alpha=4.0),
        pairs=pairs,
        family=family,
    )
    base = tiny_base(family)
    refs = pair_logps(adapters.load_trained(base, sft.folder), pairs, 64)
    cfgs = [tiny_config(method_name=MethodName.sft_dpo, dpo_beta=beta, dpo_weight_decay=0.1) for beta in (0.1, 0.5)]
    given: dict[str, Any] = {"pairs": pairs, "begins_with": sft.folder, "refs": refs, "family": family}
    theirs = train(trl_engine.fit, tmp_path / "trl", *cfgs, **given)
    ours = train(batched.fit, tmp_path / "ours", *cfgs, **given)
    for found, wanted in zip(ours, theirs, strict=True):
        assert_same(found, wanted)
        assert found.adapter.config.r == 8, "that of SFT and that of DPO"
        assert found.trained.facts["trainable_parameters"] == wanted.trained.facts["trainable_parameters"]
        reloaded = pair_logps(adapters.load_trained(tiny_base(family), found.folder), pairs, 64)
        adapters.check_probe(found.folder, reloaded, torch.float32)
        for name, (a, b) in found.adapter.layers.items():  # the lower one is as SFT left it, at the upper one's scale
            of_sft = sft.adapter.layers[name]
            assert torch.equal(a[4:], of_sft[0]) and torch.allclose(b[:, 4:] * 2, of_sft[1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [MethodName.dpo, MethodName.sft])
def test_a_neutral_text_is_retained_alike(tmp_path: Path, name: MethodName, family: str) -> None:
    text = tiny_pairs(5, longest=1, seed=3)
    text = Pairs(text.facts, [[7]] * 5, [list(range(n, n + 12)) for n in range(9, 14)], [[n] for n in range(9, 14)], 0)
    changes: dict[str, Any] = {"dpo_retain_weight": 0.7, "dpo_retain_batch_size": 2, "method_name": name}
    cfgs = [tiny_config(**changes, dpo_gradient_accumulation_steps=n) for n in (1, 2)]
    theirs = train(trl_engine.fit, tmp_path / "trl", *cfgs, retained=text, family=family)
    for cfg, wanted in zip(cfgs, theirs, strict=True):
        folder = tmp_path / f"ours{cfg.dpo.gradient_accumulation_steps}"
        (found,) = train(batched.fit, folder, cfg, retained=text, family=family)
        assert_same(found, wanted)
        for ours, of_trl in zip(found.rows, wanted.rows, strict=True):
            assert ours["retain_nats_per_token"] == pytest.approx(of_trl["retain_nats_per_token"], rel=NUMBERS)
    (without,) = train(batched.fit, tmp_path / "without", tiny_config(method_name=name), family=family)
    if family == "gpt_neox":  # six steps teach it the text
        assert theirs[0].rows[-1]["retain_nats_per_token"] < theirs[0].rows[0]["retain_nats_per_token"]
    assert "retain_nats_per_token" not in without.rows[0]


def curves_that_peak() -> dict[str, Pairs]:
    """Validation facts that training at this rate gets right for a while, by the luck of seed 1."""
    return {"validation": tiny_pairs(40, longest=2, seed=1)}


@pytest.mark.parametrize("engine", [batched.fit, trl_engine.fit])
def test_the_best_step_is_kept_and_a_run_that_gets_no_better_stops(tmp_path: Path, engine: Engine) -> None:
    curves = curves_that_peak()
    changes: dict[str, Any] = {"eval_every": "1", "dpo_max_steps": 8, "dpo_learning_rate": 3e-3, "split_validation": 40}
    changes["dpo_lr_scheduler"] = Schedule.constant  # so that a shorter run has the same first steps
    cfg = tiny_config(**changes, eval_keep=Keep.best, eval_patience=2)
    (found,) = train(engine, tmp_path / "best", cfg, curves=curves)
    scores = [row["eval/validation/accuracy"] for row in found.rows if "eval/validation/accuracy" in row]
    best = scores.index(max(scores)) + 1
    stopped = found.trained.facts["steps"]
    assert found.trained.facts["kept_step"] == best, scores
    assert stopped == len(scores) == best + 2 < 8, "two scores after the best one, none better"
    (short,) = train(engine, tmp_path / "short", tiny_config(**changes | {"dpo_max_steps": best}), curves=curves)
    for name, both in found.adapter.layers.items():
        assert all(torch.equal(a, b) for a, b in zip(both, short.adapter.layers[name], strict=True))


def test_the_best_step_survives_a_checkpoint(tmp_path: Path) -> None:
    curves = curves_that_peak()
    changes: dict[str, Any] = {"eval_every": "1", "dpo_max_steps": 8, "dpo_learning_rate": 3e-3, "split_validation": 40}
    cfg = tiny_config(**changes, eval_keep=Keep.best, engine_save_every=1)
    (whole,) = train(batched.fit, tmp_path / "whole", cfg, curves=curves)
    with pytest.raises(RuntimeError, match="as by a kill"):
        pairs, base = tiny_pairs(12, longest=3), tiny_base()
        rows: list[Any] = []

        def record(*new: Any) -> None:
            rows.extend(new)

        member = Member("0", cfg, pairs, pair_logps(base.model, pairs, 64), curves, describe, record)
        saves = []

        def save(self: Any, state: Any, tensors: Any) -> None:
            original(self, state, tensors)
            saves.append(state["step"])
            if len(saves) == 6:
                raise RuntimeError("as by a kill")

        original = batched.checkpoints.Home.save
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batched.checkpoints.Home, "save", save)
            patch.setattr(batched.checkpoints.Home, "forget", lambda self: None)
            for group in batched.fit_many(base, [member], tmp_path / "again" / "batches"):
                for _, ending in group:
                    raise ending  # type: ignore[misc]
    (again,) = train(batched.fit, tmp_path / "again", cfg, curves=curves)
    assert again.trained.facts["kept_step"] == whole.trained.facts["kept_step"] < 6, "best before the kill"
    for name, both in again.adapter.layers.items():
        assert all(torch.equal(a, b) for a, b in zip(both, whole.adapter.layers[name], strict=True))


def test_a_first_loss_that_is_not_the_references_is_found() -> None:
    pairs, cfg = tiny_pairs(12, longest=3), tiny_config(method_name=MethodName.sft)
    refs = pair_logps(tiny_base().model, pairs, 64)
    member = Member("0", cfg, pairs, refs, {}, describe, lambda *rows: None)
    with pytest.raises(SanityCheckError, match="the loss is"):
        check_first_step(member, {"step": 1, "loss": 0.5})


def test_keys_that_sft_does_not_read_are_refused() -> None:
    for key, value in {"beta": 0.5, "loss_weights": [2.0], "wpo": True}.items():
        cfg = tiny_config()
        cfg.method.name = MethodName.sft
        setattr(cfg.dpo, key, value)
        with pytest.raises(ValueError, match=f"dpo.{key}="):
            validate(cfg)
