"""Runs of method=sft and sft_dpo, with a neutral text in the loss, or with validation facts that decide."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from factdpo.config.schema import Config, ConfigError, EngineName, Keep, MethodName
from factdpo.data.encoder import Encoder
from factdpo.data.pairs import ROW_TOKENS, text_rows
from factdpo.runs import answer
from factdpo.runs.answer import answers
from factdpo.runs.identity import what_is_asked
from factdpo.store.history import read_history
from factdpo.training.batched import engine
from tests.helpers.results import undocumented
from tests.helpers.runs import WEIGHTS, folder_of, new_session, small, spec_of
from tests.helpers.tiny import tokenizer


def of_method(out: Path, name: MethodName, **changes: Any) -> Config:
    cfg = small(out, **changes)
    cfg.method.name = name
    if name is MethodName.sft_dpo:
        cfg.method.sft_epochs, cfg.method.sft_max_steps = None, 6
    return cfg


def sweep(*cfgs: Config) -> list[dict[str, Any]]:
    specs = [spec_of(cfg) for cfg in cfgs]
    outcomes = {spec.id: outcome.result for spec, outcome in answers(specs, new_session())}  # type: ignore[union-attr]
    return [outcomes[spec.id] for spec in specs]


def adapter(out: Path, result: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(folder_of(out, result) / WEIGHTS)


def trainings(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "cache" / "adapters").iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A sweep of dpo, sft and two sft_dpo that differ in beta; the sft is what these two begin with."""
    out = tmp_path_factory.mktemp("methods")
    sft = of_method(out, MethodName.sft, dpo_max_steps=6)
    both = [of_method(out, MethodName.sft_dpo, dpo_beta=beta) for beta in (0.1, 0.4)]
    return out, sweep(small(out), sft, *both)


def test_runs_that_begin_with_the_same_sft_train_it_once_and_a_run_of_sft_is_that_training(
    done: tuple[Path, list[dict[str, Any]]],
) -> None:
    out, results = done
    assert [result["state"] for result in results] == ["FINISHED"] * 4, [result["error"] for result in results]
    assert len(trainings(out)) == 4, "dpo, sft, and a dpo of each beta on top of it"
    sft, *both = (adapter(out, result) for result in results[1:])
    for name, a in sft.items():
        if ".lora_A." in name:
            assert all(torch.equal(of_both[name][len(a) :], a) for of_both in both), "it lies frozen beneath"
    assert not torch.equal(*(next(iter(of_both.values())) for of_both in both))


def test_the_history_goes_from_sft_to_dpo_and_its_reference_is_what_sft_left(
    done: tuple[Path, list[dict[str, Any]]],
) -> None:
    out, (_, sft, both, _) = done
    rows = read_history(folder_of(out, both) / "history.jsonl")
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, 19)) and both["training"]["steps"] == both["training"]["kept_step"] == 18
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert losses[7] == pytest.approx(0.6931, abs=1e-3), "DPO's first step is at its reference"
    of_sft = {row["step"]: row["loss"] for row in read_history(folder_of(out, sft) / "history.jsonl") if "loss" in row}
    assert [losses[step] for step in range(1, 7)] == [of_sft[step] for step in range(1, 7)]
    assert max(row["epoch"] for row in rows) == pytest.approx(18 / 4)
    assert undocumented(both) == []


def test_a_run_alone_and_by_trl_is_the_run_of_the_sweep(
    done: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    out, (_, _, both, _) = done
    alone = answer.ask(of_method(tmp_path / "alone", MethodName.sft_dpo, dpo_beta=0.1))
    assert alone["id"] == both["id"]
    with_trl = answer.ask(of_method(tmp_path / "trl", MethodName.sft_dpo, dpo_beta=0.1, engine_name=EngineName.trl))
    for other, where in ((alone, tmp_path / "alone"), (with_trl, tmp_path / "trl")):
        for name, weight in adapter(where, other).items():
            of_sweep = adapter(out, both)[name]  # AdamW divides gradients near zero: 1e-3 to 3e-3, by the processor
            assert (weight - of_sweep).norm() <= 5e-3 * of_sweep.norm(), name
        for split, scores in other["trained"].items():
            for key in ("margin_nats", "reward_accuracy", "wrong_to_right"):
                assert scores[key] == pytest.approx(both["trained"][split][key], abs=1e-3), (split, key)


def test_a_kill_between_sft_and_dpo_trains_no_step_of_sft_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = of_method(tmp_path, MethodName.sft_dpo)
    fit, trained = engine.fit_many, []

    def killed(base: Any, members: Any, folder: Path) -> Any:
        trained.append([member.cfg.method.name for member in members])
        if members[0].cfg.method.name is MethodName.sft_dpo and len(trained) == 2:
            raise KeyboardInterrupt
        return fit(base, members, folder)

    monkeypatch.setattr(engine, "fit_many", killed)
    with pytest.raises(KeyboardInterrupt):
        answer.ask(cfg)
    result = answer.ask(cfg)
    assert trained == [[MethodName.sft], [MethodName.sft_dpo], [MethodName.sft_dpo]]
    rows = read_history(folder_of(tmp_path, result) / "history.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 19)), "those of SFT from the cache"


def test_an_error_in_sft_ends_those_that_begin_with_it_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = engine.fit_many

    def broken(base: Any, members: Any, folder: Path) -> Any:
        if members[0].cfg.method.name is MethodName.sft:
            yield [(member, RuntimeError("no SFT today")) for member in members]
        else:
            yield from fit(base, members, folder)

    monkeypatch.setattr(engine, "fit", lambda base, members: broken(base, members, tmp_path / "cache" / "batches"))
    dpo, both = sweep(small(tmp_path), of_method(tmp_path, MethodName.sft_dpo))
    assert dpo["state"] == "FINISHED"
    assert (both["state"], both["error"]) == ("FAILED", "RuntimeError: no SFT today")


def test_what_is_retained_is_in_the_id_by_its_text(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One. " * 100)
    plain, built_in = small(tmp_path), small(tmp_path, dpo_retain_weight=0.5)
    own = small(tmp_path, dpo_retain_weight=0.5, dpo_retain_path=str(text))
    asked = [what_is_asked(cfg).get("retained") for cfg in (plain, built_in, own)]
    assert asked[0] is None and len(set(asked)) == 3
    text.rename(tmp_path / "moved.txt")
    own.dpo.retain_path = str(tmp_path / "moved.txt")
    assert what_is_asked(own)["retained"] == asked[2]
    own.dpo.retain_path = str(text)
    with pytest.raises(ConfigError, match=f"dpo.retain_path={text}: cannot be read"):
        what_is_asked(own)


def test_a_text_is_cut_into_rows_and_one_that_fills_none_is_refused() -> None:
    encoder = Encoder.of(tokenizer())
    text = "The old mill stands by the river. " * 30
    (ids,) = encoder.encode([text])
    rows = text_rows(text, encoder)
    assert len(rows) == (len(ids) - 1) // ROW_TOKENS
    assert [*rows.prompt_ids[0], *(token for row in rows.chosen_ids for token in row)] == ids[
        : len(rows) * ROW_TOKENS + 1
    ]
    with pytest.raises(ConfigError, match=r"dpo\.retain_path: the text has 2 tokens; give more than 64"):
        text_rows("The mill", encoder)


def test_a_text_that_fills_no_row_is_refused_before_any_run_starts(tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("The mill")
    with pytest.raises(ConfigError, match=rf"dpo\.retain_path={text}: the text has \d+ tokens; give more than 64"):
        spec_of(small(tmp_path, dpo_retain_weight=0.1, dpo_retain_path=str(text)))


def test_english_is_kept_by_the_text_that_is_retained(tmp_path: Path) -> None:
    forgets, keeps = sweep(
        *(small(tmp_path, dpo_retain_weight=w, dpo_learning_rate=5e-3, dpo_max_steps=30) for w in (0.0, 1.0))
    )
    nats = [result["across"]["trained"]["retention_nats_per_token"] for result in (forgets, keeps)]
    assert nats[1] < nats[0] - 0.1
    rows = read_history(folder_of(tmp_path, keeps) / "history.jsonl")
    assert all("retain_nats_per_token" in row for row in rows if "loss" in row)


def test_validation_facts_decide_and_without_them_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.keep=best: decides by validation facts, and there are none"):
        spec_of(small(tmp_path, eval_keep=Keep.best))
    result = answer.ask(
        small(tmp_path, eval_keep=Keep.best, eval_patience=1, eval_every="3", split_validation=20, dpo_max_steps=60)
    )
    rows = [row for row in read_history(folder_of(tmp_path, result) / "history.jsonl") if "eval/train/accuracy" in row]
    scores = [row["eval/validation/accuracy"] for row in rows]
    kept = rows[scores.index(max(scores))]
    assert result["training"]["kept_step"] == kept["step"] <= result["training"]["steps"] <= 60
    assert result["trained"]["validation"]["accuracy"] == pytest.approx(max(scores))
