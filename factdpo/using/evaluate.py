"""Trained weights scored on other facts: a run of kind `eval`, with an id, a folder and a record of its own."""

import dataclasses
import logging
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo import console, signals
from factdpo.config.folders import folder_name
from factdpo.config.schema import Config, ConfigError, SplitConfig, TrackConfig, to_dict
from factdpo.data.facts import Fact
from factdpo.data.files import data_name, has_own_splits
from factdpo.data.splits import splits_to_score
from factdpo.models import weights
from factdpo.models.devices import check_device
from factdpo.models.encoder import load_encoder
from factdpo.runs import summary
from factdpo.runs.answer import result_of
from factdpo.runs.attempt import Attempt, Measured
from factdpo.runs.clock import Clock
from factdpo.runs.identity import RunSpec, config_in_id, data_identity, is_chat, run_id, usable_facts
from factdpo.store import cache
from factdpo.store.history import Row
from factdpo.store.result import EVALUATION, read_result
from factdpo.store.run_lock import lock
from factdpo.using.finished import Finished, check_base

if TYPE_CHECKING:
    from torch import nn

    from factdpo.data.pairs import Pairs
    from factdpo.models.base import Base
    from factdpo.models.scoring import PairLogps

log = logging.getLogger("factdpo")

SCORING = ("batch_size", "generations", "max_new_tokens", "score")  # keys of `eval` that decide what an eval measures
OF_TRAINING = ("split", "lora", "method", "dpo", "seed")  # parts of a config that say how weights were trained
STAGES = ("facts", "pairs", "logps", "evaluate")  # whose versions are in an eval's id


@dataclass
class Subject:
    """Whose weights are scored: a run's, a PEFT adapter's of other origin, or with neither those of the model."""

    run: Finished | None = None
    adapter: Path | None = None

    @cached_property
    def files(self) -> dict[str, str]:
        """sha256 of the files of the weights; nothing for the model alone, whose identity has them."""
        folders = [self.run.folder / name for name in ("adapter", "model")] if self.run else [self.adapter]
        found = next((folder for folder in folders if folder is not None and folder.is_dir()), None)
        if found is None and self.adapter is not None:
            raise ConfigError(f"adapter={self.adapter}: no such folder; give one that PEFT's save_pretrained wrote")
        if self.adapter is not None and not (self.adapter / weights.ADAPTER).is_file():
            raise ConfigError(f"adapter={self.adapter}: {weights.ADAPTER} is missing; PEFT's save_pretrained writes it")
        return cache.folder_sha256(found) if found else {}

    @cached_property
    def facts(self) -> list[Fact]:
        """What a run was trained on, from its own record; nothing of other weights, of which nobody knows it."""
        if self.run is None:
            return []
        import pyarrow.parquet

        columns = ["model", "split", "fact", "prompt", "chosen", "rejected", "subject", "object", "relation"]
        rows = pyarrow.parquet.read_table(self.run.folder / "items.parquet", columns=columns).to_pylist()
        rows = [row for row in rows if row["model"] == "trained"]
        reverse = {row["fact"]: row["prompt"] for row in rows if row["split"] == "train_reversed"}
        return [
            Fact(
                row["fact"], row["prompt"], row["chosen"], row["rejected"], row["subject"], row["object"],
                row["relation"], reverse.get(row["fact"]),
            )
            for row in rows
            if row["split"] == "train"
        ]  # fmt: skip

    def record(self) -> Row:
        """`scored` of result.json."""
        adapter = str(self.adapter) if self.adapter else None
        return {"run": self.run.result["id"] if self.run else None, "adapter": adapter, "weights": self.files}


def look_up(cfg: Config, subject: Subject, kept: dict[str, Any]) -> RunSpec:
    """The evaluation that a validated config asks for; raises ConfigError if data, weights or device cannot be had.

    Only its model, data, eval, engine.device, track and out count.
    """
    split = SplitConfig(train=None if has_own_splits(cfg.data) else 1.0)
    job = "eval" if cfg.track.job_type == TrackConfig().job_type else cfg.track.job_type
    track = dataclasses.replace(cfg.track, job_type=job)
    cfg = dataclasses.replace(cfg, split=split, track=track, label=None, sweep=None)
    where = weights.locate(cfg.model)
    if subject.run is not None:
        check_base(subject.run)
    in_id = config_in_id(cfg)
    asked = {
        "kind": EVALUATION,
        "config": {
            "model": in_id["model"], "data": in_id["data"], "engine": {"device": in_id["engine"]["device"]},
            "eval": {key: value for key, value in in_id["eval"].items() if key in SCORING},
        },
        "data": data_identity(cfg.data),
        "model": where.identity,
        "scored": {"run": subject.run.result["id"] if subject.run else None, "weights": subject.files},
        "versions": {stage: cache.STAGE_VERSIONS[stage] for stage in STAGES},
    }  # fmt: skip
    whose = subject.run.result["name"] if subject.run else cfg.model.name if cfg.model.id is None else where.name
    name = f"{whose} {subject.adapter.name}" if subject.adapter else whose
    name = f"{name} on {data_name(cfg.data)}"
    folder = Path(cfg.out) / "evals" / f"{folder_name(name)}-{run_id(asked)}"
    spec = RunSpec(cfg, "none: only scored", asked, run_id(asked), name, folder, kind=EVALUATION)
    if spec.state() != "FINISHED":
        check_device(cfg.engine)
        weights.check_obtainable(cfg.model, where)
        if is_chat(cfg.data):
            weights.fetch_template(where)
        encoder = load_encoder(cfg.model, where, Path(cfg.out) / "cache")
        checked, _ = usable_facts(cfg, encoder, where.identity, kept)
        splits_to_score(checked.facts, subject.facts)
    return spec


def evaluate(cfg: Config, subject: Subject) -> RunSpec:
    """Score the weights on all facts of `cfg.data`, print the table, and return the run of kind eval.

    A stored answer is printed as it is. Raises ConfigError for what cannot be done, RunFailed if it did not finish.
    """
    kept: dict[str, Any] = {}
    spec = look_up(cfg, subject, kept)
    console.quiet_libraries()
    with signals.handled(), lock(spec.folder, wait=True):
        stored = read_result(spec.folder).result
        if stored is not None and stored["state"] == "FINISHED":
            summary.print_result(stored, spec.folder, console.console, stored=True)
            return spec
        clock, attempt = Clock(), Attempt(spec)
        attempt.stage = "score"
        attempt.start()
        outcome = attempt.complete(partial(_measure, spec, subject, kept), partial(clock.charge, [[attempt]]))
    if outcome.state == "PREEMPTED":
        raise signals.stop(outcome.exit_code - 128)
    summary.print_result(outcome.result, spec.folder, console.console)
    result_of(spec, outcome)
    return spec


def _measure(spec: RunSpec, subject: Subject, kept: dict[str, Any]) -> Measured:
    """The numbers of an evaluation, and its artefacts in its folder."""
    with console.stage("importing torch and transformers"):
        from factdpo.evaluation.baselines import baselines
        from factdpo.evaluation.warnings import warnings
        from factdpo.models.base import load_base
        from factdpo.models.devices import pick_device
        from factdpo.runs import record
        from factdpo.runs.rejected import with_rejected
        from factdpo.runs.stages import tokenised
    cfg = spec.cfg
    base = load_base(cfg.model, pick_device(cfg.engine.device), Path(cfg.out) / "cache")
    checked, notes = usable_facts(cfg, base.encoder, base.identity, kept)
    checked = with_rejected(checked, base, cfg)
    splits, more = splits_to_score(checked.facts, subject.facts)
    pairs = tokenised(splits, base, cfg)
    log.info("%d facts: %s", len(checked.facts), ", ".join(f"{name} {len(split)}" for name, split in pairs.items()))
    alone = subject.run is None and subject.adapter is None
    before = None if alone else _score(base.model, base, pairs, cfg)
    after = _score(_load(base, subject), base, pairs, cfg)
    rules = baselines(subject.facts, pairs)
    models = {label: model for label, model in (("base", before), ("trained", after)) if model is not None}
    logps = {label: model.logps for label, model in models.items()}
    refs = logps.get("base", {})
    items = record.item_rows(pairs, logps, refs or after.logps)
    generations = _generations(pairs, before, after)
    record.write_rows(spec.folder, items, generations)
    scores = {
        "device": str(base.device),
        "config": _config(cfg, subject),
        **record.scores_of(pairs, refs, after.logps, refs),
        "across": {label: record.across(pairs, model.logps, model.retention) for label, model in models.items()},
        "baselines": rules.accuracies, "coverage": rules.coverage,
        "rows": checked.record(), "adjusted": base.adjusted, "scored": subject.record(), "timing": {},
        "warnings": [*notes, *checked.warnings(), *more],
    }  # fmt: skip
    scores["warnings"] += warnings(scores["trained"], pairs)
    return Measured(scores, items, generations)


@dataclass
class _Scored:
    """What one model scores: log-probs and prompts with their continuations by split, and retention."""

    logps: "dict[str, PairLogps]"
    said: dict[str, list[str]]
    retention: float


def _score(model: "nn.Module", base: "Base", pairs: "dict[str, Pairs]", cfg: Config) -> _Scored:
    from factdpo.evaluation import generation
    from factdpo.models.scoring import pair_logps

    total, size = sum(map(len, pairs.values())), cfg.eval.batch_size
    with console.stage(f"scoring {total} pairs", total) as advance:
        logps = {name: pair_logps(model, of_split, size, advance) for name, of_split in pairs.items()}
    prompts = {name: of_split.prompt_ids[: cfg.eval.generations] for name, of_split in pairs.items()}
    said = {name: generation.continuations(model, base, ids, cfg.eval.max_new_tokens) for name, ids in prompts.items()}
    return _Scored(logps, said, generation.retention_nats_per_token(model, base)[0])


def _load(base: "Base", subject: Subject) -> "nn.Module":
    from factdpo.training import adapters

    if subject.run is not None:
        return adapters.load_trained(base, subject.run.folder)
    return adapters.load_adapter(base, subject.adapter) if subject.adapter else base.model


def _generations(pairs: "dict[str, Pairs]", before: _Scored | None, after: _Scored) -> list[Row]:
    """The continuations of both models, by prompt."""
    return [
        {
            "prompt": fact.prompt, "split": split, "fact": fact.chosen,
            "base": before.said[split][number] if before else None, "trained": text,
        }
        for split, texts in after.said.items()
        for number, (fact, text) in enumerate(zip(pairs[split].facts, texts, strict=False))
    ]  # fmt: skip


def _config(cfg: Config, subject: Subject) -> Row:
    """The config of an evaluation: of a run's weights with how they were trained, of others without."""
    config = to_dict(cfg)
    if subject.run is None:
        config = {key: value for key, value in config.items() if key not in OF_TRAINING}
        weights = f"adapter {subject.adapter}" if subject.adapter else "the model's own"
        return config | {"engine": {"device": cfg.engine.device}, "weights": weights}
    return config | {key: to_dict(getattr(subject.run.cfg, key)) for key in OF_TRAINING}
