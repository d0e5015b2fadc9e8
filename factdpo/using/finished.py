"""A finished run as it lies on the disk: its record, its config, and the base and trained model in memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo import console
from factdpo.config.schema import Config, ConfigError
from factdpo.config.validate import from_dict
from factdpo.models import weights
from factdpo.store import layout
from factdpo.store.result import TRAINING, Result, read_result

if TYPE_CHECKING:
    from torch import nn

    from factdpo.models.base import Base


@dataclass
class Finished:
    """A training that has ended well, whose files are those that it wrote."""

    folder: Path
    result: Result
    cfg: Config  # with `out` where the run lies now
    asked: dict[str, Any]  # what its id is a hash of


def read_finished(folder: Path) -> Finished:
    """The finished training in a folder; raises ConfigError, with what to do, if there is none."""
    stored = read_result(folder)
    if stored.result is None or stored.result["state"] != "FINISHED":
        reason = f"its state is {stored.result['state']}" if stored.result else stored.reason
        raise ConfigError(f"{folder}: {reason}; give the folder of a finished run")
    if stored.result.get("kind", TRAINING) != TRAINING:
        raise ConfigError(f"{folder}: an evaluation, which has no weights of its own; give the run that it scored")
    cfg = from_dict(stored.result["config"])
    out = layout.out_of(folder)
    cfg.out = str(out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out)
    return Finished(folder, stored.result, cfg, layout.read_json(folder / "asked.json") or {})


def check_base(run: Finished) -> None:
    """Raises ConfigError unless the base is there and has the bytes that it had when the run was done."""
    now = weights.locate(run.cfg.model)
    if now.identity != run.asked.get("model"):
        raise ConfigError(
            f"{run.folder}: the base ({now.name}) is not the one that it was trained on: its files have changed since"
        )


@dataclass
class Models:
    """A base and the trained model, which share their weights where the trained one is an adapter."""

    base: "Base"
    trained: "nn.Module"

    def as_base(self) -> "AbstractContextManager[nn.Module]":
        """The base as it was before training, for as long as the context lasts."""
        if self.is_adapter:
            return _without_adapter(self.trained)
        return nullcontext(self.base.model)

    @property
    def is_adapter(self) -> bool:
        return hasattr(self.trained, "disable_adapter")


@contextmanager
def _without_adapter(model: Any) -> "Iterator[nn.Module]":
    with model.disable_adapter():
        yield model


def load_base_of(run: Finished) -> "Base":
    """The base of a run; raises ConfigError if it cannot be had, or is another one now."""
    check_base(run)
    console.quiet_libraries()
    with console.stage("importing torch and transformers"):
        from factdpo.models.base import load_base
        from factdpo.models.devices import pick_device
    return load_base(run.cfg.model, pick_device(run.cfg.engine.device), Path(run.cfg.out) / "cache")


def load_models(run: Finished) -> Models:
    """The base and the trained model of a run, in eval mode; raises what `load_base_of` does."""
    base = load_base_of(run)
    from factdpo.training import adapters

    return Models(base, adapters.load_trained(base, run.folder))
