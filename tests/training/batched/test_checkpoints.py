"""Checkpoints of cohorts: whole or not at all, the newest undamaged one, each run taken from one only."""

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from factdpo.models.scoring import pair_logps
from factdpo.store import cache
from factdpo.store.history import Row
from factdpo.training.batched import checkpoints
from factdpo.training.batched.checkpoints import FORMAT, KEPT, Home, clear, find
from factdpo.training.batched.engine import fit_many
from factdpo.training.engine import Member
from tests.helpers.tiny import tiny_base, tiny_config, tiny_pairs

TENSORS = {"masters": torch.arange(6.0).view(2, 3).T, "dropout.0": torch.tensor([1, 2], dtype=torch.uint8)}


def write(folder: Path, keys: list[str], *steps: int) -> Path:
    """As a batch that was interrupted leaves it."""
    at = Home.new(folder, keys)
    for step in steps:
        at.save({"keys": keys, "step": step, "loss": 0.1 + 0.2}, TENSORS)
    at.release()
    return at.folder


def found_by(folder: Path, wanted: set[str]) -> list[tuple[list[str], int]]:
    """The runs and the step of what is found, which is then released."""
    found = find(folder, wanted)
    for checkpoint in found:
        checkpoint.home.release()
    return [(checkpoint.state["keys"], checkpoint.state["step"]) for checkpoint in found]


def test_what_was_saved_is_found_bit_for_bit(tmp_path: Path) -> None:
    at = write(tmp_path, ["a", "b"], 3)
    (found,) = find(tmp_path, {"a", "b", "c"})
    state = {"keys": ["a", "b"], "step": 3, "loss": 0.1 + 0.2, "format": FORMAT}
    assert (found.home.folder, found.state) == (at, state)
    tensors = found.tensors()
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert tensors["dropout.0"].dtype == torch.uint8


def test_the_newest_two_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    at = write(tmp_path, ["a"], 9, 10, 99, 100)
    assert KEPT == 2 and sorted(p.name for p in at.iterdir() if p.is_dir()) == ["00000099", "00000100"]
    assert found_by(tmp_path, {"a"}) == [(["a"], 100)]


@pytest.mark.parametrize("damage", ["flipped", "shorter", "missing", "no manifest", "no json"])
def test_a_damaged_one_is_passed_over_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at = write(tmp_path, ["a"], 3, 6)
    file = at / "00000006" / "tensors.safetensors"
    if damage == "flipped":
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    elif damage == "shorter":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "no manifest":
        (at / "00000006" / "manifest.json").unlink()
    else:
        (at / "00000006" / "state.json").write_text("{")
    with caplog.at_level(logging.WARNING, logger="factdpo"):
        (found,) = find(tmp_path, {"a"})
    assert found.state["step"] == 3
    assert (
        "00000006 is not whole" in caplog.text and "resuming from an older checkpoint, or from the start" in caplog.text
    )
    found.home.save({"keys": ["a"], "step": 6}, TENSORS)
    found.home.release()
    assert found_by(tmp_path, {"a"}) == [(["a"], 6)], "it is written anew"


def test_where_none_is_sound_there_is_none(tmp_path: Path) -> None:
    at = write(tmp_path, ["a"], 3)
    (at / "00000003" / "state.json").write_text(json.dumps({"keys": ["a"], "step": 99}))
    assert find(tmp_path, {"a"}) == []
    assert find(tmp_path / "nowhere", {"a"}) == []


def test_what_a_kill_left_half_written_is_nothing(tmp_path: Path) -> None:
    at = write(tmp_path, ["a"], 3)
    (at / ".00000006.part").mkdir()
    (at / ".00000006.part" / "state.json").write_text("{")
    assert found_by(tmp_path, {"a"}) == [(["a"], 3)]


def test_a_run_is_found_once_and_where_it_is_furthest(tmp_path: Path) -> None:
    write(tmp_path, ["a", "b"], 3)
    write(tmp_path, ["b", "c"], 6)
    write(tmp_path, ["d"], 1)
    assert found_by(tmp_path, {"b"}) == [(["b", "c"], 6)]
    assert found_by(tmp_path, {"a", "b", "x"}) == [(["b", "c"], 6), (["a", "b"], 3)]
    assert found_by(tmp_path, {"d", "c"}) == [(["b", "c"], 6), (["d"], 1)]
    assert found_by(tmp_path, {"x"}) == []


def test_the_newest_alone_says_which_runs_are_left(tmp_path: Path) -> None:
    """Run a ended between the two."""
    write(tmp_path, ["a", "b"], 3)
    (found,) = find(tmp_path, {"b"})
    found.home.save({"keys": ["b"], "step": 6}, TENSORS)
    found.home.release()
    assert found_by(tmp_path, {"a", "b"}) == [(["b"], 6)]
    assert found_by(tmp_path, {"a"}) == []


def test_what_another_process_trains_is_left_to_it_until_that_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "WAIT_SECONDS", 0.1)
    write(tmp_path, ["a"], 3)
    hold = (
        "import sys, pathlib; from factdpo.training.batched.checkpoints import find; "
        "found = find(pathlib.Path(sys.argv[1]), {'a'}); print(len(found), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "1\n"
        assert found_by(tmp_path, {"a"}) == []
        other.kill()
    assert found_by(tmp_path, {"a"}) == [(["a"], 3)]


def test_workers_that_read_one_checkpoint_for_different_runs_wait_for_each_other(tmp_path: Path) -> None:
    write(tmp_path, ["a", "b"], 3)
    write(tmp_path, ["c"], 6)
    (held,) = find(tmp_path, {"a"})
    other = ThreadPoolExecutor(1).submit(found_by, tmp_path, {"b"})
    assert found_by(tmp_path, {"c"}) == [(["c"], 6)] and not other.done()
    held.home.release()
    assert other.result() == [(["a", "b"], 3)]


def test_some_runs_of_a_checkpoint_leave_it_to_the_others_while_they_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "WAIT_SECONDS", 0.1)  # it is asked for while it is read, too
    base, pairs, found = tiny_base(), tiny_pairs(4), []

    def members(*keys: str, **hooks: Any) -> list[Member]:
        cfg, refs = tiny_config(dpo_max_steps=6, engine_save_every=1), pair_logps(base.model, pairs, 8)
        return [Member(key, cfg, pairs, refs, {}, lambda scores: {}, **hooks) for key in keys]

    def killed(*rows: Row) -> None:
        if rows[-1]["step"] >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(fit_many(base, members("a", "b", record=killed), tmp_path))
    assert [keys for keys, _ in found_by(tmp_path, {"b"})] == [["a", "b"]]
    list(fit_many(base, members("a", record=lambda *rows: found.append(found_by(tmp_path, {"b"}))), tmp_path))
    assert len(found) > 1 and all(
        [keys for keys, _ in one] == [["a", "b"]] for one in found[1:]
    )  # but while it is read


def test_a_checkpoint_of_another_format_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr(checkpoints, "FORMAT", FORMAT - 1)
        write(tmp_path, ["a"], 3)
    assert found_by(tmp_path, {"a"}) == []


def test_the_same_runs_again_lie_elsewhere_and_forgetting_one_leaves_the_other(tmp_path: Path) -> None:
    one, other = Home.new(tmp_path, ["a"]), Home.new(tmp_path, ["a"])
    assert one.folder != other.folder
    one.forget()
    assert not one.folder.exists() and other.folder.exists()
    one.forget()  # again: nothing to do


def test_what_was_killed_before_its_first_checkpoint_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    Home.new(tmp_path, ["a"]).release()  # as after a signal before it
    assert [path.name for path in tmp_path.iterdir()] == ["killed"] and found_by(tmp_path, {"a"}) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interrupted", [True, False], ids=["stopped", "could not be stored"])
@pytest.mark.parametrize("others", [[4], [6]], ids=["it was the last", "another goes on"])
def test_what_was_handed_out_and_not_stored_goes_on_from_its_checkpoint(
    tmp_path: Path, interrupted: bool, others: list[int]
) -> None:
    """A kill, a second Ctrl-C or a full disk between the last step and the cache costs no training."""
    base, pairs = tiny_base(), tiny_pairs(4, longest=2)
    members = [
        Member(str(steps), tiny_config(dpo_max_steps=steps, engine_save_every=2), pairs,
               pair_logps(base.model, pairs, 8), {}, lambda scores: {}, lambda *rows: None, stored=False)
        for steps in [4, *others]
    ]  # fmt: skip
    members[-1].key = "other"
    groups = fit_many(base, members, tmp_path)
    with closing(groups):
        for group in groups:
            for member, _ in group:
                member.stored = member.key != "4"
            if interrupted:
                break
    ((keys, step),) = found_by(tmp_path, {"4"})
    assert ({*keys}, step) == ({"4", "other"}, 2)


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"keys": 1, "step": 3}', '{"step": 3}', '{"keys": ["a"], "step": "3"}']
)
def test_a_state_of_another_shape_is_passed_over(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Under a manifest that fits: somebody wrote it."""
    at = write(tmp_path, ["a"], 3, 6)
    (at / "00000006/state.json").write_text(text)
    manifest = cache.folder_sha256(at / "00000006")
    (at / "00000006/manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != cache.MANIFEST}))
    assert found_by(tmp_path, {"a"}) == [(["a"], 3)]
    assert "00000006/state.json: " in caplog.text


def test_a_lock_that_is_a_folder_and_a_file_among_the_cohorts_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, ["a"], 3)
    (tmp_path / "x").write_text("a file")
    (tmp_path / "y" / "lock").mkdir(parents=True)
    assert found_by(tmp_path, {"a"}) == [(["a"], 3)]
    assert f"{tmp_path / 'y'}: cannot be used" in caplog.text


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    at = write(tmp_path, ["a"], 3)
    (found,) = find(tmp_path, {"a"})
    with pytest.raises(TypeError):
        found.home.save({"keys": ["a"], "step": 6, "wrong": object()}, TENSORS)
    found.home.release()
    assert found_by(tmp_path, {"a"}) == [(["a"], 3)]
    assert sorted(p.name for p in at.iterdir() if p.is_dir()) == ["00000003"]


def test_a_folder_without_a_checkpoint_is_cleared_away_unless_somebody_holds_it(tmp_path: Path) -> None:
    """Of a cohort whose first checkpoint was not due: killed as its runs were closed, their weights stored."""
    batches = tmp_path / "batches"
    left, held = Home.new(batches, ["a"]), Home.new(batches, ["b"])
    left._lock.release()  # as the death of its process does
    clear(batches, tmp_path / "adapters")
    assert [*batches.iterdir()] == [held.folder]
    held.release()


def test_what_a_kill_left_of_trainings_that_are_stored_is_cleared_away(tmp_path: Path) -> None:
    done, partly = write(tmp_path / "batches", ["a", "b"], 3), write(tmp_path / "batches", ["b", "c"], 3)
    held = write(tmp_path / "batches", ["a"], 6)
    for key in ("a", "b"):
        cache.fetch(tmp_path / "adapters" / key, lambda folder: None)
    with FileLock(held / "lock"):
        clear(tmp_path / "batches", tmp_path / "adapters")
        assert not done.exists() and partly.exists() and held.exists()
    clear(tmp_path / "batches", tmp_path / "adapters")
    assert [path.name for path in (tmp_path / "batches").iterdir()] == [partly.name]


def test_a_folder_with_a_checkpoint_that_cannot_be_read_is_left(tmp_path: Path) -> None:
    at = write(tmp_path / "batches", ["a"], 3, 6)
    cache.fetch(tmp_path / "adapters" / "a", lambda folder: None)
    (at / "00000003/state.json").write_text("[]")
    clear(tmp_path / "batches", tmp_path / "adapters")
    assert at.exists()
