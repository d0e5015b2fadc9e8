"""Data sets of the hub: which commit, which rows, and what is said without a network. The cache is a real one."""

import json
import os
import subprocess
import sys
import threading
import typing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from factdpo.config.schema import Config, DataConfig, DataSource, HubConfig, SplitConfig
from factdpo.config.validate import validate
from factdpo.data import hub
from factdpo.data.facts import FactError
from factdpo.data.files import has_own_splits
from factdpo.data.load import load_facts
from factdpo.data.splits import make_splits
from factdpo.runs.identity import data_identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TREE = {"size": 1, "blob_id": "0" * 40, "lfs_sha256": None, "lfs_size": None, "xet_hash": None}


def rows(split: str, count: int) -> str:
    facts = ({"prompt": f"{split} {i} is", "chosen": "red", "rejected": "blue"} for i in range(count))
    return "".join(json.dumps(row) + "\n" for row in facts)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub in which `main` of owner/facts, with two splits, was downloaded."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "hub" / "datasets--owner--facts"
    snapshot = folder / "snapshots" / COMMIT
    for path in (folder / "refs", folder / "trees", snapshot):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for split, count in (("train", 5), ("test", 3)):
        (snapshot / f"{split}.jsonl").write_text(rows(split, count))
    listing = {"format_version": 1, "files": {f"{split}.jsonl": TREE for split in ("train", "test")}}
    (folder / "trees" / f"{COMMIT}.json").write_text(json.dumps(listing))
    return folder


def own(**hub: str | None) -> DataConfig:
    return DataConfig(source=DataSource.pairs, hub=HubConfig(id="owner/facts", **hub))


def test_every_split_is_read_under_its_name_and_one_alone_is_drawn_from(cache: Path):
    cfg = own()
    facts = load_facts(cfg).facts
    assert {fact.split for fact in facts} == {"train", "test"} and has_own_splits(cfg)
    drawn = make_splits(facts, SplitConfig(seed=0)).splits
    assert {name: len(split) for name, split in drawn.items()} == {"train": 5, "test": 3}
    one = load_facts(own(split="train")).facts
    assert [fact.split for fact in one] == [None] * 5 and not has_own_splits(own(split="train"))
    assert one[0].where == "owner/facts train:1"


def test_the_commit_is_in_the_id_and_the_name_of_the_branch_is_not(cache: Path):
    assert data_identity(own()) == {"hub": "owner/facts", "config": None, "split": None, "commit": COMMIT}
    assert data_identity(own(revision=COMMIT)) == data_identity(own())
    assert data_identity(own(split="test")) != data_identity(own())


def test_what_the_data_set_does_not_have_is_named(cache: Path):
    with pytest.raises(FactError, match=r"data.hub.split=dev: owner/facts has .*train"):
        load_facts(own(split="dev"))
    with pytest.raises(FactError, match=r"data.hub.id=owner/facts data.hub.config=xl: cannot be read"):
        load_facts(own(config="xl"))


def test_without_network_what_is_not_here_is_refused_with_the_remedy(cache: Path):
    remedy = r"cannot be reached .*hf download owner/{} --repo-type dataset --revision {}`; or a file: data.path="
    with pytest.raises(FactError, match=remedy.format("other", "main")):
        hub.commit_of(HubConfig(id="owner/other"))
    with pytest.raises(FactError, match=remedy.format("facts", "v2")):
        load_facts(own(revision="v2"))


def test_a_download_that_is_not_whole_is_no_data_set(cache: Path):
    (cache / "snapshots" / COMMIT / "test.jsonl").unlink()
    with pytest.raises(FactError, match=r"cannot be reached .*--revision main"):
        load_facts(own())


def test_a_download_of_which_nobody_knows_whether_it_is_whole_is_none(cache: Path):
    (cache / "trees" / f"{COMMIT}.json").unlink()
    with pytest.raises(FactError, match=f"cannot be reached .*--revision {COMMIT}"):
        load_facts(own(split="train"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"path": "a.csv", "hub": HubConfig(id="owner/facts")}, "data.path=a.csv: not beside data.hub.id"),
        ({"hub": HubConfig(id="own/er/facts")}, "data.hub.id=own/er/facts: no id of a data set"),
        ({"path": "a.csv", "hub": HubConfig(split="train")}, "data.hub.split=train: has no effect without data.hub.id"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(data: dict[str, object], words: str):
    cfg = Config(data=DataConfig(source=DataSource.pairs, **data))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        validate(cfg)


# --------------------------------------------------------------------------------------------------- a hub on loopback

READ = """
from factdpo.config.schema import DataConfig, DataSource, HubConfig
from factdpo.data.load import load_facts
from factdpo.runs.identity import data_identity
cfg = DataConfig(source=DataSource.pairs, hub=HubConfig(id="owner/facts", split="test"))
print(data_identity(cfg)["commit"], [fact.prompt for fact in load_facts(cfg).facts])
"""


class Hub(BaseHTTPRequestHandler):
    """The three answers of the hub that a download takes: a revision, its listing, its files."""

    files: typing.ClassVar = {"train.jsonl": rows("train", 2).encode(), "test.jsonl": rows("test", 1).encode()}
    asked: typing.ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        if "/tree/" in path:
            found = [{"type": "file", "path": n, "size": len(f), "oid": "0" * 40} for n, f in self.files.items()]
            body = json.dumps(found).encode()
        elif path.startswith("/api/datasets/owner/facts"):
            body = json.dumps({"id": "owner/facts", "sha": COMMIT, "siblings": []}).encode()
        else:
            body = self.files.get(path.rsplit("/", 1)[-1], b"")
        self.send_response(200 if body else 404)
        for name, value in {"X-Repo-Commit": COMMIT, "ETag": f'"{len(body)}"', "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.mark.slow
def test_a_data_set_is_downloaded_once_and_then_needs_no_network(tmp_path: Path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}

    def read(**changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", READ]
        return subprocess.run(command, env=env | changes, capture_output=True, text=True, timeout=120)

    first = read()
    assert first.stdout == f"{COMMIT} ['test 0 is']\n", first.stderr
    assert any(path.endswith("/resolve/" + COMMIT + "/test.jsonl") for path in Hub.asked)
    server.shutdown()
    server.server_close()
    assert read().stdout == first.stdout  # the hub is gone
    assert read(HF_HUB_OFFLINE="1").stdout == first.stdout
