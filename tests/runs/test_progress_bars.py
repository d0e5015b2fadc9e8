"""What a batch of runs says of itself while it trains."""

from factdpo.console import console
from factdpo.runs.progress_bars import CohortBar


def scored(step: int, accuracy: float) -> dict[str, float]:
    return {"step": step, "eval/test/accuracy": accuracy}


def test_a_line_has_what_all_runs_scored_at_its_step() -> None:
    with console.capture() as said, CohortBar(2, enabled=False) as bar:
        tell = [bar.run("seed=0", 20), bar.run("seed=1", 20)]
        for step, accuracies in ((10, (0.25, 0.5)), (20, (0.75, 1.0))):
            for run, accuracy in zip(tell, accuracies, strict=True):
                run(scored(step, accuracy))
    assert said.get().splitlines() == [
        "  10/20  test 0.25-0.50  best test 0.50 (seed=1)",
        "  20/20  test 0.75-1.00  best test 1.00 (seed=1)",
    ]


def test_runs_that_go_on_are_told_of_as_they_stand_and_no_line_has_one_of_them_alone() -> None:
    with console.capture() as said, CohortBar(2, enabled=False) as bar:
        tell = [bar.run("seed=0", 30), bar.run("seed=1", 30)]
        tell[0](scored(10, 0.25), {"step": 15, "loss": 0.5}, scored(20, 0.5))  # all there is, from the checkpoint
        tell[1](scored(10, 0.3), scored(20, 0.7))
        for run in tell:
            run(scored(30, 1.0))
    assert said.get().splitlines() == [
        "  20/30  test 0.50-0.70  best test 0.70 (seed=1)",
        "  30/30  test 1.00-1.00  best test 1.00 (seed=0)",
    ]


def test_where_facts_are_set_aside_to_choose_by_these_name_the_best() -> None:
    with console.capture() as said, CohortBar(2, enabled=False) as bar:
        for name, validation, test in (("seed=0", 0.5, 0.9), ("seed=1", 0.6, 0.8)):
            bar.run(name, 10)(scored(10, test) | {"eval/validation/accuracy": validation})
    assert said.get().splitlines()[0].endswith("best validation 0.60 (seed=1)")
