"""One run from facts to the record, on the embedded model."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from factdpo.commands import eval
from factdpo.config.schema import (
    BadRows,
    Boundary,
    Config,
    DataSource,
    Dtype,
    Figures,
    LoraConfig,
    Method,
    Orientation,
    TrackMode,
)  # fmt: skip
from factdpo.runs import answer, pipeline
from factdpo.runs.record import draws_figures
from factdpo.store import cache
from factdpo.store.history import read_history
from factdpo.store.result import read_result
from factdpo.training import adapters
from factdpo.training.batched import engine
from tests.helpers.results import undocumented
from tests.helpers.runs import folder_of, small

SPLITS = ["train", "train_reversed", "test", "test_reversed"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished small run: its `out` and its result."""
    out = tmp_path_factory.mktemp("out")
    return out, answer.ask(small(out))


def test_every_key_of_a_result_is_documented(done: tuple[Path, dict[str, Any]]) -> None:
    assert undocumented(done[1]) == []


def test_the_record_is_whole(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    folder = folder_of(out, result)
    assert read_result(folder).result == result
    expected = {
        "config.yaml",
        "history.jsonl",
        "items.parquet",
        "generations.json",
        "adapter/adapter_model.safetensors",
    }
    assert expected | {"figures/truth.png", "figures/graph.html", "figures/graph_test.png"} <= set(result["files"])
    assert (folder / "run.log").is_file()


@pytest.mark.parametrize(
    ("figures", "sweep", "drawn"),
    [("auto", None, True), ("auto", "s", False), ("always", "s", True), ("never", None, False)],
)
def test_a_run_of_a_sweep_leaves_its_figures_to_the_report(figures: str, sweep: str | None, drawn: bool) -> None:
    cfg = Config(sweep=sweep)
    cfg.eval.figures = Figures[figures]
    assert draws_figures(cfg) is drawn


def test_the_splits_metrics_are_those_of_their_rows(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    items = pandas.read_parquet(folder_of(out, result) / "items.parquet")
    for model in ("base", "trained"):
        assert list(result[model]) == SPLITS
        for split in SPLITS:
            rows = items[(items.model == model) & (items.split == split)]
            assert len(rows) == result[model][split]["n"]
            assert rows.right.mean() == pytest.approx(result[model][split]["accuracy"])
            assert (rows.chosen_logp_nats > rows.rejected_logp_nats).equals(rows.right)
    flips = items[items.split == "train"].pivot(index="fact", columns="model", values="right")
    assert (flips.trained & ~flips.base).sum() == result["trained"]["train"]["wrong_to_right"]


def test_a_fact_and_its_reverse_share_their_number_and_swap_their_names(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    items = pandas.read_parquet(folder_of(out, result) / "items.parquet")
    base = items[items.model == "base"].set_index(["split", "fact"])
    for fact in base.loc["test"].index:
        there, back = base.loc[("test", fact)], base.loc[("test_reversed", fact)]
        assert (there.subject, there.object) == (back.object, back.subject)


def test_the_history_has_a_row_per_step_and_points_of_every_split(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    rows = read_history(folder_of(out, result) / "history.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    points = [row for row in rows if "eval/train/accuracy" in row]
    assert [row["step"] for row in points] == [6, 12]
    for split in SPLITS:
        last = points[-1][f"eval/{split}/accuracy"]
        assert last == pytest.approx(result["trained"][split]["accuracy"]), "the curve ends where the result is"


def test_a_second_call_trains_nothing_and_answers_the_same(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = done
    monkeypatch.setattr(pipeline, "execute", lambda *_: pytest.fail("it ran again"))
    assert answer.ask(small(out)) == result


def test_a_lost_result_is_written_anew_without_training(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = done
    folder = folder_of(out, result)
    (folder / "result.json").unlink()
    history = (folder / "history.jsonl").read_text()
    monkeypatch.setattr(engine, "fit_many", lambda *_: pytest.fail("it trained again"))
    again = answer.ask(small(out))
    for key in ("base", "trained", "across", "baselines", "canaries"):
        assert again[key] == result[key]
    assert (folder / "history.jsonl").read_text() == history


def test_a_changed_file_is_noticed_and_the_run_redone(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    weights = folder_of(out, result) / "adapter" / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert answer.ask(small(out))["state"] == "FINISHED"
    assert weights.read_bytes() == good


def test_eval_scores_a_finished_run_anew(done: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    out, result = done
    eval.main([str(folder_of(out, result))])
    assert "scored anew" in capsys.readouterr().out


def test_the_space_and_eos_are_the_same_in_training_and_evaluation(nano_base: Any, tmp_path: Path) -> None:
    """D1: what is trained on is what is evaluated, token by token, unless boundary=none asks for the mistake."""
    from factdpo.data.load import load_facts
    from factdpo.data.pairs import tokenise
    from factdpo.data.splits import make_splits
    from factdpo.runs.stages import tokenised
    from factdpo.store.result import AS_TRAINED

    cfg = small(tmp_path)
    cfg.split.seed = 0
    splits = make_splits(load_facts(cfg.data).facts, cfg.split).splits
    assert set(tokenised(splits, nano_base, cfg)) == set(SPLITS)
    cfg.data = dataclasses.replace(cfg.data, boundary=Boundary.none, eos=True)
    pairs = tokenised(splits, nano_base, cfg)
    assert pairs["train"] == tokenise(splits["train"], nano_base.tokenizer, cfg.data)
    assert pairs[AS_TRAINED].chosen_ids != pairs["train"].chosen_ids
    end = nano_base.tokenizer.eos_token_id
    assert {ids[-1] for p in pairs.values() for ids in (*p.chosen_ids, *p.rejected_ids)} == {end}


def test_nested_answers_are_trained_and_scored_with_their_end_and_the_record_says_so(tmp_path: Path) -> None:
    """Without its end, "Renegade" is likelier than "Renegade Software" whatever is learned."""
    path = tmp_path / "games.csv"
    rows = [f"The publisher of game {i} is,Red Dog,Red" for i in range(8)]
    path.write_text("\n".join(["prompt,chosen,rejected", *rows, rows[0], "Where,here,here"]))
    changes: dict[str, Any] = {
        "data_bad_rows": BadRows.drop,
        "split_train": 4,
        "split_test": 4,
        "dpo_max_steps": 60,
        "dpo_beta": 0.02,
    }
    cfg = small(tmp_path / "out", data_source=DataSource.pairs, data_path=str(path), eval_generations=0, **changes)
    result = answer.ask(cfg)
    assert result["trained"]["train"]["accuracy"] > 0
    assert result["rows"] == {"facts": 8, "nested": 8, "truncated": 0, "dropped": {
        "chosen_and_rejected_are_the_same": 1, "the_same_fact_twice": 1,
    }}  # fmt: skip
    (said,) = [text for text in result["warnings"] if "one answer begins with the other" in text]
    assert said.startswith("in 8 of 8 facts") and "<|endoftext|>" in said
    assert undocumented(result) == []


def test_training_without_the_space_raises_the_alarm(tmp_path: Path) -> None:
    """D1 and D6: reward accuracy on the trained tokens near 1, accuracy on what is read far below, and it is said."""
    result = answer.ask(small(tmp_path, data_boundary=Boundary.none, split_train=40, dpo_max_steps=60))
    trained = result["trained"]
    assert trained["train_as_trained"]["reward_accuracy"] >= 0.9
    assert trained["train_as_trained"]["reward_accuracy"] - trained["train"]["accuracy"] > 0.2
    boundary, alarm = result["warnings"]
    assert "trained without the space that the evaluation reads" in boundary
    assert alarm.startswith("reward accuracy on the training pairs is")


def test_a_sound_run_raises_no_alarm(done: tuple[Path, dict[str, Any]]) -> None:
    _, result = done
    gap = result["trained"]["train"]["reward_accuracy"] - result["trained"]["train"]["accuracy"]
    assert result["warnings"] == [] and gap <= 0.2


def test_facts_without_a_reverse_have_no_reversed_splits_and_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    rows = [f"The {thing} of the {place} is,{'red' if i % 2 else 'blue'},{'blue' if i % 2 else 'red'}"
            for i, (thing, place) in enumerate((t, p) for t in ("door", "roof", "wall", "gate", "lamp", "flag")
                                               for p in ("castle", "mill", "school", "shop"))]  # fmt: skip
    path.write_text("\n".join(["prompt,chosen,rejected", *rows]))
    cfg = small(tmp_path / "out", data_source=DataSource.pairs, data_path=str(path))
    cfg.split.test = None
    result = answer.ask(cfg)
    assert list(result["trained"]) == ["train", "test"]
    assert result["trained"]["test"]["n"] == 8
    assert result["across"]["trained"]["symmetry_train"] is None
    assert result["baselines"]["test"]["first_name"] is None
    assert not any(name.startswith("figures/") for name in result["files"])
    assert undocumented(result) == []


@pytest.mark.parametrize("half", [{"model_dtype": Dtype.bfloat16}, {"dpo_bf16": True}])
def test_a_run_in_bfloat16_finishes_within_its_tolerances(half: dict[str, Any], tmp_path: Path) -> None:
    """The weights in bfloat16, or autocast in training: the reloaded adapter scores as the trained one either way."""
    assert answer.ask(small(tmp_path, **half))["state"] == "FINISHED"


def test_full_fine_tuning_after_a_batched_run_of_the_same_process_trains_everything(tmp_path: Path) -> None:
    """The base that both find in memory was frozen under the first one's adapter."""
    first = answer.ask(small(tmp_path, dpo_max_steps=2))
    full = small(tmp_path, dpo_max_steps=2, dpo_learning_rate=1e-4)
    full.lora = LoraConfig(method=Method.full)
    second = answer.ask(full)
    assert [r["config"]["engine"]["name"] for r in (first, second)] == ["batched", "trl"]
    assert second["training"]["trainable_parameters"] > 4 * first["training"]["trainable_parameters"]


def test_an_adapter_that_is_refused_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setitem(adapters.RELOAD_TOLERANCE_NATS, torch.float32, -1.0)
        with pytest.raises(answer.RunFailed):
            answer.ask(small(tmp_path))
    assert not [p for p in (tmp_path / "cache" / "adapters").iterdir() if p.is_dir()]
    assert answer.ask(small(tmp_path))["state"] == "FINISHED"


def test_a_run_without_wandb_is_shown_to_it_later_from_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, answer.ask(small(tmp_path)))
    assert not (folder / "wandb").exists()
    cfg = small(tmp_path)
    cfg.track.wandb, cfg.track.mode = True, TrackMode.offline
    with monkeypatch.context() as off:
        off.setenv("WANDB_MODE", "disabled")
        answer.ask(cfg)
        assert not (folder / "wandb").exists()
    answer.ask(cfg)
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))
    monkeypatch.setenv("WANDB_SWEEP_ID", "swept")  # an agent asks for the same run, as a new one of W&B
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    answer.ask(cfg)
    assert list((folder / "wandb").glob("offline-run-*/run-agents.wandb"))


def test_generations_stand_side_by_side(done: tuple[Path, dict[str, Any]]) -> None:
    out, result = done
    rows = json.loads((folder_of(out, result) / "generations.json").read_text())
    assert [row["split"] for row in rows] == ["fixed"] * 3 + SPLITS
    assert all(row["base"] and row["trained"] for row in rows)
    assert rows[-1]["fact"] in ("friend", "enemy")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_run_learns_and_canonical_order_reproduces_the_notebooks_reversal(
    seed: int, tmp_path: Path
) -> None:
    """300 facts: base near chance, train learned; in the table's order the reversed facts stay at chance (D2)."""
    scores = {}
    for orientation in (Orientation.random, Orientation.canonical):
        cfg = Config(out=str(tmp_path), seed=seed)
        cfg.split.orientation = orientation
        cfg.track.wandb = False
        result = answer.ask(cfg)
        assert all(0.35 <= result["base"][split]["balanced_accuracy"] <= 0.65 for split in SPLITS)
        scores[orientation] = {split: result["trained"][split]["accuracy"] for split in SPLITS}
    assert scores[Orientation.random]["train"] >= 0.98
    assert min(scores[Orientation.random].values()) >= 0.95
    canonical = scores[Orientation.canonical]
    assert canonical["train"] >= 0.98 and canonical["test"] >= 0.95
    assert max(canonical["train_reversed"], canonical["test_reversed"]) <= 0.6


def test_numbers_are_finite_and_nothing_is_typed_in(done: tuple[Path, dict[str, Any]]) -> None:
    _, result = done
    for model in ("base", "trained"):
        for metrics in result[model].values():
            assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
            assert all(math.isfinite(v) for v in metrics.values() if isinstance(v, float))
    assert result["asked"]["data_sha256"] == cache.file_sha256(
        Path(answer.__file__).parents[1] / "data" / "characters.csv"
    )
    assert result["versions"]["torch"] == torch.__version__
