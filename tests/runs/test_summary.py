"""What a run says when it has ended."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from factdpo.runs.summary import print_result
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
    assert "test            561  0.51  0.42 [0.38, 0.44]  0.51->0.42  majority 0.50  +130 -4" in lines
    assert "as trained: the facts of train as training saw them, without the space" in lines


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
