"""The device: what is there, what is refused and when. The GPUs are simulated, by what torch says of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from factdpo.config.schema import Config, ConfigError, DataConfig, DataSource, EngineConfig, EngineName, SplitConfig
from factdpo.config.validate import validate
from factdpo.models.devices import check_device, pick_device, visible_devices
from factdpo.runs.identity import can_train_together, config_in_id, look_up


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """gpus(2): torch says that it sees two."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return see


def asked(device: str, **more: object) -> Config:
    return Config(engine=EngineConfig(device=device), **more)  # type: ignore[arg-type]


def test_auto_takes_the_first_gpu_and_another_is_taken_by_its_number(gpus: Callable[[int], None]) -> None:
    gpus(0)
    assert visible_devices() == ["cpu"] and pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    gpus(2)
    assert visible_devices() == ["cuda:0", "cuda:1", "cpu"]
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("count", "device", "words"),
    [
        (0, "cuda", r"engine.device=cuda: torch sees cpu \(cuda is not there.*\); use one of these, or engine.dev"),
        (0, "cuda:1", r"engine.device=cuda:1: torch sees cpu \(cuda is not there"),
        (2, "cuda:2", r"engine.device=cuda:2: torch sees cuda:0, cuda:1, cpu; use one of these"),
        (2, "mps", r"engine.device=mps: torch sees cuda:0, cuda:1, cpu; use"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_with_what_is(
    gpus: Callable[[int], None], count: int, device: str, words: str
) -> None:
    gpus(count)
    with pytest.raises(ConfigError, match=words):
        pick_device(device)


def test_a_run_is_refused_when_it_is_looked_up_unless_another_process_will_do_it(
    gpus: Callable[[int], None], tmp_path: Path
) -> None:
    gpus(0)
    rows = [f"{letter} is,red,blue" for letter in "abcd"]
    (tmp_path / "facts.csv").write_text("\n".join(["prompt,chosen,rejected", *rows]))
    data = DataConfig(source=DataSource.pairs, path=str(tmp_path / "facts.csv"))
    cfg = validate(asked("cuda", out=str(tmp_path), data=data, split=SplitConfig(train=2)))
    with pytest.raises(ConfigError, match=r"engine.device=cuda: torch sees cpu"):
        look_up(cfg)
    assert look_up(cfg, here=False).sizes
    gpus(1)
    assert look_up(cfg).sizes


def test_trl_takes_the_first_gpu_and_no_other(gpus: Callable[[int], None]) -> None:
    gpus(2)
    for device in ("cuda", "cuda:0"):
        check_device(EngineConfig(EngineName.trl, device))
    check_device(EngineConfig(EngineName.batched, "cuda:1"))
    with pytest.raises(ConfigError, match=r"engine.device=cuda:1: engine=trl .*CUDA_VISIBLE_DEVICES=1 factdpo"):
        check_device(EngineConfig(EngineName.trl, "cuda:1"))


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:01", "cpu:0", "Cuda", ""])
def test_what_is_no_device_is_refused_by_its_key(device: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.device={device}: must be one of auto, cpu, mps, cuda, or cuda:1"):
        validate(asked(device))


def test_which_gpu_is_not_in_the_id_and_runs_on_two_do_not_train_together() -> None:
    one, other = (validate(asked(device)) for device in ("cuda:1", "cuda"))
    assert config_in_id(one) == config_in_id(other) and config_in_id(one)["engine"]["device"] == "cuda"
    assert can_train_together(one) != can_train_together(other)
