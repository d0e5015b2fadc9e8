"""What is asked is named the same everywhere; what is made is made once, whole, and made again when damaged."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from factdpo.store.cache import (
    MANIFEST,
    damage,
    damaged_files,
    fetch,
    file_sha256,
    folder_sha256,
    signature,
    write_atomic,
)

# Artefacts and runs of users are found under these: a change here orphans all of them.
GOLDEN = [
    ({}, "44136fa355b3678a"),
    ({"b": [1, 2.5, None, True], "a": "Köln"}, "d597de9615ff0213"),
    ([0.1, 1e-08, 1e22, -0.0], "4f2e4e6482527f1b"),
]
HELLO_SHA256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def hello(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "a.txt").write_text("hello")
    (folder / "b.txt").write_text("")


def never(folder: Path) -> None:
    raise AssertionError("it is there already")


def python(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Another Python process that runs `code`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize(("asked", "expected"), GOLDEN, ids=[expected for _, expected in GOLDEN])
def test_signatures_stay_what_they_were(asked: object, expected: str):
    assert signature(asked) == expected


def test_a_signature_does_not_depend_on_key_order():
    assert signature({"a": {"x": 1, "y": 2}, "b": 3}) == signature({"b": 3, "a": {"y": 2, "x": 1}})


def test_a_signature_depends_on_every_value_and_on_the_order_of_lists():
    asked = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {"b": 1}, {"a": [1, 2]}, {"a": [2, 1]}, {}]
    assert len({signature(value) for value in asked}) == len(asked)


@pytest.mark.parametrize("seed", ["0", "1"])
def test_a_signature_is_the_same_in_another_process(seed: str):
    code = "import sys, json; from factdpo.store.cache import signature; print(signature(json.loads(sys.argv[1])))"
    asked, expected = GOLDEN[1]
    out, _ = python(code, json.dumps(asked), PYTHONHASHSEED=seed).communicate()
    assert out.strip() == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_has_no_signature(value: float):
    with pytest.raises(ValueError, match="JSON compliant"):
        signature({"beta": value})


def test_a_folder_is_described_by_the_bytes_of_all_its_files(tmp_path: Path):
    hello(tmp_path)
    assert file_sha256(tmp_path / "deep" / "a.txt") == HELLO_SHA256
    found = folder_sha256(tmp_path)
    assert list(found) == ["b.txt", "deep/a.txt"] and found["deep/a.txt"] == HELLO_SHA256
    assert damaged_files(tmp_path, found) == []
    (tmp_path / "b.txt").unlink()
    (tmp_path / "deep" / "a.txt").write_text("hallo")
    assert damaged_files(tmp_path, found) == ["b.txt", "deep/a.txt"]


def test_write_atomic_writes_and_overwrites_whole_files(tmp_path: Path):
    path = tmp_path / "new" / "result.json"
    write_atomic(path, "a long first text\n")
    write_atomic(path, "Köln")
    assert path.read_bytes() == "Köln".encode()
    assert os.listdir(path.parent) == ["result.json"]


def test_write_atomic_keeps_the_old_content_if_writing_fails(tmp_path: Path):
    path = tmp_path / "result.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new, and then a character that UTF-8 does not have: \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_what_was_made_is_not_made_again(tmp_path: Path):
    folder = tmp_path / "cache" / "abc"
    assert fetch(folder, hello) is False
    assert fetch(folder, never) is True
    assert folder_sha256(folder).keys() == {"b.txt", "deep/a.txt", MANIFEST}
    assert json.loads((folder / MANIFEST).read_text())["deep/a.txt"] == HELLO_SHA256
    assert sorted(os.listdir(folder.parent)) == ["abc", "abc.lock"]


def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path):
    def half(folder: Path) -> None:
        hello(folder)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fetch(tmp_path / "abc", half)
    assert os.listdir(tmp_path) == ["abc.lock"]
    assert fetch(tmp_path / "abc", hello) is False


def test_a_process_killed_in_the_middle_leaves_nothing_that_would_be_taken_for_whole(tmp_path: Path):
    code = """
import os, signal, sys
from pathlib import Path
from factdpo.store.cache import fetch

def half(folder):
    (folder / "b.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

fetch(Path(sys.argv[1]), half)
"""
    killed = python(code, tmp_path / "abc")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "abc").exists()
    assert fetch(tmp_path / "abc", hello) is False  # and its lock died with it
    assert (tmp_path / "abc" / "b.txt").read_text() == ""


def test_two_processes_at_once_make_it_once(tmp_path: Path):
    code = """
import sys, time
from pathlib import Path
from factdpo.store.cache import fetch

folder, me, other = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])

def make(target):
    with (folder.parent / "made").open("a") as file:
        file.write("once\\n")
    time.sleep(0.3)
    (target / "a.txt").write_text("hello")

me.touch()
while not other.exists():
    time.sleep(0.001)
print(fetch(folder, make), (folder / "a.txt").read_text())
"""
    names = tmp_path / "one", tmp_path / "other"
    both = [python(code, tmp_path / "abc", *order) for order in (names, names[::-1])]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert said == ["False hello", "True hello"]
    assert (tmp_path / "made").read_text() == "once\n"


@pytest.mark.parametrize("wrong", ["a byte", "a file", "the manifest", "half of the manifest"])
def test_what_was_damaged_is_reported_and_made_again(tmp_path: Path, wrong: str, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "abc"
    fetch(folder, hello)
    if wrong == "a byte":
        (folder / "deep" / "a.txt").write_text("hallo")
    elif wrong == "a file":
        (folder / "b.txt").unlink()
    elif wrong == "the manifest":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:20])
    with caplog.at_level(logging.WARNING, logger="factdpo"):
        assert fetch(folder, hello) is False
    assert "made again" in caplog.text and str(folder) in caplog.text
    assert fetch(folder, never) is True
    assert (folder / "deep" / "a.txt").read_text() == "hello"


def test_entries_that_changed_places_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for name in ("abc", "def"):
        fetch(tmp_path / name, hello)
    (tmp_path / "abc").rename(tmp_path / "x")
    (tmp_path / "def").rename(tmp_path / "abc")
    (tmp_path / "x").rename(tmp_path / "def")
    assert (damage(tmp_path / "abc"), damage(tmp_path / "def")) == ("it is def", "it is abc")
    assert fetch(tmp_path / "abc", hello) is False
    assert f"{tmp_path / 'abc'} is not whole (it is def): it is made again" in caplog.text
    manifest = json.loads((tmp_path / "abc" / MANIFEST).read_text())
    del manifest["signature"]  # of an earlier version
    (tmp_path / "abc" / MANIFEST).write_text(json.dumps(manifest))
    assert fetch(tmp_path / "abc", never) is True


def test_an_entry_that_vanished_is_told_and_one_of_another_kind_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger="factdpo")
    fetch(tmp_path / "abc", hello)
    assert caplog.text == ""
    shutil.rmtree(tmp_path / "abc")
    fetch(tmp_path / "abc", hello)
    assert caplog.messages == [f"{tmp_path / 'abc'} is gone, or was never finished: it is made again"]
    shutil.rmtree(tmp_path / "abc")
    (tmp_path / "abc").write_text("a file")
    assert fetch(tmp_path / "abc", hello) is False and damage(tmp_path / "abc") is None


def test_what_has_its_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced, replace = [], os.replace
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def named(source: Path, target: Path) -> None:
        if target == tmp_path / "abc":
            written = {str(path) for path in source.rglob("*") if path.name != MANIFEST} | {str(source)}
            assert written <= {*synced}
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "replace", named)
    fetch(tmp_path / "abc", hello)
    assert synced[-1] == str(tmp_path)
