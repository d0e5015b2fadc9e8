"""What a run says when it has ended."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from factdpo.runs.summary import print_line, print_result
from tests.helpers.results import result, scores


def printed(result, folder, width=80):
    out = StringIO()
    print_result(result, folder, Console(file=out, width=width))
    return out.getvalue()


def test_the_table_fits_80_columns_and_is_plain_in_a_file(tmp_path):
    wide = result()
    flips = {"reward_accuracy": 1.0, "wrong_to_right": 130, "right_to_wrong": 4}
    for split in ("train_reversed", "test_reversed", "train_as_trained"):
        wide["base"][split], wide["trained"][split] = scores(300, 0.5), scores(300, 0.5, **flips)
    lines = printed(wide, Path("outputs/runs/a")).splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" not in "".join(lines)
    assert "train           300  0.55  0.97 [0.93, 0.99]  0.55->0.97  additive 0.70  +130 -4" in lines
    assert "test            561  0.51  0.42 [0.38, 0.44]  0.51->0.42    chance 0.50  +130 -4" in lines
    assert "as trained: the facts of train as training saw them, without the space" in lines


LENGTHS = {
    "accuracy_per_token": 0.8125, "accuracy_per_token_low": 0.75, "accuracy_per_token_high": 0.875, "n_shorter": 100,
    "n_equal": 150, "n_longer": 50, "accuracy_shorter": 0.9, "accuracy_equal": 0.8, "accuracy_longer": 0.2,
    "accuracy_per_token_shorter": 0.7, "accuracy_per_token_equal": 0.8, "accuracy_per_token_longer": 0.6,
}  # fmt: skip


def of_unequal_lengths(score, **lengths):
    """A result on 300 training facts; its answers differ in length unless told otherwise."""
    made = result()
    made["config"] |= {"label": "beta=1", "eval": {"score": score}}
    for model in ("base", "trained"):
        made[model] = {"train": made[model]["train"] | LENGTHS | lengths}
    return made


def test_the_accuracy_per_token_stands_in_the_table_exactly_where_lengths_differ(tmp_path):
    text = printed(of_unequal_lengths("mean"), tmp_path, width=100)
    row = next(line for line in text.splitlines() if line.startswith("train "))
    assert "0.81  0.81 [0.75, 0.88]  0.55->0.97" in row and "per token" in text and text.count("summed") == 3
    assert "by length, train   shorter 0.90/0.70 (100)  equal 0.80/0.80 (150)  longer 0.20/0.60 (50)  sum/mean" in text
    text = printed(of_unequal_lengths("sum"), tmp_path, width=100)
    row = next(line for line in text.splitlines() if line.startswith("train "))
    assert "0.55  0.97 [0.93, 0.99]  0.81->0.81" in row and "per token" in text and "summed" not in text
    for text in (
        printed(of_unequal_lengths("mean", n_equal=300, n_shorter=0, n_longer=0), tmp_path),
        printed(result(), tmp_path),
    ):
        assert "per token" not in text.replace("nats per token", "") and "by length" not in text


def test_with_unequal_lengths_the_table_still_fits_60_columns(tmp_path):
    lines = printed(of_unequal_lengths("mean"), tmp_path, width=60).splitlines()
    assert max(len(line) for line in lines if line.startswith(("split", "train "))) <= 60


def test_a_runs_line_says_which_accuracy_it_shows(tmp_path):
    def line(made):
        out = StringIO()
        print_line(made, tmp_path, Console(file=out, width=200))
        return out.getvalue().strip()

    assert line(of_unequal_lengths("mean")) == "FINISHED  beta=1  train 0.81  (per token)  12.0 s"
    assert line(of_unequal_lengths("sum")) == "FINISHED  beta=1  train 0.97  12.0 s"


def colour_of(made, folder):
    """What the trained accuracy on train is painted."""
    out = StringIO()
    print_result(made, folder, Console(file=out, width=100, force_terminal=True, color_system="standard"))
    row = next(line for line in out.getvalue().splitlines() if line.startswith("train"))
    return "green" if "\x1b[32m" in row else "red" if "\x1b[31m" in row else None


def test_nothing_at_chance_is_painted_green(tmp_path):
    made = result()
    made["baselines"]["train"] = {"majority": 0.2, "shorter": 0.3}
    made["trained"]["train"] |= {"accuracy": 0.55, "accuracy_low": 0.45, "accuracy_high": 0.65}
    assert colour_of(made, tmp_path) is None
    made["trained"]["train"] |= {"accuracy": 0.6, "accuracy_low": 0.51}
    assert colour_of(made, tmp_path) == "green"
    made["baselines"]["train"] |= {"shorter": 0.6}
    assert colour_of(made, tmp_path) is None
    made["baselines"]["train"] |= {"bag_of_names": 0.7}
    assert colour_of(made, tmp_path) == "red"


def test_contradictions_stand_beside_the_closure_and_rows_without_names_are_counted(tmp_path):
    made = result(coverage={"train": {"named": 299, "implied": 300, "contradictions": 12},
                            "test": {"named": 561, "implied": 500}})  # fmt: skip
    lines = [" ".join(line.split()) for line in printed(made, tmp_path, width=120).splitlines()]
    assert "logical closure train 1.00 12 of 300 training facts contradict the others" in lines
    assert "names train 299 of 300 prompts hold both test 561 of 561 prompts hold both" in lines
    made["coverage"]["train"] |= {"named": 300, "contradictions": 0, "sides": "assuming two sides"}
    assert "assuming two sides" in printed(made, Path("outputs"))
    made["coverage"]["train"] |= {"sides": "2, as the data has them"}
    text = printed(made, Path("outputs"))
    assert "contradict" not in text and "sides" not in text and "prompts hold" not in text


def test_below_the_table_stands_what_is_measured_across_splits_and_every_warning(tmp_path):
    text = printed(result(), tmp_path)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for expected in (
        "order consistency train 0.50 -> 0.88",
        "reward accuracy train 1.00 test 1.00",
        "logical closure train 1.00",
        "retention 3.00 -> 3.25 nats per token",
        "warning: reward accuracy is 1.00, accuracy only 0.42",
    ):
        assert expected in lines


def test_the_folder_is_named_whole_and_only_what_is_there_is_pointed_at(tmp_path):
    folder = tmp_path / ("very-long-" * 12)
    folder.mkdir()
    text = printed(result(), folder)
    assert f"rescore  factdpo eval {folder}\n" in text and "wandb" not in text and "figures" not in text
    (folder / "figures").mkdir()
    (folder / "wandb" / "offline-run-1-a").mkdir(parents=True)
    (folder / "wandb" / "offline-run-1-a" / "run-a.wandb").write_text("")
    text = printed(result(), folder)
    assert f"figures  {folder / 'figures'}\n" in text and f"curves   wandb leet {folder / 'wandb'}\n" in text


def test_a_run_that_did_not_finish_says_why_and_where_its_log_is():
    failed = {"id": "ab", "name": "nano", "state": "DIVERGED", "error": "loss is nan at step 3 [bold]"}
    assert printed(failed, Path("runs/a")).split("\n")[1:] == [
        "nano (ab)  DIVERGED", "loss is nan at step 3 [bold]", "log      runs/a/run.log", "",
    ]  # fmt: skip


def test_on_a_narrow_terminal_no_column_is_lost(tmp_path):
    lines = printed(result(), tmp_path, width=60).splitlines()
    table = [line for line in lines if line.startswith(("split", "train ", "test "))]
    assert max(map(len, table)) <= 60 and len(table) == 6, "two tables of a heading and two splits"
    for heading in ("n", "base", "balanced", "baseline", "flips"):
        assert any(heading in line.split() for line in table if line.startswith("split"))
