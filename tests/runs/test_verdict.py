"""engine=auto asks the base: TRL trains what the batched engine cannot, under the same id, and the record says why."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factdpo import nano
from factdpo.config.schema import Config, ConfigError, EngineName, ModelSource
from factdpo.config.validate import validate
from factdpo.runs import answer, verdict
from factdpo.runs.answer import RunFailed
from factdpo.runs.identity import look_up
from factdpo.runs.session import opened
from factdpo.runs.verdict import Verdict
from factdpo.sweep.dry_run import print_plan
from factdpo.training import trl_interrogation
from factdpo.training.batched import interrogation
from factdpo.training.batched.interrogation import Findings
from tests.helpers.runs import folder_of, small

WHY = "its layers leak"


@pytest.fixture
def leaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bases that the batched engine cannot compute; and how often one was asked."""
    asked: list[int] = []

    def interrogate(*_: Any) -> Findings:
        asked.append(1)
        return Findings(not_batched=WHY)

    monkeypatch.setattr(interrogation, "interrogate", interrogate)
    with opened():  # no base has said anything yet
        yield asked


def tiny(out: Path, engine: EngineName = EngineName.auto, **changes: Any) -> Config:
    return small(out, engine_name=engine, dpo_max_steps=2, eval_every="never", **changes)


def test_auto_has_trl_train_it_under_its_id_and_the_record_says_why(tmp_path: Path, leaking: list[int]) -> None:
    expected = look_up(validate(tiny(tmp_path)))
    assert expected.engine == "batched (auto)"
    result = answer.ask(tiny(tmp_path))
    assert (result["id"], result["engine"]) == (expected.id, f"trl (auto: {WHY})")
    assert result["config"]["engine"]["name"] == "batched"  # what the id is of
    assert result["training"]["trained_together"] == 1
    assert f"engine: trl (auto: {WHY})" in (folder_of(tmp_path, result) / "run.log").read_text()
    assert answer.ask(tiny(tmp_path)) == result and len(leaking) == 1
    with pytest.raises(ConfigError, match=f"engine=batched: {WHY}"):
        answer.ask(tiny(tmp_path, EngineName.batched))
    for kept in tmp_path.glob(f"cache/verdicts/*/{verdict.FILE}"):
        kept.unlink()  # then the record itself is what contradicts
    with pytest.raises(ConfigError, match="has this run by trl"):
        answer.ask(tiny(tmp_path, EngineName.batched))


def test_what_was_found_out_is_known_before_the_next_run(tmp_path: Path, leaking: list[int]) -> None:
    with pytest.raises(RunFailed), opened():
        answer.ask(tiny(tmp_path, EngineName.batched))
    result = json.loads(next(tmp_path.glob("runs/*/result.json")).read_text())
    assert result["error"] == f"engine=batched: {WHY}; use engine=auto, or engine=trl"
    spec = look_up(validate(tiny(tmp_path, dpo_beta=0.5)))
    assert spec.engine == f"trl (auto: {WHY})" and spec.trains.engine.name is EngineName.trl
    with pytest.raises(ConfigError, match=WHY):
        look_up(validate(tiny(tmp_path, EngineName.batched, dpo_beta=0.5)))
    assert look_up(validate(tiny(tmp_path, EngineName.trl))).engine == "trl (as asked)"
    assert len(leaking) == 1


def test_a_plan_asks_a_base_that_is_at_hand_once_for_all_seeds_and_says_why(
    tmp_path: Path, leaking: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    own: dict[str, Any] = {"model_source": ModelSource.pretrained, "model_id": str(nano.WEIGHTS)}

    def plan() -> str:
        print_plan([look_up(validate(tiny(tmp_path, split_seed=seed, **own))) for seed in range(2)])
        return capsys.readouterr().out

    said = plan()
    assert said.count("  trl  ") == 2 and said.count(f"engine: trl (auto: {WHY})") == 1 and len(leaking) == 1
    assert plan().count("  trl  ") == 2 and len(leaking) == 1, "the answer is kept"
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache" / "references").exists()


def test_a_base_that_no_engine_can_train_is_refused_by_its_name(tmp_path: Path) -> None:
    spec = look_up(validate(tiny(tmp_path)))
    with pytest.raises(ConfigError, match=r"^model\.id=nano: it is not causal$"):
        verdict.apply(Verdict("it is not causal", None), spec)


def test_a_base_that_neither_engine_can_train_is_refused_before_it_trains(
    tmp_path: Path, leaking: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl_interrogation, "why_not_by_trl", lambda *_: "TRL cannot compute it")
    with pytest.raises(RunFailed):
        answer.ask(tiny(tmp_path))
    result = json.loads(next(tmp_path.glob("runs/*/result.json")).read_text())
    assert result["error"] == f"model.id=nano: no engine can train it: {WHY}; and TRL cannot compute it"
    assert not (tmp_path / "cache" / "adapters").exists()
    with pytest.raises(ConfigError, match="no engine can train it"):
        look_up(validate(tiny(tmp_path, dpo_beta=0.5)))
    with pytest.raises(ConfigError, match="no engine can train it"):
        look_up(validate(tiny(tmp_path, EngineName.batched, dpo_beta=0.5)))


def test_engine_trl_is_refused_where_only_the_batched_engine_computes_the_base(tmp_path: Path) -> None:
    spec = look_up(validate(tiny(tmp_path, EngineName.trl)))
    with pytest.raises(ConfigError, match=r"^engine=trl: TRL cannot; use engine=auto"):
        verdict.apply(Verdict(None, None, "TRL cannot"), spec)
    verdict.apply(Verdict(None, None, "TRL cannot"), look_up(validate(tiny(tmp_path))))
