"""What doctor says of the hub: reachable, a mirror, or something else that answers; and which models are here."""

import pytest
import torch
import yaml
from huggingface_hub import constants

from factdpo.commands import doctor
from factdpo.config.folders import conf_folder
from factdpo.models import weights
from tests.helpers.hub_server import Hub, Repository

PYTHIA = yaml.safe_load((conf_folder() / "model" / "pythia_14m.yaml").read_text(encoding="utf-8"))
FILES = dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors", "README.md"), b"{}")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """report(): what doctor prints, in lines as long as they are."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("COLUMNS", "300")

    def make() -> str:
        doctor.main([])
        return capsys.readouterr().out

    return make


def line(report: str, word: str) -> str:
    return next(line for line in report.splitlines() if word in line)


def test_a_mirror_is_known_by_its_answers_and_called_one(hub: Hub, report) -> None:
    hub.models[PYTHIA["id"]] = Repository({PYTHIA["revision"]: FILES}, {"main": PYTHIA["revision"]})
    said = report()
    words = f"mirror of the hub ({hub.address}) │ reachable; HF_ENDPOINT puts it in the place of https://huggingface.co"
    assert words in said
    assert "yes; weights will come from the hub" in line(said, "model=pythia_14m")
    weights.download(weights.Weights(PYTHIA["id"], {}, commit=PYTHIA["revision"]))
    assert "yes; weights are here" in line(report(), "model=pythia_14m")


def test_a_mirror_that_lacks_the_model_is_one_all_the_same(hub: Hub, report) -> None:
    assert "│ reachable; HF_ENDPOINT" in line(report(), "mirror of the hub")


@pytest.mark.parametrize(
    ("page", "status", "words"),
    [
        (b"<html>Welcome to our Wi-Fi</html>", None, "not reachable (what answers is no hub)"),
        (b"[]", None, "not reachable (what answers is no hub)"),
        (None, 404, "not reachable (status 404, and not as from a hub)"),
        (None, 503, "not reachable (status 503, and not as from a hub)"),
    ],
)
def test_what_answers_but_is_no_hub_is_not_taken_for_one(
    hub: Hub, report, page: bytes | None, status: int | None, words: str
) -> None:
    hub.page, hub.status = page, status
    said = report()
    assert words in line(said, "mirror of the hub")
    assert "no: not downloaded, and the hub is out of reach" in line(said, "model=pythia_14m")


def test_the_hub_itself_is_no_mirror(hub: Hub, report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(doctor, "no_hub", lambda url, timeout: "" if url == "https://huggingface.co" else "asked")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "hub (https://huggingface.co) │ reachable; but HF_HUB_OFFLINE is set" in report()


def test_each_gpu_is_listed_with_its_memory(hub: Hub, report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Simulated {number}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: ((10 + number) * 2**30, 80 * 2**30))
    said = report()
    for number in (0, 1):
        assert f"Simulated {number}, {10 + number}.0 GiB free of 80.0" in line(said, f"cuda:{number} ")
    assert "cuda; cuda:0, cuda:1, cpu by name" in line(said, "engine.device=auto")
    assert "13.2 GiB even in bfloat16" not in said and "no: 12.8 GiB" not in said
    assert "no: 28.7 GiB even in bfloat16, 10.0 free" in line(said, "model=pythia_12b")


def test_without_a_gpu_it_says_why(hub: Hub, report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert f"none: torch {torch.__version__} is built without CUDA" in line(report(), "cuda ")
