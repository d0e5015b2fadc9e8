"""What 10,000 runs over the Pythia sizes would take: memory by the planner's own probe, GPU hours by assumption.

    python benchmarks/ten_thousand.py                        all sizes, ranks 8, 32 and 128; minutes, 8 GiB
    python benchmarks/ten_thousand.py --check                sizes up to 160m, whole, against what is made of one layer

Memory is what training/batched/capacity.py measures and plans with. Of each size it is measured on a model of one
layer and on one of two, at the true width, and continued to the true number of layers: a layer costs the same each
time, which `--check` shows. GPU hours are arithmetic: forward passes of pairs as dry_run counts them
(sweep/estimates.py), 2 FLOP per parameter and token, and a speed that is assumed (--tflops). The store is one run of
nano, measured, with the adapter of each size and rank, twice, in place of its own.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from sweep_speed import Setting, config, synthetic_pairs

from factdpo.config.schema import Config
from factdpo.data.pairs import Pairs
from factdpo.models import base as model
from factdpo.models.weights import PYTHIA_SHAPES
from factdpo.sweep.estimates import work_of
from factdpo.training.batched import capacity
from factdpo.training.batched.packing import block_length

RUNS, GIB = 10_000, 2**30
SIZES = ["14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"]
SPLITS = {"train": 300, "train_reversed": 300, "test": 561, "test_reversed": 561}  # facts of the default run
TOKENS = 65536  # of a forward on a GPU


class Probe(NamedTuple):
    """Bytes of a base, and what `capacity.bytes_needed` finds on it; whole, or continued from fewer layers."""

    weights: float
    state: float  # of a run: its adapter six times, as masters, gradients, update and AdamW's moments
    activations: float  # of a run's step


def probed(size: str, ranks: list[int], layers: int) -> list[Probe]:
    """Measured for each rank on random weights of that size's width, in so many layers."""
    name = f"EleutherAI/pythia-{size}"
    whole = PYTHIA_SHAPES[name]
    PYTHIA_SHAPES[name] = (layers, *whole[1:])
    try:
        with tempfile.TemporaryDirectory() as scratch:
            base = model.load_base(setting_of(size, 1)[0].model, torch.device("cpu"), Path(scratch))
    finally:
        PYTHIA_SHAPES[name] = whole
    weights = sum(parameter.nbytes for parameter in base.model.parameters())
    probes = []
    for rank in ranks:
        cfg, pairs = setting_of(size, rank)
        shared, state, activations = capacity.bytes_needed(base, cfg, pairs, largest_step(cfg, pairs))
        assert shared == 0, "all is float32"
        probes.append(Probe(weights, state, activations))
    del base
    gc.collect()
    return probes


def setting_of(size: str, rank: int) -> tuple[Config, Pairs]:
    setting = Setting(f"pythia_{size}", 1, 300, 1, 1, "cpu", "float32")
    cfg = config(setting, "batched", 1, 0.1, 1e-3, 0)
    cfg.lora.rank = rank
    return cfg, synthetic_pairs(setting, PYTHIA_SHAPES[f"EleutherAI/pythia-{size}"][3])


def largest_step(cfg: Config, pairs: Pairs) -> list[int]:
    """The longest pairs, as many as a step has: what the planner measures with."""
    return sorted(range(len(pairs)), key=lambda row: -block_length(pairs, row))[: cfg.dpo.batch_size]


def continued(size: str, ranks: list[int]) -> list[Probe]:
    """Of all layers, for each rank, from one and two."""
    more = PYTHIA_SHAPES[f"EleutherAI/pythia-{size}"][0] - 1
    return [
        Probe(*(a + more * (b - a) for a, b in zip(one, two, strict=True)))
        for one, two in zip(probed(size, ranks, 1), probed(size, ranks, 2), strict=True)
    ]


def runs_at_once(probe: Probe, tokens: int, gib: float) -> tuple[int, str]:
    """How many runs the planner would train together on a GPU with so much memory, and what limits them."""
    free = (gib * GIB - probe.weights) * capacity.USABLE
    by_memory = int(free / (probe.state + capacity.BACKWARD * probe.activations))
    by_tokens = TOKENS // tokens
    return (by_memory, "memory") if by_memory < by_tokens else (by_tokens, "tokens")


def nano_record_bytes() -> int:
    """Files of a finished run without its weights, measured on one: the default run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "factdpo", "track=none", "dpo.epochs=1", f"out={folder}"]
        subprocess.run(command, check=True, capture_output=True)
        files = [path for path in Path(folder, "runs").rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files if path.suffix != ".safetensors")


def table(gib: float, tflops: float, ranks: list[int]) -> Table:
    record = nano_record_bytes()
    shown = Table(
        title=f"{RUNS} runs of the default length per size and rank; GPU of {gib:g} GiB, {tflops:g} TFLOP/s assumed"
    )
    heads = ["size", "rank", "base", "a run's state", "its activations", "at once", "limit", "GPU hours", "store"]
    for head in heads:
        shown.add_column(head, justify="right")
    for size in SIZES:
        for rank, probe in zip(ranks, continued(size, ranks), strict=True):
            cfg, pairs = setting_of(size, rank)
            tokens = sum(block_length(pairs, row) for row in largest_step(cfg, pairs))
            at_once, limit = runs_at_once(probe, tokens, gib)
            per_pair = sum(block_length(pairs, row) for row in range(len(pairs))) / len(pairs)
            work = work_of(SPLITS, Config().dpo, Config().eval)
            flop = RUNS * (work.training + work.scored) * per_pair * 2 * probe.weights / 4
            adapter = probe.state / capacity.MASTERS
            cells = [probe.weights / GIB, probe.state / GIB, probe.activations / GIB]
            hours, store = flop / (tflops * 1e12) / 3600, RUNS * (2 * adapter + record) / 2**40
            shown.add_row(
                size, str(rank), *(f"{cell:.3g} GiB" for cell in cells), str(at_once or "none"), limit,
                f"{hours:,.0f}", f"{store:.2f} TiB",
            )  # fmt: skip
    return shown


def check() -> int:
    """1 if what is continued from two layers is not what the planner finds on the whole model."""
    wrong = 0
    for size in SIZES[:4]:
        ranks = [8, 32]
        whole = probed(size, ranks, PYTHIA_SHAPES[f"EleutherAI/pythia-{size}"][0])
        for rank, a_whole, guess in zip(ranks, whole, continued(size, ranks), strict=True):
            apart = max(abs(a / b - 1) for a, b in zip(guess, a_whole, strict=True))
            wrong += apart > 1e-3
            print(f"{size}, rank {rank}: continued and whole differ by {apart:.1e}")
    return int(wrong > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--gib", type=float, default=80.0, help="memory of a GPU")
    parser.add_argument("--tflops", type=float, default=50.0, help="assumed speed of a GPU, FLOP/s / 1e12")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32, 128])
    args = parser.parse_args()
    if args.check:
        return check()
    Console(width=140).print(table(args.gib, args.tflops, args.ranks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
