"""The stages of a run before its training, kept in the cache: facts, splits, pairs, the base's own scores."""

import copy
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from factdpo.config.schema import KEYS, Boundary, Config, DataConfig, Keep, MethodConfig, MethodName, to_dict
from factdpo.data.files import CHARACTERS
from factdpo.data.load import sides
from factdpo.data.pairs import Pairs, text_rows, tokenise
from factdpo.data.splits import Splits, make_splits
from factdpo.data.tokens import Checked
from factdpo.evaluation import metrics
from factdpo.evaluation.baselines import Baselines, baselines
from factdpo.models.base import Base
from factdpo.models.scoring import PairLogps, reference_logps
from factdpo.runs.identity import config_in_id, data_identity, retained_text, usable_facts
from factdpo.runs.rejected import with_rejected
from factdpo.runs.session import Session
from factdpo.store import cache
from factdpo.store.history import Row
from factdpo.store.result import AS_TRAINED
from factdpo.training import adapters
from factdpo.training.schedule import epochs_done, sft_steps

# Continued by the base and the trained model, whichever of our facts are drawn.
FIXED_PROMPTS = ("Harry Potter is Ron Weasley's", "Lord Voldemort is Harry Potter's", "Severus Snape is")
CURVES = ("accuracy", "balanced_accuracy", "margin_nats", "chosen_logp_nats", "rejected_logp_nats", "p_other")


@dataclass(eq=False)
class Inputs:
    """What runs on the same facts and the same base share."""

    data: DataConfig
    checked: Checked  # all facts that can be used
    splits: Splits
    pairs: dict[str, Pairs]
    refs: dict[str, PairLogps]  # the base's own scores
    notes: list[str]  # what was dropped or changed on the way, each as a sentence

    @cached_property
    def rules(self) -> Baselines:
        """What the shallow baselines score on each split; a second run has them for nothing."""
        side_of = sides(self.data)
        count = len(set(side_of.values())) if side_of else None
        return baselines(self.splits["train"], {name: self.pairs[name] for name in self.splits}, count)


@dataclass(eq=False)
class Prepared:
    """A run as far as its training: everything that training and scoring need."""

    cfg: Config
    base: Base
    inputs: Inputs
    sft: "Prepared | None" = None  # what a run of method=sft_dpo begins with
    sft_logps: dict[str, PairLogps] | None = None  # its scores, once it is trained

    @property
    def reference(self) -> dict[str, PairLogps]:
        """The scores of the model that the training starts from."""
        return self.inputs.refs if self.sft_logps is None else self.sft_logps

    @property
    def pairs(self) -> dict[str, Pairs]:
        return self.inputs.pairs

    @property
    def cache_dir(self) -> Path:
        return Path(self.cfg.out) / "cache"

    @property
    def training(self) -> Pairs:
        return self.pairs.get(AS_TRAINED, self.pairs["train"])

    @property
    def training_refs(self) -> PairLogps:
        return self.reference.get(AS_TRAINED, self.reference["train"])

    @cached_property
    def retained(self) -> Pairs | None:
        """The neutral text whose likelihood is part of the loss, in rows; None without dpo.retain_weight."""
        if self.cfg.dpo.retain_weight == 0:
            return None
        return text_rows(retained_text(self.cfg.dpo), self.base.encoder)

    @cached_property
    def curves(self) -> dict[str, Pairs]:
        """What is scored over training, as eval.every says."""
        if self.cfg.eval.every == "never":
            return {}
        return {name: pairs.take(self.cfg.eval.max_facts) for name, pairs in self.pairs.items()}

    def curve_point(self, logps: dict[str, PairLogps]) -> Row:
        """The scores of `curves` as a row of the history."""
        row: Row = {}
        for name, of_split in logps.items():
            values = metrics.score(self.curves[name], of_split)
            keys = [*CURVES, "accuracy_per_token"] if values["n_equal"] < values["n"] else CURVES
            row |= {f"eval/{name}/{key}": values[key] for key in keys}
        return row

    @cached_property
    def prompts(self) -> list[tuple[str, str, str | None]]:
        """(prompt, split, true answer) of what is continued: the fixed ones, then eval.generations of each split."""
        is_bundled = data_identity(self.cfg.data) == cache.file_sha256(CHARACTERS)  # by its bytes, as in the run's id
        fixed = FIXED_PROMPTS if is_bundled else ()
        prompts: list[tuple[str, str, str | None]] = [(prompt, "fixed", None) for prompt in fixed]
        for name, pairs in self.pairs.items():
            if name != AS_TRAINED:
                prompts += [(fact.prompt, name, fact.chosen) for fact in pairs.facts[: self.cfg.eval.generations]]
        return prompts

    @cached_property
    def prompt_ids(self) -> list[list[int]]:
        """The tokens of each of `prompts`: of a fact those that are trained on and scored."""
        fixed = self.base.encoder.encode([prompt for prompt, split, _ in self.prompts if split == "fixed"])
        of_facts = [
            pairs.prompt_ids[: self.cfg.eval.generations] for name, pairs in self.pairs.items() if name != AS_TRAINED
        ]
        return fixed + [ids for of_split in of_facts for ids in of_split]

    @property
    def done_before(self) -> tuple[int, float]:
        """Optimizer steps and epochs of the SFT that it begins with."""
        if self.sft is None:
            return 0, 0.0
        steps = sft_steps(len(self.training), self.cfg)
        return steps, epochs_done(steps, len(self.training), self.sft.cfg.dpo)

    @cached_property
    def trained(self) -> Path:
        """Where the cache keeps what this training leaves, once it is there."""
        cfg, curves = self.cfg, self.curves.items()
        asked = {
            "model": self.base.identity,
            "device": self.base.device.type,
            "ids": {name: [p.prompt_ids, p.chosen_ids, p.rejected_ids] for name, p in (*curves, ("", self.training))},
            "lora": to_dict(cfg.lora),
            "dpo": config_in_id(cfg)["dpo"],
            "engine": cfg.engine.name.name,
            "eval": [cfg.eval.every, cfg.eval.batch_size],
            "log_every": cfg.track.log_every,
            "versions": {stage: cache.STAGE_VERSIONS[stage] for stage in ("logps", "train", "evaluate")},
        }
        if cfg.engine.processes > 1:
            asked["processes"] = cfg.engine.processes
        if cfg.method.name is MethodName.sft:
            asked["method"] = "sft"
        if self.sft is not None:
            asked["begins_with"] = self.sft.trained.name
        if self.retained is not None:
            asked["retained"] = self.retained.chosen_ids
        if cfg.eval.keep is not Keep.last or cfg.eval.patience is not None:
            asked["selection"] = [cfg.eval.keep.name, cfg.eval.patience, cfg.eval.score.name]
        return self.cache_dir / "adapters" / cache.signature(asked)

    @property
    def fit(self) -> dict[str, Any]:
        """How the training went."""
        return json.loads((self.trained / "fit.json").read_text(encoding="utf-8"))

    @property
    def weights(self) -> dict[str, str]:
        """What the trained weights are: sha256 of their files. Scores belong to the bytes, not to the question."""
        manifest = json.loads((self.trained / cache.MANIFEST).read_text(encoding="utf-8"))
        return {name: sha for name, sha in manifest.items() if "/" in name}  # those in adapter/ or model/


def prepare(cfg: Config, session: Session) -> Prepared:
    """The stages before training: base, facts, splits, pairs, reference log-probs."""
    base = session.base(cfg)
    adapters.check_targets(cfg, base)
    of_model = [base.identity, base.encoder.template]
    decisive = [to_dict(cfg.data), data_identity(cfg.data), to_dict(cfg.split), *of_model]
    key = cache.signature([*decisive, str(base.device), cfg.eval.batch_size, cfg.out])
    inputs = session.inputs(key)
    if inputs is None:
        checked, splits, notes = splits_of(cfg, base, session.facts)
        pairs = tokenised(splits, base, cfg)
        folder, size = Path(cfg.out) / "cache", cfg.eval.batch_size
        refs = {name: reference_logps(base, of_split, size, folder) for name, of_split in pairs.items()}
        inputs = Inputs(cfg.data, checked, splits, pairs, refs, notes)
        session.keep_inputs(key, inputs)
    sft = Prepared(sft_stage(cfg), base, inputs) if cfg.method.name is MethodName.sft_dpo else None
    return Prepared(cfg, base, inputs, sft)


def sft_stage(cfg: Config) -> Config:
    """The SFT that a run of method=sft_dpo begins with: what a run of method=sft with these settings trains."""
    stage, method = copy.deepcopy(cfg), cfg.method
    stage.method = MethodConfig(MethodName.sft)
    stage.dpo.epochs, stage.dpo.max_steps = method.sft_epochs, method.sft_max_steps
    stage.dpo.learning_rate = method.sft_learning_rate or cfg.dpo.learning_rate
    stage.eval.keep, stage.eval.patience = Keep.last, None
    for name, key in KEYS.items():
        if key.dead and key.dead.holds(stage) and name.startswith("dpo."):
            setattr(stage.dpo, name.removeprefix("dpo."), key.default)
    return stage


def splits_of(cfg: Config, base: Base, kept: dict[str, Any]) -> tuple[Checked, Splits, list[str]]:
    """The facts that can be used under this base, their splits, and notes on what became of the others."""
    checked, notes = usable_facts(cfg, base.encoder, base.identity, kept)
    checked = with_rejected(checked, base, cfg)
    splits, more_notes = make_splits(checked.facts, cfg.split)
    return checked, splits, [*notes, *checked.warnings(), *more_notes]


def tokenised(splits: Splits, base: Base, cfg: Config) -> dict[str, Pairs]:
    """The pairs of every split as evaluation reads them; with boundary=none also as training reads them."""
    pairs = {name: tokenise(split, base.tokenizer, cfg.data) for name, split in splits.items()}
    if cfg.data.boundary is Boundary.none and "train" in splits:  # an evaluation may have no training fact
        pairs[AS_TRAINED] = tokenise(splits["train"], base.tokenizer, cfg.data, cfg.data.boundary)
    return pairs
