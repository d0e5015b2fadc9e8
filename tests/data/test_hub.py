"""Data sets of the hub: which commit, which rows, and what is said without a network. The cache is a real one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from factdpo import hub as client
from factdpo.config.schema import Config, DataConfig, DataSource, HubConfig, SplitConfig
from factdpo.config.validate import validate
from factdpo.data import hub
from factdpo.data.facts import FactError
from factdpo.data.files import has_own_splits
from factdpo.data.load import load_facts
from factdpo.data.splits import make_splits
from factdpo.runs.identity import data_identity, look_up
from tests.helpers.hub_server import Hub, Repository, hub_on_loopback

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
    remedy = r"cannot be reached .*hf download owner/{} --repo-type dataset --revision {}`; or a file .*data.path="
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
    with pytest.raises(FactError, match=r"cannot be reached .*--revision main"):
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


FILES = {"train.jsonl": rows("train", 2).encode(), "test.jsonl": rows("test", 1).encode(), "README.md": b"facts"}
OTHER = "f" * 40


@pytest.fixture
def facts(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub with owner/facts on it, of which nothing is here."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    hub.datasets["owner/facts"] = Repository({COMMIT: FILES}, {"main": COMMIT})
    return hub


def asked_for(hub: Hub, what: str) -> list[str]:
    return [asked.path for asked in hub.asked if what in asked.path]


def test_a_look_up_asks_for_the_commit_and_downloads_every_file_once(
    facts: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    cfg = validate(Config(data=own(), out=str(tmp_path)))
    assert look_up(cfg).asked["data"]["commit"] == COMMIT
    assert len(asked_for(facts, "/revision/")) == 2, "we ask, and so does the download"
    assert len(asked_for(facts, "/tree/")) == 1
    assert sorted(facts.paths()[-3:]) == sorted(f"/datasets/owner/facts/resolve/{COMMIT}/{name}" for name in FILES)
    facts.asked.clear()
    look_up(cfg)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    look_up(cfg)
    assert facts.asked == []


def test_the_rows_are_those_of_the_commit_in_the_id_even_if_the_branch_moves(facts: Hub):
    identity = data_identity(own())
    facts.datasets["owner/facts"] = Repository({COMMIT: {}, OTHER: FILES}, {"main": OTHER})
    assert identity["commit"] == COMMIT and len(load_facts(own()).facts) == 3
    assert data_identity(own(revision=OTHER))["commit"] == OTHER


@pytest.mark.parametrize(
    ("change", "revision", "words"),
    [
        (lambda hub: hub.datasets.clear(), "main", "data.hub.id=owner/facts: no such data set on the hub"),
        (lambda hub: None, "v2", "data.hub.revision=v2: owner/facts has no such branch"),
        (lambda hub: None, OTHER, f"data.hub.revision={OTHER}: owner/facts has no such branch"),
        (lambda hub: hub.datasets.update({"owner/facts": Repository({COMMIT: FILES}, {"main": COMMIT}, gated=True)}),
         "main", r"gated; accept its terms at http://127.0.0.1:\d+/datasets/owner/facts, then run"),
        (lambda hub: setattr(hub, "refused", 1), "main", r"answers no more requests for now \(429\)"),
        (lambda hub: setattr(hub, "delay_seconds", 1.0), "main", r"cannot be reached \(ReadTimeout\)"),
    ],
    ids=["not found", "branch", "commit", "gated", "limited", "slow"],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_with_the_reason(
    facts: Hub, monkeypatch: pytest.MonkeyPatch, change: Any, revision: str, words: str
):
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.1)
    change(facts)
    with pytest.raises(FactError, match=words):
        load_facts(own(revision=revision))


@pytest.mark.slow
def test_a_data_set_is_downloaded_once_and_then_needs_no_network(tmp_path: Path):
    with hub_on_loopback() as hub:
        hub.datasets["owner/facts"] = Repository({COMMIT: FILES}, {"main": COMMIT})
        env = os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}

        def read(**changes: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", READ]
            return subprocess.run(command, env=env | changes, capture_output=True, text=True, timeout=120)

        first = read()
        assert first.stdout == f"{COMMIT} ['test 0 is']\n", first.stderr
        assert len(hub.paths(f"/resolve/{COMMIT}/test.jsonl")) == 1
    assert read().stdout == first.stdout  # the hub is gone
    assert read(HF_HUB_OFFLINE="1").stdout == first.stdout
