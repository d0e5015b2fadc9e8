"""A model of the hub: its commit, its download, its second life without network, and what is said when it fails.

The hub is on loopback (tests/helpers/hub_server.py); huggingface_hub and transformers are the real ones.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file

from factdpo import hub as hub_client
from factdpo.config.folders import conf_folder
from factdpo.config.schema import ConfigError, ModelConfig, ModelSource
from factdpo.models import weights
from factdpo.models.base import load_base
from tests.helpers.hub_server import Hub, Repository, hub_on_loopback

PYTHIA = yaml.safe_load((conf_folder() / "model" / "pythia_14m.yaml").read_text(encoding="utf-8"))
COMMIT, OTHER = PYTHIA["revision"], "0" * 40
SMALL = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "tokenizer_config.json": b'{"b": 2}'}
# What a repository has besides, and nobody needs.
BESIDE = {"README.md": b"a card", "pytorch_model.bin": b"a pickle", "onnx/config.json": b"{}", "a/b.safetensors": b"b"}
FILES = SMALL | {"model.safetensors": b"weights"} | BESIDE


def asked(revision: str | None = COMMIT, name: str = "owner/model") -> ModelConfig:
    return ModelConfig(name="x", source=ModelSource.pretrained, id=name, revision=revision)


def had(cfg: ModelConfig) -> Path:
    """The folder of a model, as a run gets it: its commit, whether it can be had, and the download."""
    found = weights.locate(cfg)
    weights.check_obtainable(cfg, found)
    return weights.download(found)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The hub's client does not wait between its tries; the list says for how many seconds it would have."""
    waited: list[float] = []
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and the hub is never asked again."""

    def cut() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub.status = 500

    return cut


@pytest.fixture(scope="module")
def pythia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the shape of Pythia 14M, with nano's tokenizer, as save_pretrained writes them."""
    folder = tmp_path_factory.mktemp("pythia")
    cfg = ModelConfig(name="x", source=ModelSource.pretrained, id=PYTHIA["id"], random_init=True)
    made = load_base(cfg, torch.device("cpu"), folder)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def as_pythia(folder: Path) -> dict[str, Repository]:
    """The repository of Pythia 14M with these files, and its main by now another commit than the one we pin."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {PYTHIA["id"]: Repository({COMMIT: files | BESIDE, OTHER: {}}, {"main": OTHER})}


def test_pythia_14m_is_downloaded_at_its_commit_loaded_and_found_again_offline(
    hub: Hub, offline: Any, pythia: Path, tmp_path: Path
) -> None:
    hub.models = as_pythia(pythia)
    cfg = asked(COMMIT, PYTHIA["id"])
    base = load_base(cfg, torch.device("cpu"), tmp_path)
    assert base.weights.identity["files"] == {"hub": "EleutherAI/pythia-14m", "commit": COMMIT}
    made = load_file(pythia / "model.safetensors")
    named = {name.replace("lm_head", "embed_out"): weight for name, weight in base.model.named_parameters()}
    assert named.keys() == made.keys() and all(torch.equal(weight, made[name]) for name, weight in named.items())
    assert len(hub.paths("/model.safetensors")) == 1
    assert not any(path.endswith(tuple(BESIDE)) for path in hub.paths())

    offline()
    hub.asked.clear()
    weights.check_obtainable(cfg, weights.locate(cfg))
    again = load_base(cfg, torch.device("cpu"), tmp_path).model.get_output_embeddings().weight
    assert torch.equal(again, named["embed_out.weight"])
    assert hub.asked == []


@pytest.mark.slow
def test_two_commands_share_one_download_and_a_third_needs_no_hub(pythia: Path, tmp_path: Path) -> None:
    def start(seed: int, **changes: str) -> subprocess.Popen[str]:
        words = [
            "model=pythia_14m", f"seed={seed}", f"out={tmp_path}/{seed}", "track.wandb=false", "dpo.epochs=null",
            "dpo.max_steps=2", "split.train=8", "split.test=8", "eval.generations=1",
        ]  # fmt: skip
        env = os.environ | {"HF_HOME": f"{tmp_path}/hf", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"} | changes
        command = [sys.executable, "-m", "factdpo", *words]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def says_finished(process: subprocess.Popen[str]) -> None:
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said

    with hub_on_loopback() as hub:
        hub.models, hub.delay_seconds = as_pythia(pythia), 0.5  # so that the second asks while the first downloads
        for process in [start(seed, HF_ENDPOINT=hub.address) for seed in (0, 1)]:
            says_finished(process)
        assert len(hub.paths("/model.safetensors")) == len(hub.paths("/tokenizer.json")) == 1
        address = hub.address
    says_finished(start(2, HF_ENDPOINT=address))  # where nobody is any more
    says_finished(start(3, HF_HUB_OFFLINE="1"))


@pytest.mark.parametrize("revision", [None, "step1000"])
def test_a_branch_is_asked_for_once_and_then_known_without_network(
    hub: Hub, offline: Any, revision: str | None
) -> None:
    hub.models["owner/model"] = Repository({COMMIT: FILES}, {revision or "main": COMMIT})
    cfg = asked(revision)
    assert had(cfg).name == COMMIT == weights.locate(cfg).commit
    offline()
    hub.asked.clear()
    assert had(cfg).name == COMMIT and hub.asked == []


def test_a_branch_of_a_commit_that_is_here_is_known_without_network_too(hub: Hub, offline: Any) -> None:
    hub.models["owner/model"] = Repository({COMMIT: FILES}, {"main": COMMIT})
    had(asked(COMMIT))
    had(asked(None))
    offline()
    assert had(asked(None)).name == COMMIT
    assert len(hub.paths("/model.safetensors")) == 1


def test_a_branch_that_moves_meanwhile_does_not_change_what_was_asked_for(hub: Hub) -> None:
    hub.models["owner/model"] = Repository({COMMIT: FILES, OTHER: FILES}, {"main": COMMIT})
    found = weights.locate(asked(None))
    hub.models["owner/model"].branches["main"] = OTHER
    assert weights.download(found).name == COMMIT == found.commit


def test_the_tokenizer_comes_without_the_weights_and_the_weights_without_the_tokenizer(hub: Hub) -> None:
    hub.models["owner/model"] = Repository({COMMIT: FILES}, {})
    found = weights.locate(asked())
    assert (weights.download_tokenizer(found) / "tokenizer.json").is_file()
    assert hub.paths("/model.safetensors") == [] and weights.downloaded("owner/model", COMMIT) is None
    weights.download(found)
    assert len(hub.paths("/tokenizer.json")) == len(hub.paths("/model.safetensors")) == 1


def test_a_chat_template_comes_along_and_later_by_itself(hub: Hub, offline: Any) -> None:
    repository = Repository({COMMIT: FILES | {weights.TEMPLATE: b"{{ messages }}"}, OTHER: FILES}, {})
    hub.models["owner/model"] = repository
    folder = had(asked())
    assert (folder / weights.TEMPLATE).read_bytes() == b"{{ messages }}"
    (folder / weights.TEMPLATE).unlink()
    weights.fetch_template(weights.locate(asked()))
    assert (folder / weights.TEMPLATE).is_file()
    had(asked(OTHER))
    weights.fetch_template(weights.locate(asked(OTHER)))
    offline()
    weights.fetch_template(weights.locate(asked(OTHER)))  # that it has none is remembered


def test_a_download_that_breaks_goes_on_where_it_was(hub: Hub, impatient: list[float]) -> None:
    """The client writes blocks of 10 MiB, so that is what it has when half of 44 MiB came."""
    content = bytes(range(256)) * (44 * 2**12)
    hub.models["owner/model"] = Repository({COMMIT: FILES | {"model.safetensors": content}}, {})
    hub.broken.append("model.safetensors")
    assert (had(asked()) / "model.safetensors").read_bytes() == content
    ranges = [a.range for a in hub.asked if a.path.endswith("model.safetensors") and a.method == "GET"]
    assert ranges == [None, f"bytes={20 * 2**20}-"]


def test_a_download_that_is_given_up_says_so_and_the_next_command_takes_the_rest(
    hub: Hub, impatient: list[float]
) -> None:
    hub.models["owner/model"] = Repository({COMMIT: FILES}, {})
    hub.broken += ["model.safetensors"] * 6
    with pytest.raises(ConfigError, match=r"model.id=owner/model: its download broke off \(RemoteProtocolError.*again"):
        had(asked())
    assert weights.downloaded("owner/model", COMMIT) is None
    assert had(asked()).name == COMMIT


def test_a_hub_that_limits_requests_is_waited_for_in_a_download(hub: Hub, impatient: list[float]) -> None:
    hub.models["owner/model"] = Repository({COMMIT: FILES}, {})
    found = weights.locate(asked())
    hub.refused, hub.retry_after_seconds = 1, 7
    assert weights.download(found).name == COMMIT and impatient == [8.0]


def test_a_hub_that_falls_silent_after_it_was_asked_is_given_up(
    hub: Hub, impatient: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client lists the files of a commit without a limit of its own."""
    monkeypatch.setattr(hub_client, "SILENCE_SECONDS", 0.1)
    hub.models["owner/model"] = Repository({COMMIT: FILES}, {"main": COMMIT})
    found = weights.locate(asked())
    hub.delay_seconds = 1.0
    with pytest.raises(ConfigError, match=r"model.id=owner/model: the hub .* cannot be reached \(ReadTimeout\)"):
        weights.download(found)
    assert len(hub.paths(f"/tree/{COMMIT}")) == 1 + len(impatient) > 1


def test_a_repository_without_safetensors_is_refused_and_asked_anew_once_it_has_them(hub: Hub) -> None:
    hub.models["owner/model"] = Repository({COMMIT: SMALL | BESIDE, OTHER: FILES}, {"main": COMMIT})
    with pytest.raises(ConfigError, match=rf"model.safetensors is not in the repository at {COMMIT}.*convert it"):
        had(asked(None))
    hub.models["owner/model"].branches["main"] = OTHER
    assert had(asked(None)).name == OTHER


def limited(hub: Hub) -> None:
    hub.refused, hub.retry_after_seconds = 1, 30


@pytest.mark.parametrize("revision", [None, COMMIT])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda hub: hub.models.clear(), r"model.id=owner/model: no such model on the hub, or a private one"),
        (lambda hub: hub.models.update({"owner/model": Repository({COMMIT: FILES}, {"main": COMMIT}, gated=True)}),
         r"model.id=owner/model: gated; accept its terms at http://127.0.0.1:\d+/owner/model, then run `hf auth log"),
        (limited, r"answers no more requests for now \(429\); try again in 30 s, or run `hf auth login`"),
        (lambda hub: setattr(hub, "status", 503), r"cannot be reached \(it answers 503\)"),
        (lambda hub: setattr(hub, "delay_seconds", 1.0), r"cannot be reached \(ReadTimeout\).*hf download owner/model"),
        (lambda hub: setattr(hub, "page", b"<html>Welcome to our Wi-Fi</html>"), r"is no hub; is HF_ENDPOINT right"),
    ],
    ids=["not found", "gated", "limited", "in trouble", "slow", "no hub"],
)  # fmt: skip
def test_what_cannot_be_had_is_refused_at_once_with_the_reason(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, impatient: list[float], fault: Any, words: str, revision: str | None
) -> None:
    hub.models["owner/model"] = Repository({COMMIT: FILES}, {"main": COMMIT})
    monkeypatch.setattr(hub_client, "TIMEOUT_SECONDS", 0.1)
    fault(hub)
    with pytest.raises(ConfigError, match=words):
        found = weights.locate(asked(revision))
        weights.check_obtainable(asked(revision), found)
    assert impatient == []


@pytest.mark.parametrize("revision", ["step7", OTHER])
def test_a_revision_that_is_not_there_is_refused_by_its_own_key(hub: Hub, revision: str) -> None:
    hub.models["owner/model"] = Repository({COMMIT: FILES}, {"main": COMMIT})
    with pytest.raises(ConfigError, match=f"model.revision={revision}: owner/model has no such branch, tag or commit"):
        had(asked(revision))


def test_a_repository_that_is_no_model_is_refused(hub: Hub) -> None:
    hub.models["owner/model"] = Repository({COMMIT: BESIDE}, {"main": COMMIT})
    with pytest.raises(ConfigError, match=f"model.id=owner/model: has no config.json at {COMMIT}; is it a model"):
        had(asked(None))


def test_without_network_the_message_names_the_reason_and_the_command(hub: Hub, monkeypatch: Any) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    remedy = r"cannot be reached \({}\) and this model is not here.*`hf download owner/model --revision main`; or"
    with pytest.raises(ConfigError, match=remedy.format("ConnectError")):
        had(asked(None))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=remedy.format("HF_HUB_OFFLINE is set")):
        had(asked(None))


def test_a_name_that_no_repository_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.id=owner/a--b: Cannot have --"):
        had(asked(None, "owner/a--b"))
