"""How fast a sweep of LoRA-DPO runs trains on this machine: TRL in turn, TRL tuned, and factdpo's batched engine.

    python benchmarks/sweep_speed.py steady --shape pythia_14m --runs 8     an optimizer step, once training runs
    python benchmarks/sweep_speed.py end-to-end --runs 16 --sample 4        the whole sweep, as it is typed
    python benchmarks/sweep_speed.py workers --runs 16                      the whole sweep by one process and by two
    python benchmarks/sweep_speed.py crowd --shape pythia_160m              a step of TRL, by 16 processes on one GPU
    python benchmarks/sweep_speed.py scaling --over runs                    cost against runs, size or facts
    python benchmarks/sweep_speed.py profile --shape pythia_160m --runs 4   a step: ops, host reads, share of the roof

The sweep is always betas x rates x seeds. Each way is measured in a process of its own, and no ratio is printed unless
the results agree: losses step by step (steady, scaling), accuracies and log-probs of all runs (end-to-end). All but
end-to-end use Pythia's shapes with random weights, and random token ids in prompts as long as Pythia's tokenizer makes
ours: speed depends on neither. `--json FILE` keeps everything. On a shared machine pin it to a core and repeat it:
`OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/sweep_speed.py steady --repeats 3`.
"""

import argparse
import collections
import gc
import importlib
import itertools
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch.profiler import profile as profiler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from factdpo.config.folders import conf_folder
from factdpo.config.schema import Config
from factdpo.config.validate import from_dict
from factdpo.console import quiet_libraries
from factdpo.data.facts import Fact
from factdpo.data.pairs import Pairs
from factdpo.models import base as model
from factdpo.models.devices import pick_device
from factdpo.models.scoring import PairLogps, pair_logps
from factdpo.store import provenance
from factdpo.training import adapters
from factdpo.training.batched import cohort, engine

Row = dict[str, Any]

# trl-defaults: DPOConfig's own, so bf16 autocast, gradient checkpointing, reference on the fly (adapter switched off).
# trl-fp32, trl-bf16: TRL tuned: no checkpointing, reference precomputed; the faster of them is "TRL tuned".
# batched-bf16: dpo.bf16=true, the frozen layers multiply in bfloat16. batched-launched: without CUDA graphs.
USUAL = ["trl-defaults", "trl-fp32", "trl-bf16", "batched", "batched-bf16"]
WAYS = (*USUAL, "batched-launched")
FLOAT32 = ("trl-fp32", "batched", "batched-launched")
TRUTH = "trl-fp32"  # what the others must agree with
EXACT_TOLERANCE, BF16_TOLERANCE = 1e-4, 1e-2  # of a step's loss, nats; bfloat16 rounds each logit to 2^-8 of it
# End to end, on any split: accuracy; mean log-probs in nats, of the median run and of any. Hundreds of steps amplify
# rounding in some runs: TRL differs from itself under ATEN_CPU_CAPABILITY=avx2 by 0.017 and 0.34 nats (nano, beta 0.05,
# rate 1e-3, seed 0: LOG.md, 2026-11-25). For any run it is twice that.
ACCURACY_TOLERANCE, MEDIAN_NATS_TOLERANCE, NATS_TOLERANCE = 0.034, 0.001, 0.68
WHOLE = {"commands": "a command per run", "process": "-m, basic launcher", "batched": "-m, batched"}  # end to end
WARMUP, WINDOWS = 2, 5  # steps of every training before the clock starts; parts that it times
BATCH, RANK = 8, 16  # pairs a step and LoRA rank, in all but end-to-end
BETAS, RATES, MOST_RUNS = (0.1, 0.2, 0.05, 0.5), (1e-3, 5e-4), 64
CHEAP_WAYS = ["trl-fp32", "batched"]  # of scaling
VALUES = {
    "runs": ["1", "2", "4", "8", "16", "32", "64"],
    "size": ["pythia_14m", "pythia_31m", "pythia_70m", "pythia_160m", "pythia_410m"],
    "facts": ["75", "150", "300", "600"],
}


@dataclass(frozen=True)
class Setting:
    """A sweep to be measured."""

    shape: str  # an option of conf/model
    runs: int
    facts: int
    steps: int  # that are timed
    answer_tokens: int
    device: str
    dtype: str  # of the base's weights


def grid(runs: int) -> dict[str, list[Any]]:
    """The sweep: up to 4 betas, 2 rates, and as many seeds as it takes."""
    if runs not in (1, 2, 3, 4, 6) and (runs % 8 or not 0 < runs <= MOST_RUNS):
        sys.exit(f"--runs {runs}: must be 1, 2, 3, 4, 6 or a multiple of 8 up to {MOST_RUNS}")
    rates, seeds = RATES[: -(-runs // 4)], range(-(-runs // 8))
    return {"dpo.beta": list(BETAS[: runs // len(rates)]), "dpo.learning_rate": list(rates), "seed": list(seeds)}


# ------------------------------------------------------------------------------------------------- one measured sweep


class Clock:
    """Times the steps after the warm-up; whoever trains calls it after each step.

    Each training is timed in windows, and its median window counts: a machine that stalls must not decide a ratio.
    """

    def __init__(self, setting: Setting):
        self.last = self.total = WARMUP + setting.steps  # that is timed; of the training
        self.edges = sorted({WARMUP + setting.steps * i // WINDOWS for i in range(WINDOWS + 1)})
        self.marks: list[list[float]] = []  # of each training that came

    def __call__(self, step: int) -> None:
        if step in self.edges:
            self.marks += [[]] if step == WARMUP else []
            self.marks[-1].append(synchronised_time())

    def found(self) -> Row:
        """Seconds per step, window by window; and their medians, summed over the trainings that came in turn."""
        steps = [end - start for start, end in itertools.pairwise(self.edges)]
        windows = [[(b - a) / n for (a, b), n in zip(itertools.pairwise(m), steps, strict=True)] for m in self.marks]
        return {"step_seconds": sum(map(median, windows)), "window_seconds": windows}


def synchronised_time() -> float:
    """Now, with all that the device was told done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(way: str, setting: Setting, sample: int, watch: type[Clock] = Clock) -> Row:
    """Train the sweep in one way; TRL trains `sample` of its runs, and the seconds of all are scaled from them."""
    with_trl = way.startswith("trl")
    if with_trl:
        importlib.import_module("factdpo.training.trl_engine")  # seconds, which are not what is measured here
    clock, device = watch(setting), pick_device(setting.device)
    cfgs = [config(setting, way, clock.total, *point) for point in itertools.product(*grid(setting.runs).values())]
    made = range(0, setting.runs, -(-setting.runs // min(sample, setting.runs)) if with_trl else 1)
    with tempfile.TemporaryDirectory() as scratch:
        base = model.load_base(cfgs[0].model, device, Path(scratch))
        pairs = synthetic_pairs(setting, base.model.config.vocab_size)
        times = [synchronised_time()]
        refs = pair_logps(base.model, pairs, BATCH)  # no more memory than training takes
        times.append(synchronised_time())
        if with_trl:
            del base  # each run loads its own
            losses, together = [train_with_trl(way, pairs, refs, cfgs[run], scratch, clock) for run in made], 1
        else:
            if way == "batched-launched" or watch is not Clock:  # a profile counts operations, and not a replay
                cohort.StepGraphs = lambda *_: None  # type: ignore[assignment,misc]
            losses, together = train_batched(base, pairs, refs, cfgs, Path(scratch), clock)
        times.append(synchronised_time())
    found = clock.found()
    return found | {
        "way": way,
        "trained_together": together,
        "run_step_seconds": found["step_seconds"] / len(made),
        "step_seconds": found["step_seconds"] / len(made) * setting.runs,
        "reference_seconds": times[1] - times[0],
        "fit_seconds": (times[2] - times[1]) / len(made) * setting.runs,  # the trainings, set-up and warm-up included
        "peak_gib": adapters.peak_gib(device),
        "losses": dict(zip(made, losses, strict=True)),
    }


def in_a_fresh_process(way: str, *rest: Any) -> Row:
    """`measure`, with nothing of another way in its memory."""
    start = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=quiet_libraries) as pool:
        row = pool.submit(measure, way, *rest).result()
    print(f"{way}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return row


def config(setting: Setting, way: str, steps: int, beta: float, rate: float, seed: int) -> Config:
    """The config of one run of the sweep."""
    shape = yaml.safe_load((conf_folder() / "model" / f"{setting.shape}.yaml").read_text(encoding="utf-8")) or {}
    dpo = {"beta": beta, "learning_rate": rate, "epochs": None, "max_steps": steps, "batch_size": BATCH}
    return from_dict(
        {
            "model": shape | {"random_init": True, "dtype": setting.dtype},
            "lora": {"rank": RANK, "alpha": 2.0 * RANK},
            "dpo": dpo | {"bf16": way == "batched-bf16"},
            "engine": {"name": "batched" if way.startswith("batched") else "trl", "device": setting.device},
            "eval": {"every": "never"},
            "seed": seed,
        }
    )


def synthetic_pairs(setting: Setting, vocabulary: int) -> Pairs:
    """Pairs of random ids. Prompts have 6 to 16 tokens, 11.3 on average, as our 861 facts in Pythia's tokens."""
    draw, answers = random.Random(0), ([1] * setting.answer_tokens, [2] * setting.answer_tokens)
    lengths = [min(16, max(6, round(draw.gauss(11.3, 1.9)))) for _ in range(setting.facts)]
    prompts = [[draw.randrange(vocabulary) for _ in range(length)] for length in lengths]
    chosen, rejected = map(list, zip(*(draw.sample(answers, 2) for _ in prompts), strict=True))
    return Pairs([Fact(i, "", "", "") for i in range(setting.facts)], prompts, chosen, rejected, pad_id=0)


def train_batched(
    base: model.Base, pairs: Pairs, refs: PairLogps, cfgs: list[Config], folder: Path, clock: Clock
) -> tuple[list[list[float]], int]:
    """Each run's losses, step by step, and how many runs trained together."""
    losses: list[list[float]] = [[] for _ in cfgs]
    members = [
        engine.Member(
            str(run), cfg, pairs, refs, {}, lambda _: {},
            lambda *rows, mine=mine: mine.extend(row["loss"] for row in rows),
        )
        for run, (cfg, mine) in enumerate(zip(cfgs, losses, strict=True))
    ]  # fmt: skip
    with telling(clock):
        endings = [ending for group in engine.fit_many(base, members, folder) for _, ending in group]
    if failed := [ending for ending in endings if isinstance(ending, Exception)]:
        raise failed[0]
    return losses, endings[0].facts["trained_together"]  # type: ignore[union-attr]


@contextmanager
def telling(clock: Clock) -> Iterator[None]:
    """The batched engine calls the clock after each step."""
    original = cohort.Cohort.step

    def step(self: cohort.Cohort) -> None:
        original(self)
        clock(self.steps)

    cohort.Cohort.step = step
    try:
        yield
    finally:
        cohort.Cohort.step = original


def train_with_trl(way: str, pairs: Pairs, refs: PairLogps, cfg: Config, scratch: str, clock: Clock) -> list[float]:
    """One run's losses, step by step; what neither the sweep nor the way says is TRL's default."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    from factdpo.training.trl_trainers import _DPOArguments, _PairsTrainer

    gc.collect()  # the base of the run before
    base = model.load_base(cfg.model, pick_device(cfg.engine.device), Path(scratch))
    columns = {"prompt_ids": pairs.prompt_ids, "chosen_ids": pairs.chosen_ids, "rejected_ids": pairs.rejected_ids}
    tuned: Row = {}
    if way != "trl-defaults":
        columns |= {"ref_chosen_logps": refs.chosen.tolist(), "ref_rejected_logps": refs.rejected.tolist()}
        tuned = {"bf16": way == "trl-bf16", "gradient_checkpointing": False, "precompute_ref_log_probs": True}
    arguments = _DPOArguments(
        output_dir=scratch, beta=cfg.dpo.beta, learning_rate=cfg.dpo.learning_rate, max_steps=cfg.dpo.max_steps or 0,
        per_device_train_batch_size=BATCH, seed=cfg.dpo.seed, use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=base.device.type == "cuda", report_to=[], save_strategy="no", disable_tqdm=True, **tuned,
    )  # fmt: skip
    losses: list[torch.Tensor] = []

    class Trainer(_PairsTrainer):
        def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
            losses.append(super().training_step(*given, **named).detach())
            return losses[-1]

    class Tell(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            clock(state.global_step)

    trainer = Trainer(
        model=base.model, args=arguments, train_dataset=Dataset.from_dict(columns), processing_class=base.tokenizer,
        peft_config=adapters.lora_config(cfg, base), callbacks=[Tell()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return torch.stack(losses).tolist()


# ------------------------------------------------------------------------------------------------ steady and scaling


def steady(setting: Setting, ways: list[str], sample: int, repeats: int) -> list[Row]:
    """Each way's fastest measurement, compared; the ways take turns."""
    rounds = [[in_a_fresh_process(way, setting, sample) for way in ways] for _ in range(repeats)]
    return compared([min(tries, key=lambda row: row["step_seconds"]) for tries in zip(*rounds, strict=True)])


def compared(rows: list[Row]) -> list[Row]:
    """The rows with how far their losses are from TRUTH's; with ratios to TRL only if all agree with it."""
    truth = next((row["losses"] for row in rows if row["way"] == TRUTH), {})
    for row in rows:
        runs = sorted(truth.keys() & row["losses"].keys())
        gaps = [abs(a - b) for run in runs for a, b in zip(truth[run], row["losses"][run], strict=True)]
        row["tolerance"] = EXACT_TOLERANCE if row["way"] in FLOAT32 else BF16_TOLERANCE
        row["apart"], row["runs_compared"] = max(gaps, default=float("nan")), len(runs)
        row["agrees"] = all(gap <= row["tolerance"] for gap in gaps) and bool(gaps)  # NaN agrees with nothing
    if all(row["agrees"] for row in rows):
        took = {row["way"]: row["run_step_seconds"] for row in rows}
        tuned = min(seconds for way, seconds in took.items() if way in ("trl-fp32", "trl-bf16"))
        for row in rows:
            row["times_tuned"] = tuned / row["run_step_seconds"]
            if "trl-defaults" in took:
                row["times_defaults"] = took["trl-defaults"] / row["run_step_seconds"]
    return rows


def scaling(setting: Setting, over: str, values: list[str], ways: list[str], repeats: int) -> list[Row]:
    """`steady` at each value, with one run of TRL's."""
    rows: list[Row] = []
    for value in values:
        if over == "runs":
            at = replace(setting, runs=int(value))
        elif over == "size":
            at = replace(setting, shape=value)
        else:  # one epoch, however long
            at = replace(setting, facts=int(value), steps=max(1, -(-int(value) // BATCH) - WARMUP))
        rows += [{over: value, **row} for row in steady(at, ways, 1, repeats)]
    return rows


def crowd(setting: Setting, ways: list[str], processes: int) -> list[Row]:
    """One run of each way by each of `processes` processes at once, as who has many cores and one GPU may try."""
    rows = []
    one, context = replace(setting, runs=1), multiprocessing.get_context("spawn")
    for way in ways:
        with ProcessPoolExecutor(processes, mp_context=context, initializer=quiet_libraries) as pool:
            found = [made.result() for made in [pool.submit(measure, way, one, 1) for _ in range(processes)]]
        took = [row["run_step_seconds"] for row in found]
        rows.append(
            {"way": way, "processes": processes, "step_seconds": took, "run_step_seconds": 1 / sum(1 / s for s in took)}
        )
    return rows


CROWD_COLUMNS: dict[str, Callable[[Row], Any]] = {
    "way": lambda row: row["way"],
    "processes at once": lambda row: row["processes"],
    "a step of each, ms": lambda row: f"{1e3 * median(row['step_seconds']):.1f}",
    "a run and step, ms": lambda row: f"{1e3 * row['run_step_seconds']:.2f}",
}


def steady_columns(rows: list[Row]) -> dict[str, Callable[[Row], Any]]:
    over = next((over for over in VALUES if over in rows[0]), None)
    return ({over: lambda row: row[over]} if over else {}) | {
        "way": lambda row: row["way"],
        "all runs, ms": lambda row: f"{1e3 * row['step_seconds']:.1f}",
        "one run, ms": lambda row: f"{1e3 * row['run_step_seconds']:.2f}",
        "x TRL tuned": lambda row: ratio(row, "times_tuned"),
        "x TRL defaults": lambda row: ratio(row, "times_defaults"),
        "training, s": lambda row: f"{row['fit_seconds']:.1f}",
        "reference, s": lambda row: "-" if row["way"] == "trl-defaults" else f"{row['reference_seconds']:.2f}",
        "peak GiB": lambda row: f"{row['peak_gib']:.2f}",
        "together": lambda row: row["trained_together"],
        "losses apart": lambda row: f"{row['apart']:.0e} of {row['tolerance']:.0e}",
        "agrees": lambda row: "yes" if row["agrees"] else "NO",
    }


# -------------------------------------------------------------------------------------------------------- end to end


def end_to_end(runs: int, sample: int, ways: list[str], at_once: bool, overrides: list[str]) -> list[Row]:
    """The whole sweep from the command line; of the separate commands only `sample` are really run.

    With `at_once` all ways start together, each with a core to itself: what slows the machine slows them alike, until
    the first has ended.
    """
    cores = sorted(os.sched_getaffinity(0)) if at_once else [None] * len(ways)
    if len(cores) < len(ways):
        sys.exit(f"--at-once: {len(ways)} ways and {len(cores)} cores; leave some out with --ways")
    axes = grid(runs)
    points = [[f"{key}={value}" for key, value in zip(axes, p, strict=True)] for p in itertools.product(*axes.values())]
    sweep = [f"{key}={','.join(map(str, values))}" for key, values in axes.items()]
    commands = {
        "commands": [["engine=trl", *point] for point in points[:: -(-runs // min(sample, runs))]],
        "process": [["-m", "hydra/launcher=basic", "engine=trl", *sweep]],
        "batched": [["-m", "hydra/launcher=batched", "engine=batched", *sweep]],
    }
    with ThreadPoolExecutor(len(ways) if at_once else 1) as pool:
        made = [
            pool.submit(commanded, way, commands[way], runs, overrides, core)
            for core, way in zip(cores, ways, strict=False)
        ]
        rows = [row.result() for row in made]
    truth = max((row for row in rows if row["way"] != "batched"), key=lambda row: row["runs_made"], default=rows[0])
    for row in rows:
        shared = [point for point in row["results"] if point in truth["results"]]
        gaps = [gap(row["results"][point], truth["results"][point]) for point in shared]
        accuracy, nats = zip(*gaps, strict=True)
        row |= {"accuracy_apart": max(accuracy), "median_nats_apart": median(nats), "nats_apart": max(nats)}
        close = row["accuracy_apart"] <= ACCURACY_TOLERANCE and row["median_nats_apart"] <= MEDIAN_NATS_TOLERANCE
        row["agrees"] = close and row["nats_apart"] <= NATS_TOLERANCE
    if all(row["agrees"] for row in rows):
        seconds = {row["way"]: row["wall_seconds"] for row in rows}
        for row in rows:
            row |= {f"times_{way}": seconds[way] / row["wall_seconds"] for way in seconds}
    return rows


def by_workers(runs: int, repeats: int, overrides: list[str]) -> list[Row]:
    """The whole sweep from the command line by one process and by two workers, in turn; the fastest of each counts."""
    sweep = [f"{key}={','.join(map(str, values))}" for key, values in grid(runs).items()]
    ways = {"one process": [], "two workers": ["engine.workers=2"]}
    made = [
        {way: commanded(way, [["-m", *sweep, *more]], runs, overrides) for way, more in ways.items()}
        for _ in range(repeats)
    ]
    rows = [min((each[way] for each in made), key=lambda row: row["wall_seconds"]) for way in ways]
    for row in rows:
        gaps = [gap(result, rows[0]["results"][point]) for point, result in row["results"].items()]
        row |= {"accuracy_apart": max(a for a, _ in gaps), "nats_apart": max(nats for _, nats in gaps)}
        row["agrees"] = row["accuracy_apart"] <= ACCURACY_TOLERANCE and row["nats_apart"] <= NATS_TOLERANCE
        row["all_seconds"] = [each[row["way"]]["wall_seconds"] for each in made]
        if row["agrees"]:
            row["times_one_process"] = rows[0]["wall_seconds"] / row["wall_seconds"]
    return rows


WORKERS_COLUMNS: dict[str, Callable[[Row], Any]] = {
    "factdpo": lambda row: row["way"],
    "all, s": lambda row: f"{row['wall_seconds']:.1f}",
    "each time, s": lambda row: " ".join(f"{seconds:.1f}" for seconds in row["all_seconds"]),
    "x one process": lambda row: ratio(row, "times_one_process"),
    "accuracy apart": lambda row: f"{row['accuracy_apart']:.3f}",
    "nats apart": lambda row: f"{row['nats_apart']:.0e}",
    "agrees": lambda row: "yes" if row["agrees"] else "NO",
}


def commanded(way: str, commands: list[list[str]], runs: int, overrides: list[str], core: int | None = None) -> Row:
    """Wall time of these commands in turn, in one empty folder; scaled to all runs; and every run's scores."""
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for command in commands:
            factdpo = [*pinned, sys.executable, "-m", "factdpo"]
            whole = [*factdpo, *command, "track=none", f"out={folder}/outputs", *overrides]
            done = subprocess.run(whole, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{' '.join(whole)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        wall = time.perf_counter() - start
        results = [json.loads(path.read_text()) for path in Path(folder).glob("outputs/**/result.json")]
    print(f"{way}: {wall:.0f} s", file=sys.stderr)
    training = sum(r["timing"]["train_seconds"] for r in results)  # shares of their batches
    return {
        "way": way,
        "runs_made": len(results),
        "wall_seconds": wall / len(results) * runs,
        "train_seconds": training / len(results) * runs,
        "peak_gib": max(r["training"]["peak_gib"] for r in results),
        "results": dict(map(scores, results)),
    }


def scores(result: Row) -> tuple[str, Row]:
    """Which run of the sweep it is, and what every split's scores were."""
    dpo, keys = result["config"]["dpo"], ("accuracy", "chosen_logp_nats", "rejected_logp_nats")
    point = f"beta {dpo['beta']}, rate {dpo['learning_rate']}, seed {dpo['seed']}"
    return point, {split: {key: found[key] for key in keys} for split, found in result["trained"].items()}


def gap(a: Row, b: Row) -> tuple[float, float]:
    """The largest difference of two runs over their splits: of accuracy, and of mean log-probs in nats."""
    apart = {key: max(abs(a[split][key] - b[split][key]) for split in a) for key in a["train"]}
    return apart["accuracy"], max(apart["chosen_logp_nats"], apart["rejected_logp_nats"])


def end_to_end_columns(runs: int) -> dict[str, Callable[[Row], Any]]:
    return {
        "factdpo": lambda row: WHOLE[row["way"]],
        "runs made": lambda row: f"{row['runs_made']}" + ", then scaled" * (row["runs_made"] < runs),
        "all, s": lambda row: f"{row['wall_seconds']:.1f}",
        "one, s": lambda row: f"{row['wall_seconds'] / runs:.2f}",
        "x commands": lambda row: ratio(row, "times_commands"),
        "x one process": lambda row: ratio(row, "times_process"),
        "training, s": lambda row: f"{row['train_seconds']:.1f}",
        "all else, s": lambda row: f"{row['wall_seconds'] - row['train_seconds']:.1f}",
        "peak GiB": lambda row: f"{row['peak_gib']:.2f}",
        "accuracy apart": lambda row: f"{row['accuracy_apart']:.3f} of {ACCURACY_TOLERANCE}",
        "nats apart: median run": lambda row: f"{row['median_nats_apart']:.0e} of {MEDIAN_NATS_TOLERANCE:.0e}",
        "any run": lambda row: f"{row['nats_apart']:.0e} of {NATS_TOLERANCE:.0e}",
        "agrees": lambda row: "yes" if row["agrees"] else "NO",
    }


# ----------------------------------------------------------------------------------------------------------- profile

HOST_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}  # the host waits for what was computed


class Probe(Clock):
    """A clock that, after the timed steps, has one step profiled and the ops of another counted."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.total = self.last + 2

    def __call__(self, step: int) -> None:
        super().__call__(step)
        if step == self.last:
            self.profiler = profiler()
            self.profiler.start()
        elif step == self.last + 1:
            synchronised_time()
            self.profiler.stop()
            self.counting = counted()
            self.ops, self.flops = self.counting.__enter__()
        elif step == self.last + 2:
            self.counting.__exit__(None, None, None)

    def found(self) -> Row:
        events = self.profiler.key_averages()
        gpu = any(event.self_device_time_total for event in events)
        took = {e.key: ((e.self_device_time_total if gpu else e.self_cpu_time_total) / 1e3, e.count) for e in events}
        return super().found() | {
            "ops": sum(self.ops.values()),
            "host_reads": sum(self.ops[name] for name in HOST_READS),
            "gpu_waits": sum(event.count for event in events if "Synchronize" in event.key),
            "flops": self.flops.get_total_flops(),
            "ms_and_calls_by_op": dict(sorted(took.items(), key=lambda item: -item[1][0])),
        }


@contextmanager
def counted() -> Iterator[tuple[collections.Counter[str], Any]]:
    """Within it: ops by name, views included, and the FLOPs of matrix products."""
    ops: collections.Counter[str] = collections.Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            ops[func.name().split(".")[0]] += 1
            return func(*args, **kwargs or {})

    in_place = {torch.ops.aten.baddbmm_: lambda _, a, b, **named: 2 * a[0] * a[1] * a[2] * b[2]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as flops, Count():
        yield ops, flops


def roof(device: str, dtype: str) -> float:
    """FLOP/s of a large square matmul, the best of five."""
    n = 8192 if device.startswith("cuda") else 2048
    a, b = torch.randn(2, n, n, device=device).to(getattr(torch, dtype))
    times = []
    for _ in range(6):
        start = synchronised_time()
        torch.mm(a, b)
        times.append(synchronised_time() - start)
    return 2 * n**3 / min(times[1:])


def profile(setting: Setting, ways: list[str]) -> list[Row]:
    """A step of each way, taken apart: of one run with TRL, of all that train together in the batched engine."""
    rows = [in_a_fresh_process(way, setting, 1, Probe) for way in ways]
    for row in rows:
        bf16 = row["way"] not in FLOAT32 or setting.dtype == "bfloat16"
        row["roof_flops"] = roof(str(pick_device(setting.device)), "bfloat16" if bf16 else "float32")
        row["taken_seconds"] = row["run_step_seconds"] * row["trained_together"]
    return rows


PROFILE_COLUMNS: dict[str, Callable[[Row], Any]] = {
    "way": lambda row: row["way"],
    "runs": lambda row: row["trained_together"],
    "ms": lambda row: f"{1e3 * row['taken_seconds']:.1f}",
    "ops": lambda row: row["ops"],
    "host reads": lambda row: row["host_reads"],
    "GPU waits": lambda row: row["gpu_waits"],
    "GFLOP": lambda row: f"{row['flops'] / 1e9:.3f}",
    "per pair": lambda row: f"{row['flops'] / row['trained_together'] / BATCH / 1e9:.4f}",
    "matmul roof, GFLOP/s": lambda row: f"{row['roof_flops'] / 1e9:.0f}",
    "share of it": lambda row: f"{row['flops'] / row['taken_seconds'] / row['roof_flops']:.0%}",
}
OP_COLUMNS: dict[str, Callable[[Any], Any]] = {
    "op": lambda item: item[0][:80],
    "ms": lambda item: f"{item[1][0]:.2f}",
    "calls": lambda item: item[1][1],
}


# -------------------------------------------------------------------------------------------------- the command line


def table(title: str, rows: Any, columns: dict[str, Callable[[Any], Any]]) -> Table:
    shown = Table(*columns, title=title, title_justify="left")
    for row in rows:
        shown.add_row(*(str(cell(row)) for cell in columns.values()))
    return shown


def ratio(row: Row, name: str) -> str:
    return f"{row[name]:.1f}" if name in row else "-"


def machine() -> Row:
    """Where and when this was measured."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"^model name\s*: (.*)$", info.read_text() if info.exists() else "", re.MULTILINE)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = provenance.versions()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown",
        "CPU": f"{cpu[1] if cpu else 'unknown'}, {cores} of {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    } | {package: versions[package] for package in ("python", "torch", "transformers", "trl", "peft")}


def parse(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared, sized, repeated = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    shared.add_argument("--runs", type=int, default=8, help="of the sweep: 1, 2, 3, 4, 6, 8, 16, 24 ... 64")
    shared.add_argument("--json", type=Path, metavar="FILE", help="where to keep everything that was measured")
    sized.add_argument("--shape", default="pythia_14m", help="an option of conf/model: nano, pythia_14m, ...")
    sized.add_argument("--facts", type=int, default=300, help="pairs that are trained on")
    sized.add_argument("--steps", type=int, default=20, help=f"that are timed, after {WARMUP} of warm-up")
    sized.add_argument("--answer-tokens", type=int, default=1, help="of every answer")
    sized.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    sized.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base's weights")
    sized.add_argument("--ways", nargs="+", choices=WAYS, help=f"what to measure; without {TRUTH} nothing is compared")
    repeated.add_argument("--repeats", type=int, default=1, help="measurements of each way; the fastest counts")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("steady", parents=[shared, sized, repeated])
    one.add_argument("--sample", type=int, default=2, help="runs that TRL really trains; each costs the same")
    two = commands.add_parser("end-to-end", parents=[shared])
    two.add_argument("--sample", type=int, default=MOST_RUNS, help="separate commands that are really run")
    two.add_argument("--ways", nargs="+", choices=WHOLE, default=list(WHOLE), help="what to measure")
    two.add_argument("--at-once", action="store_true", help="all ways together, each pinned to a core of its own")
    two.add_argument("overrides", nargs="*", help="for every run: split.train=40 dpo.epochs=1")
    whole = commands.add_parser("workers", parents=[shared, repeated])
    whole.add_argument("overrides", nargs="*", help="for every run: split.train=40 dpo.epochs=1")
    three = commands.add_parser("scaling", parents=[shared, sized, repeated])
    three.add_argument("--over", choices=list(VALUES), required=True)
    three.add_argument("--values", nargs="+", help=f"by default {VALUES}")
    commands.add_parser("profile", parents=[shared, sized])
    many = commands.add_parser("crowd", parents=[shared, sized])
    many.add_argument("--processes", type=int, default=16, help="that train at once; give each a thread")
    return parser.parse_args(given)


def measured(args: argparse.Namespace) -> tuple[list[Row], list[Table]]:
    """What the command found, and how it is shown."""
    if args.command == "end-to-end":
        rows = end_to_end(args.runs, args.sample, args.ways, args.at_once, args.overrides)
        title = f"{args.runs} runs, start-up included; the defaults (nano), but {args.overrides or 'nothing'}"
        return rows, [table(title, rows, end_to_end_columns(args.runs))]
    if args.command == "workers":
        rows = by_workers(args.runs, args.repeats, args.overrides)
        title = f"{args.runs} runs, start-up included; the defaults (nano), but {args.overrides or 'nothing'}"
        return rows, [table(title, rows, WORKERS_COLUMNS)]
    setting = Setting(**{field.name: getattr(args, field.name) for field in fields(Setting)})
    title = f"{setting}: random weights and ids, {BATCH} pairs a step, rank {RANK}"
    if args.command == "profile":
        rows = profile(setting, args.ways or USUAL)
        ops = [table(row["way"], list(row["ms_and_calls_by_op"].items())[:14], OP_COLUMNS) for row in rows]
        return rows, [table(title, rows, PROFILE_COLUMNS), *ops]
    if args.command == "crowd":
        rows = crowd(setting, args.ways or ["trl-fp32", "trl-bf16"], args.processes)
        return rows, [table(title, rows, CROWD_COLUMNS)]
    if args.command == "steady":
        rows = steady(setting, args.ways or USUAL, args.sample, args.repeats)
    else:
        rows = scaling(setting, args.over, args.values or VALUES[args.over], args.ways or CHEAP_WAYS, args.repeats)
    return rows, [table(title, rows, steady_columns(rows))]


def main(given: list[str] | None = None) -> int:
    """Measures and prints; 1 if the results do not agree."""
    args = parse(given)
    grid(args.runs)  # refuses what is no sweep
    quiet_libraries()  # and with it, through the environment, the processes that we start
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own words, in the processes that we start
    where = machine()
    rows, tables = measured(args)
    console = Console(width=160)
    console.print("  ".join(f"{key} {value}" for key, value in where.items()), *tables, sep="\n", highlight=False)
    if args.json:
        args.json.write_text(json.dumps({"machine": where, "asked": vars(args), "rows": rows}, indent=1, default=str))
    return 0 if all(row.get("agrees", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
