"""Checkpoints of batches: whole or not at all, the newest sound one, and only for who wants all of its runs."""

import json
import logging
from pathlib import Path

import pytest
import torch

from factdpo import checkpoints
from factdpo.checkpoints import KEPT, find, forget, home, save

TENSORS = {"masters": torch.arange(6.0).view(2, 3).T, "dropout.0": torch.tensor([1, 2], dtype=torch.uint8)}


def write(folder: Path, keys: list[str], *steps: int) -> Path:
    at = home(folder, keys)
    for step in steps:
        save(at, {"keys": keys, "step": step, "loss": 0.1 + 0.2}, TENSORS)
    return at


def test_what_was_saved_is_found_bit_for_bit(tmp_path: Path) -> None:
    at = write(tmp_path, ["a", "b"], 3)
    (found,) = find(tmp_path, {"a", "b", "c"})
    assert (found.home, found.state) == (at, {"keys": ["a", "b"], "step": 3, "loss": 0.1 + 0.2})
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)
    assert found.tensors["dropout.0"].dtype == torch.uint8


def test_the_newest_two_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    at = write(tmp_path, ["a"], 9, 10, 99, 100)
    assert KEPT == 2 and sorted(p.name for p in at.iterdir() if p.is_dir()) == ["00000099", "00000100"]
    assert find(tmp_path, {"a"})[0].state["step"] == 100


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
    assert "00000006 is not whole" in caplog.text and "an older checkpoint, or the beginning, is taken" in caplog.text
    write(tmp_path, ["a"], 6)
    assert find(tmp_path, {"a"})[0].state["step"] == 6, "it is written anew"


def test_where_none_is_sound_there_is_none(tmp_path: Path) -> None:
    at = write(tmp_path, ["a"], 3)
    (at / "00000003" / "state.json").write_text(json.dumps({"keys": ["a"], "step": 99}))
    assert find(tmp_path, {"a"}) == []
    assert find(tmp_path / "nowhere", {"a"}) == []


def test_what_a_kill_left_half_written_is_nothing(tmp_path: Path) -> None:
    at = write(tmp_path, ["a"], 3)
    (at / ".00000006.part").mkdir()
    (at / ".00000006.part" / "state.json").write_text("{")
    assert find(tmp_path, {"a"})[0].state["step"] == 3


def test_only_batches_whose_runs_are_all_wanted_and_none_twice(tmp_path: Path) -> None:
    write(tmp_path, ["a", "b"], 3)
    write(tmp_path, ["b", "c"], 3)
    write(tmp_path, ["d"], 3)
    assert find(tmp_path, {"a", "c"}) == []
    assert [found.state["keys"] for found in find(tmp_path, {"a", "b", "x"})] == [["a", "b"]]
    keys = [key for found in find(tmp_path, {"a", "b", "c", "d"}) for key in found.state["keys"]]
    assert len(keys) == len(set(keys)) == 3 and "d" in keys


def test_an_older_one_is_not_taken_in_place_of_a_newest_that_is_not_wanted(tmp_path: Path) -> None:
    """Run a ended between the two: only the newest says where b is."""
    at = write(tmp_path, ["a", "b"], 3)
    save(at, {"keys": ["b"], "step": 6}, TENSORS)
    assert find(tmp_path, {"b"})[0].state["step"] == 6
    assert find(tmp_path, {"a"}) == []


def test_another_batch_lies_elsewhere_and_forgetting_one_leaves_the_other(tmp_path: Path) -> None:
    one, other = write(tmp_path, ["a", "b"], 3), write(tmp_path, ["b", "a"], 3)
    assert one != other
    forget(one)
    assert not one.exists() and other.exists()
    forget(one)  # again: nothing to do


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    at = write(tmp_path, ["a"], 3)
    with pytest.raises(TypeError):
        checkpoints.save(at, {"keys": ["a"], "step": 6, "wrong": object()}, TENSORS)
    assert find(tmp_path, {"a"})[0].state["step"] == 3
    assert sorted(p.name for p in at.iterdir() if p.is_dir()) == ["00000003"]
