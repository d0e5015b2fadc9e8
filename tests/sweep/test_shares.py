"""Which runs each worker does: equal work, in the order in which one process would train them."""

from pathlib import Path

import pytest

from factdpo.config.schema import Config, EngineName
from factdpo.runs.identity import RunSpec
from factdpo.sweep import shares
from factdpo.sweep.estimates import Estimate
from factdpo.sweep.shares import cut


def run(name: str, *, epochs: float = 1, train: int = 80, bf16: bool = False, trl: bool = False) -> RunSpec:
    """A run to do that scores no more than it trains on; it is named, and nothing of it is on the disk."""
    cfg = Config()
    cfg.engine.name = EngineName.trl if trl else EngineName.batched
    cfg.dpo.epochs, cfg.dpo.bf16, cfg.eval.every = epochs, bf16, "never"
    return RunSpec(cfg, "", {}, name, name, Path(cfg.out), sizes={"train": train})


def named(shares: list[list[RunSpec]]) -> list[str]:
    return ["".join(spec.name for spec in share) for share in shares]


@pytest.mark.parametrize(
    ("workers", "expected"),
    [(1, ["abcdefgh"]), (2, ["abcd", "efgh"]), (3, ["abc", "de", "fgh"]), (8, list("abcdefgh"))],
)
def test_runs_of_one_size_are_cut_into_equal_parts(workers: int, expected: list[str]) -> None:
    assert named(cut([run(name) for name in "abcdefgh"], workers)) == expected


def test_what_counts_is_steps_and_not_runs_and_the_longest_come_first() -> None:
    runs = [run("a"), run("b"), run("c"), run("d"), run("e"), run("x", epochs=5)]
    assert named(cut(runs, 2)) == ["x", "abcde"]


def test_a_run_longer_than_a_share_has_one_for_itself_and_no_share_is_empty() -> None:
    assert named(cut([run("a"), run("x", epochs=100), run("b")], 3)) == ["x", "ab"]


def test_a_cohort_is_divided_only_where_the_work_is() -> None:
    runs = [run("a"), run("A", bf16=True), run("b"), run("B", bf16=True), run("c"), run("C", bf16=True)]
    assert named(cut(runs, 2)) == ["abc", "ABC"]
    assert named(cut(runs, 3)) == ["ab", "cA", "BC"]


def test_runs_by_trl_come_after_those_that_leave_the_base_as_it_is() -> None:
    assert named(cut([run("t", trl=True), run("a"), run("u", trl=True), run("b")], 2)) == ["ab", "tu"]


def test_a_run_costs_what_finished_runs_tell_else_its_passes_by_the_models_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run("a"), run("b", epochs=2), run("c")]
    runs[2].cfg.model.name = "large"
    monkeypatch.setattr(shares.weights, "locate", lambda model: model.name)
    monkeypatch.setattr(shares.weights, "size_bytes", {"nano": 10, "large": 40}.get)
    monkeypatch.setattr(shares, "read_stored", lambda out: [])
    monkeypatch.setattr(shares, "estimates", lambda *_: {"a": None, "b": None, "c": None})
    unknown = shares.costs_of(runs, 2)
    assert unknown["b"] > 1.5 * unknown["a"] and unknown["c"] == 4 * unknown["a"]
    assert named(cut(runs, 2, unknown)) == ["ba", "c"], "alone it is the half"
    told = Estimate(7.0, None, 1, 1)
    monkeypatch.setattr(shares, "estimates", lambda *_: {"a": told, "b": None, "c": None})
    seconds = shares.costs_of(runs, 2)
    assert seconds["a"] == 7.0 and seconds["c"] == pytest.approx(28.0)
