"""factdpo clean: only what was asked for goes, and never what is in use, not ours, or behind a link."""

import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from factdpo.commands import clean
from factdpo.config.schema import ConfigError
from factdpo.store import cache
from factdpo.store.run_lock import lock_file
from tests.helpers.stored import store

DAY = 86400
STATES = {"aa": "FINISHED", "bb": "FAILED", "cc": "DIVERGED", "dd": "PREEMPTED", "ee": "killed"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outputs/sweeps/beta where one stands, with a run in each state, 40 days old."""
    monkeypatch.chdir(tmp_path)
    home = Path("outputs/sweeps/beta")
    for id, state in STATES.items():
        (store(home, id, state=state) / "adapter").mkdir()
        age(home / f"run-{id}", days=40)
    return home


def age(folder: Path, days: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (0, time.time() - days * DAY))


def left(home: Path) -> list[str]:
    return sorted(path.name.removeprefix("run-") for path in home.glob("run-*"))


def told(capsys: pytest.CaptureFixture[str], line: str) -> str:
    clean.main(line.split())
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ("--failed", ["bb", "cc"]),
        ("--preempted", ["dd"]),
        ("--killed", ["ee"]),
        ("--failed --killed", ["bb", "cc", "ee"]),
        ("--finished --older 30d", ["aa"]),
        ("--failed --older 30d", ["bb", "cc"]),
        ("--failed --older 50d", []),
        ("--failed --older 6w", []),
        ("--failed --older 950h", ["bb", "cc"]),
    ],
)
def test_what_was_asked_for_goes_and_nothing_else(
    home: Path, capsys: pytest.CaptureFixture[str], options: str, gone: list[str]
) -> None:
    listed = told(capsys, f"outputs {options} --dry-run").splitlines()
    assert left(home) == [*STATES], "--dry-run removes nothing"
    assert [line.rsplit("-", 1)[-1] for line in listed[:-1]] == gone
    assert listed[-1].startswith(f"would remove {len(gone)} folder") if gone else listed == ["nothing to remove"]
    told(capsys, f"outputs {options} --yes")
    assert left(home) == [id for id in STATES if id not in gone]


def test_a_run_of_which_anything_was_written_lately_is_not_old(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(home / "run-bb/config.yaml")
    assert "run-bb" not in told(capsys, "outputs --failed --older 30d --yes")
    assert left(home) == ["aa", "bb", "dd", "ee"]


def test_a_run_that_a_process_is_doing_stays(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(lock_file(home / "run-ee")):
        assert told(capsys, "outputs --killed --yes") == "nothing to remove\n"
    with FileLock(lock_file(home / "run-bb")):  # it has just been begun again, and its old result is still there
        said = told(capsys, "outputs --failed --yes")
    assert "run-bb: in use by a process; it stays" in said and "removed 1 of 2 folders" in said
    assert left(home) == ["aa", "bb", "dd", "ee"]


def test_a_run_that_changed_after_it_was_listed_stays(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def confirm(question: str) -> str:
        assert question.startswith("remove 2 folders, ")
        (home / "run-bb/result.json").touch()
        return "y"

    monkeypatch.setattr("builtins.input", confirm)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    said = told(capsys, "outputs --failed")
    assert "run-bb: changed since it was listed; it stays" in said and left(home) == ["aa", "bb", "dd", "ee"]


@pytest.mark.parametrize("answer", ["n", "", "no", "perhaps"])
def test_only_yes_removes(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda question: answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert told(capsys, "outputs --failed").endswith("nothing was removed\n") and left(home) == [*STATES]


def test_a_result_that_cannot_be_read_is_none_of_these(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "run-aa/result.json").write_text('{"state": "FINI')
    (home / "run-bb/result.json").write_text('{"what": "another version"}')
    assert "removed 3 of 3" in told(capsys, "outputs --failed --killed --preempted --yes")
    assert left(home) == ["aa", "bb"]


def test_what_is_no_run_and_what_lies_behind_a_link_stays(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = home / "run-xx"
    other.mkdir()
    (other / "result.json").write_text(json.dumps({"state": "FAILED"}))  # no asked.json of ours
    (home / "notes.txt").write_text("mine")
    elsewhere = store(Path("elsewhere"), "yy", state="FAILED")
    (home / "run-yy").symlink_to(elsewhere.resolve())
    (home / "run-cc/adapter/precious").symlink_to(elsewhere.resolve())
    told(capsys, "outputs --failed --yes")
    assert left(home) == ["aa", "dd", "ee", "xx", "yy"]
    assert (elsewhere / "result.json").exists() and (home / "notes.txt").exists()


def test_a_removal_that_is_cut_short_leaves_what_is_known_as_a_run(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def fail(self: Path, missing_ok: bool = False) -> None:
        if self.name == "config.yaml":
            raise PermissionError(f"no: {self}")
        unlink(self, missing_ok)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", fail)
        assert "run-dd: not removed (no: " in told(capsys, "outputs --preempted --yes")
    assert (home / "run-dd/asked.json").exists()
    assert "run-dd" in told(capsys, "outputs --killed --preempted --yes") and "dd" not in left(home)


# ------------------------------------------------------------------------------------------------------------- --cache


@pytest.fixture
def batches(home: Path) -> Path:
    """outputs/cache: an unfinished artefact, and checkpoints of two batches, of which one's training is done."""
    root = Path("outputs/cache")
    (root / f"reference/.{'0' * 16}.part").mkdir(parents=True)
    (root / f"adapters/{'1' * 16}").mkdir(parents=True)
    (root / f"adapters/{'1' * 16}" / cache.MANIFEST).write_text("{}")
    for name, keys in (("a" * 16 + "-x", ["1" * 16]), ("b" * 16 + "-y", ["1" * 16, "2" * 16])):
        (root / "batches" / name / "0-5").mkdir(parents=True)
        (root / "batches" / name / "0-5/state.json").write_text(json.dumps({"keys": keys, "step": 3}))
        (root / "batches" / name / "lock").touch()
    age(root, days=40)
    return root


def test_of_the_cache_go_unfinished_artefacts_and_checkpoints_that_nobody_needs(
    batches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(capsys, "outputs --cache --yes")
    assert "unfinished" in said and "removed 2 of 2 folders" in said
    assert [path.name for path in (batches / "batches").iterdir()] == ["b" * 16 + "-y"]
    assert not list((batches / "reference").glob("*.part")) and (batches / f"adapters/{'1' * 16}").is_dir()
    assert "abandoned" in told(capsys, "outputs --cache --older 30d --yes")
    assert not list((batches / "batches").iterdir())


def test_checkpoints_and_artefacts_in_use_stay(batches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(batches / f"reference/{'0' * 16}.lock"), FileLock(batches / f"batches/{'a' * 16}-x/lock"):
        assert told(capsys, "outputs --cache --yes").startswith("nothing to remove\n")


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "nothing selected, so nothing is removed"),
        ("outputs", "nothing selected, so nothing is removed"),
        ("outputs --finished --yes", "clean --finished: give --older too"),
        ("outputs --failed", "there is no terminal to ask on; --yes removes without asking"),
        ("nowhere --failed --yes", "nowhere: no such folder"),
        ("linked --failed --yes", "linked: a link to /"),
        ("bare --failed --yes", "bare: holds no run and no sweep"),
        ("outputs/sweeps --cache --yes", "--cache: outputs/sweeps has no cache/"),
    ],
)
def test_what_cannot_be_done_is_refused_and_removes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, line: str, why: str
) -> None:
    Path("linked").symlink_to("outputs")
    Path("bare").mkdir()
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(ConfigError, match=why):
        clean.main(line.split())
    assert left(home) == [*STATES]


def test_files_that_a_kill_left_half_written_go_after_an_hour_and_the_rest_of_the_cache_is_counted(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = [home / f".{name}.part" for name in ("sweep.json.17", "results.parquet.ab", "results.parquet.ab.sha256")]
    for path in torn:
        path.write_text("half")
        os.utime(path, (0, 0))
    (home / ".sweep.json.18.part").write_text("being written")
    (Path("outputs/cache/adapters") / ("a" * 16)).mkdir(parents=True)
    said = told(capsys, "outputs --cache --yes")
    assert "removed 3 of 3 leftovers" in said and "outputs/cache keeps adapters 1 (0.0 MB); delete it" in said
    assert [path.name for path in home.glob(".*.part")] == [".sweep.json.18.part"]
