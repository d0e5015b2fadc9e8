"""`factdpo doctor`: what this machine has, what it reaches, which models can run on it. Never fails, answers soon."""

import os
import platform
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

import factdpo
from factdpo import hub as hub_client
from factdpo.commands.network import no_hub, unreachable
from factdpo.commands.parser import Parser
from factdpo.config.folders import conf_folder
from factdpo.config.schema import ConfigError, ModelConfig, ModelSource, TrackConfig
from factdpo.console import SafeConsole
from factdpo.models import weights
from factdpo.models.devices import pick_device, visible_devices
from factdpo.store import provenance
from factdpo.tracking import wandb_settings

TIMEOUT_SECONDS = 3.0
GIB = 2**30
OVERHEAD = 1.3  # memory of a LoRA run over that of the weights alone: adapter, optimizer, activations; a rough estimate


def main(arguments: list[str]) -> None:
    """Prints the report."""
    make_parser().parse_args(arguments)
    console = SafeConsole()
    hub, wandb = _hub_address(), wandb_settings.base_url()
    reached = _reach({"hub": hub, "W&B": wandb})  # while torch is imported
    free_gib, machine = _machine()
    answers = reached()
    _print(console, "Versions", _versions())
    _print(console, "Machine", machine)
    _print(console, "Caches", _caches())
    _print(console, "Network", _network(answers, hub, wandb))
    models = Table("model", "memory", "can run here", title="Models; memory is an estimate, for LoRA in float32")
    models.title_justify = "left"
    for row in _models(free_gib, answers["hub"] == "reachable" and not hub_client.offline()):
        models.add_row(*row)
    console.print(models)


def make_parser() -> Parser:
    return Parser("doctor", "What this machine has, what it reaches, and which models can run on it.")


def _print(console: SafeConsole, title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, what in rows:
        table.add_row(name, what)
    console.print(table)


def _versions() -> Iterable[tuple[str, str]]:
    for package, version in provenance.versions().items():
        place = f" in {Path(factdpo.__file__).parent}" if package == "factdpo" else ""
        yield package, f"{version}{place}" if version else "not installed"


def _machine() -> tuple[float, list[tuple[str, str]]]:
    """Free memory of the device that engine.device=auto would take, GiB, and the rows to print."""
    total, free = provenance.memory_bytes()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}"
    rows = [("system", platform.platform()), ("cores", str(cores)), ("memory", memory)]
    try:
        import torch

        for i in range(torch.cuda.device_count()):
            free_there, total_there = torch.cuda.mem_get_info(i)
            free = free_there if i == 0 else free
            name = torch.cuda.get_device_name(i)
            rows.append((f"cuda:{i}", f"{name}, {free_there / GIB:.1f} GiB free of {total_there / GIB:.1f}"))
        if torch.backends.mps.is_available():
            rows.append(("mps", "an Apple GPU, which shares the memory above"))
        if not torch.cuda.is_available():
            built = "torch sees no GPU" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
            rows.append(("cuda", f"none: {built}"))
        others = f"; {', '.join(devices)} by name" if len(devices := visible_devices()) > 1 else ""
        rows.append(("engine.device=auto", f"{pick_device('auto')}{others}"))
    except Exception as error:  # a broken torch is what one calls a doctor for
        rows.append(("torch", f"does not work: {type(error).__name__}: {error}"))
    return free / GIB, rows


def _caches() -> Iterable[tuple[str, str]]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, folder in (("hub models", Path(HF_HUB_CACHE)), ("factdpo, from here", Path("outputs") / "cache")):
        size = sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        yield name, f"{folder.resolve()}, " + (f"{size / GIB:.2f} GiB" if folder.is_dir() else "not there yet")


def _hub_address() -> str:
    from huggingface_hub.constants import ENDPOINT

    return ENDPOINT


def _network(answers: dict[str, str], hub: str, wandb: str) -> Iterable[tuple[str, str]]:
    mirror = "; HF_ENDPOINT puts it in the place of https://huggingface.co" if hub_client.mirror() else ""
    unused = f"; but {hub_client.offline()} is set, so it will not be asked" if hub_client.offline() else ""
    yield f"{'mirror of the hub' if mirror else 'hub'} ({hub})", answers["hub"] + mirror + unused
    yield f"W&B ({wandb})", answers["W&B"]
    mode, why = wandb_settings.wandb_mode(TrackConfig())
    yield "W&B would be", f"{mode} ({why})" if why else mode


def _reach(addresses: dict[str, str]) -> Callable[[], dict[str, str]]:
    """Asks all addresses at once; the returned function gives the answers after at most TIMEOUT_SECONDS more."""
    answers = dict.fromkeys(addresses, f"no answer within {TIMEOUT_SECONDS:g} s")

    def ask(name: str, url: str) -> None:
        problem = (no_hub if name == "hub" else unreachable)(url, TIMEOUT_SECONDS)
        answers[name] = f"not reachable ({problem})" if problem else "reachable"

    # Daemons, since a name lookup cannot be given a timeout.
    threads = [threading.Thread(target=ask, args=pair, daemon=True) for pair in addresses.items()]
    for thread in threads:
        thread.start()

    def wait() -> dict[str, str]:
        for thread in threads:
            thread.join(TIMEOUT_SECONDS)
        return dict(answers)

    return wait


def _models(free_gib: float, hub: bool) -> Iterable[tuple[str, str, str]]:
    files = (conf_folder() / "model").glob("*.yaml")
    models = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in files}
    for name, options in sorted(models.items(), key=lambda model: (_parameters(model[1]) or 10**15, model[0])):
        parameters = _parameters(options)
        need_gib = 4 * OVERHEAD * (parameters or 0) / GIB  # float32
        memory = f"{need_gib:.1f} GiB" if parameters else "depends"
        yield f"model={name}", memory, _verdict(options, need_gib, free_gib, hub)


def _verdict(options: dict[str, Any], need_gib: float, free_gib: float, hub: bool) -> str:
    source, repo = ModelSource[options.get("source", "nano")], options.get("id")
    if source is ModelSource.smollm2:
        try:
            weights.locate(ModelConfig(source=source))
        except ConfigError:
            return f"not yet: {weights.SMOLLM2_INSTALL}"
    if source is ModelSource.pretrained and repo is None:
        return "give model.id=<folder or hub id>"
    if need_gib / 2 > free_gib:
        return f"no: {need_gib / 2:.1f} GiB even in bfloat16, {free_gib:.1f} free"
    fits = "yes" if need_gib <= free_gib else "yes, with model.dtype=bfloat16"
    if source is not ModelSource.pretrained:
        return fits
    if weights.downloaded(str(repo), str(options.get("revision") or "main")):
        return f"{fits}; weights are here"
    return f"{fits}; weights will come from the hub" if hub else "no: not downloaded, and the hub is out of reach"


def _parameters(options: dict[str, Any]) -> int | None:
    """Parameters of a model in conf/model; None where that is the user's choice."""
    source = ModelSource[options.get("source", "nano")]
    if source is not ModelSource.pretrained:
        return {ModelSource.nano: 1_000_000, ModelSource.smollm2: 135_000_000}[source]
    if options.get("id") not in weights.PYTHIA_SHAPES:
        return None
    layers, width, _, vocabulary = weights.PYTHIA_SHAPES[options["id"]]
    # GPT-NeoX, whose two embeddings are not tied.
    return 2 * vocabulary * width + layers * (12 * width**2 + 13 * width) + 2 * width
