"""The device that a run computes on, and why there is none; torch is imported only where it is asked."""

from typing import TYPE_CHECKING

from factdpo.config.schema import ConfigError, EngineConfig, EngineName

if TYPE_CHECKING:
    import torch


def visible_devices() -> list[str]:
    """What engine.device can be here besides auto, the one that auto takes first: cuda:0 and more, or mps; then cpu."""
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def pick_device(asked: str) -> "torch.device":
    """The torch device for engine.device; raises ConfigError if torch does not see it."""
    import torch

    devices = visible_devices()
    if asked == "auto":
        return torch.device(devices[0].partition(":")[0])
    if asked not in (*devices, *(name.partition(":")[0] for name in devices)):
        built = f", and torch {torch.__version__} is built for none" if torch.version.cuda is None else ""
        without = f" ({asked.partition(':')[0]} is not there{built})" if len(devices) == 1 else ""
        raise ConfigError(
            f"engine.device={asked}: torch sees {', '.join(devices)}{without}; use one of these, or engine.device=auto"
        )
    return torch.device(asked)


def check_device(cfg: EngineConfig) -> None:
    """Raises ConfigError if engine.device is not here, or not engine.processes times, or not what the engine takes."""
    if cfg.processes > 1:
        device, devices = pick_device(cfg.device).type, visible_devices()
        if device != "cpu" and cfg.processes > (count := sum(name.startswith(device) for name in devices)):
            raise ConfigError(
                f"engine.processes={cfg.processes}: each has a GPU of its own, and torch sees {', '.join(devices)}; "
                f"give at most {count}, or engine.device=cpu"
            )
    if cfg.device in ("auto", "cpu"):
        return
    number = pick_device(cfg.device).index
    if number and cfg.name is EngineName.trl:
        raise ConfigError(
            f"engine.device={cfg.device}: engine=trl trains on the first GPU that it sees; show it this one alone: "
            f"CUDA_VISIBLE_DEVICES={number} factdpo ... engine.device=cuda"
        )
