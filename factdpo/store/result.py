"""result.json: read back and proven by its files, flattened, and documented key by key."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factdpo.config.overrides import flat
from factdpo.store.cache import damaged_files, write_atomic
from factdpo.store.history import Row

Result = dict[str, Any]

RUNNING, KILLED, TO_DO = "running", "killed", "to do"  # of runs without a result
STATES = ("FINISHED", RUNNING, "FAILED", "DIVERGED", "PREEMPTED", KILLED, TO_DO)

AS_TRAINED = "train_as_trained"  # a split that only runs with data.boundary=none have
ACCURACY_GAP = 0.2  # reward accuracy and accuracy on train that differ by more are reported (D6)

# What stands in a result.json. `<split>` is train, train_reversed, test, test_reversed or train_as_trained; `<rest>` is
# anything below. Log-probs are summed over an answer's tokens; means are over the facts of the split.
_SCORES = {
    "n": "facts in the split",
    "accuracy": "share of facts that the model ranks above their fiction, in [0, 1]",
    "accuracy_low": "lower end of accuracy's 95 % Wilson interval",
    "accuracy_high": "upper end of accuracy's 95 % Wilson interval",
    "balanced_accuracy": "mean over the true answers of the accuracy among their facts, in [0, 1]",
    "answer_shares.<answer>": "share of facts for which the model prefers this answer, true or not, in [0, 1]",
    "chosen_logp_nats": "mean over facts of log p(chosen | prompt), nats",
    "rejected_logp_nats": "mean over facts of log p(rejected | prompt), nats",
    "margin_nats": "mean over facts of log p(chosen) - log p(rejected), nats",
    "p_other": "mean over facts of the probability of neither answer, in [0, 1]",
    "greedy_accuracy": "share of facts whose true answer is what the model says, token by token, in [0, 1]",
}
_ACROSS = {
    "symmetry_train": "share of training pairs ranked the same in both orders, in [0, 1]; null without reverses",
    "symmetry_test": "the same for the held-out pairs",
    "retention_nats_per_token": "mean -log p per token of a neutral text, nats; what it grew by was forgotten",
}
KEYS: dict[str, str] = {
    "id": "hash of what was asked: config, data, model, stage versions (12 hex digits)",
    "name": "how people call the run; not unique",
    "state": "FINISHED, FAILED, DIVERGED (NaN or Inf) or PREEMPTED (a signal)",
    "error": "why it is not FINISHED; null",
    "attempts": "times that this command tried it: 1 + what `retries` added",
    "started": "when the run began, UTC, ISO 8601",
    "config.<rest>": "the resolved config; units in factdpo/config/schema.py",
    "asked.<rest>": "what the id is a hash of, beside the config: the data's sha256, the model, stage versions",
    "versions.<rest>": "versions of Python and the packages that matter",
    "hardware.<rest>": "processor, cores, operating system, and the device that was used",
    **{f"base.<split>.{key}": f"before training: {text}" for key, text in _SCORES.items()},
    **{f"trained.<split>.{key}": f"after training: {text}" for key, text in _SCORES.items()},
    "trained.<split>.reward_accuracy": "share of facts whose margin grew against the base, in [0, 1]; TRL's accuracy",
    "trained.<split>.wrong_to_right": "facts that the base got wrong and the trained model gets right",
    "trained.<split>.right_to_wrong": "facts that the base got right and the trained model gets wrong",
    "baselines.<split>.majority": "accuracy of taking the answer, of the two, that was true more often in training",
    "baselines.<split>.first_name": "accuracy of a rule that looks at the first name alone; null without names",
    "baselines.<split>.second_name": "accuracy of a rule that looks at the second name alone; null without names",
    "baselines.<split>.additive": "accuracy of one weight per first plus one per second name; null without names",
    "baselines.<split>.implied": "accuracy of what the training facts imply by logic (2-colouring); null without sides",
    **{f"across.base.{key}": f"before training: {text}" for key, text in _ACROSS.items()},
    **{f"across.trained.{key}": f"after training: {text}" for key, text in _ACROSS.items()},
    "warnings": "sentences on what is suspicious in the numbers",
    "adjusted": "what was changed in the model's own config",
    "canaries.<rest>": "the run's checks of itself, each with what it found; losses in nats",
    "training.steps": "optimizer steps taken",
    "training.trainable_parameters": "numbers that training could change",
    "training.trained_together": "runs of the batch in which it trained; 1 with engine=trl",
    "training.peak_gib": "most memory held at once in training, GiB (of the accelerator; on a CPU of the process)",
    "timing.reference_seconds": "loading, tokenising and scoring the base model, s; what runs share the first one pays",
    "timing.train_seconds": "training with its evaluations, s: the run's share of its batch; 0 if the cache had it",
    "timing.score_seconds": "scoring the trained model and writing the record, s: the run's share",
    "timing.total_seconds": "the whole run, s; over the runs of a command these add up to its time on the clock",
    "timing.batch_seconds": "training of the batch as a whole until this run ended, s; also if the cache had it",
    "files.<rest>": "sha256 of a file in the run's folder",
}


@dataclass(frozen=True)
class Stored:
    """What a folder holds: a result, or the reason why it has none that can be trusted; the other is None."""

    result: Result | None
    reason: str | None


def write_result(folder: Path, result: Result) -> None:
    """Write result.json so that a reader sees it whole or not at all; raises OSError."""
    write_atomic(folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False))


def read_result(folder: Path) -> Stored:
    """The result of a run's folder; a FINISHED one only if each of its files still has the sha256 written down."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        state, files = result["state"], dict(result.get("files") or {})
    except FileNotFoundError:
        return Stored(None, f"{path}: not there")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Stored(None, f"{path}: not a result ({type(error).__name__}: {error})")
    if state == "FINISHED":
        if not files:
            return Stored(None, f"{path}: FINISHED, but names no files")
        if wrong := damaged_files(folder, files):
            return Stored(None, f"{folder}: missing, or changed since the run wrote it: {', '.join(wrong)}")
    return Stored(result, None)


def best_baseline(rules: dict[str, float | None]) -> tuple[str, float] | None:
    """The best shallow baseline and its accuracy; `implied`, the logical closure of the training facts, is none."""
    shallow = [(rule, value) for rule, value in rules.items() if rule != "implied" and value is not None]
    return max(shallow, key=lambda pair: pair[1], default=None)


def summary(result: Row) -> Row:
    """The flat view of a result: `accuracy/<split>` and the rest after training, the same under `base/` before it."""
    row: Row = {"state": result["state"]}
    for prefix, model in (("", "trained"), ("base/", "base")):
        for split, scores in (result.get(model) or {}).items():
            row |= {f"{prefix}{metric}/{split}": value for metric, value in _present(scores)}
        across = (result.get("across") or {}).get(model) or {}
        row |= {f"{prefix}across/{name}": value for name, value in _present(across)}
    for split, scores in (result.get("baselines") or {}).items():
        row |= {f"baseline/{rule}/{split}": value for rule, value in _present(scores)}
    row |= {f"timing/{name}": value for name, value in _present(result.get("timing") or {})}
    return row


def _present(scores: Row) -> list[tuple[str, Any]]:
    """(`name` or `name.inner`, value) of a nested dict, without nulls."""
    return [(name, value) for name, value in flat(scores).items() if value is not None]
