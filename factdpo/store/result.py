"""result.json: read back and proven by its files, printed for people, and documented key by key."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from factdpo.store.cache import damaged_files

Result = dict[str, Any]

RUNNING, KILLED, TO_DO = "running", "killed", "to do"  # of runs without a result
STATES = ("FINISHED", RUNNING, "FAILED", "DIVERGED", "PREEMPTED", KILLED, TO_DO)

AS_TRAINED = "train_as_trained"  # a split that only runs with data.boundary=none have

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
    "config.<rest>": "the resolved config; units in factdpo/config.py",
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
    "timing.reference_seconds": "loading, tokenising and scoring the base model, s",
    "timing.train_seconds": "training with its evaluations, s (of the whole batch; of the run that trained, if reused)",
    "timing.score_seconds": "scoring the trained model, s",
    "timing.total_seconds": "the whole run, s",
    "files.<rest>": "sha256 of a file in the run's folder",
}


@dataclass(frozen=True)
class Stored:
    """What a folder holds: a result, or the reason why it has none that can be trusted; the other is None."""

    result: Result | None
    reason: str | None


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


def undocumented(result: Result) -> list[str]:
    """Keys of a result, dotted, that KEYS does not explain."""
    patterns = [key.split(".") for key in KEYS]
    return [".".join(path) for path in _paths(result) if not any(_matches(path, pattern) for pattern in patterns)]


def _paths(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _paths(value, (*path, key))
    elif path:
        yield path


def _matches(path: tuple[str, ...], pattern: list[str]) -> bool:
    if pattern[-1] == "<rest>":
        return list(path[: len(pattern) - 1]) == pattern[:-1]
    return len(path) == len(pattern) and all(
        p.startswith("<") or p == key for key, p in zip(path, pattern, strict=True)
    )


def print_result(result: Result, folder: Path, console: Console) -> None:
    """A run's numbers and where the rest is; for one that did not finish, why."""

    def line(text: str = "", style: str = "") -> None:  # never wrapped: paths and commands must stay whole
        console.print(Text(text, style=style), soft_wrap=True)

    line()
    if result["state"] != "FINISHED":
        line(f"{result['name']} ({result['id']})  {result['state']}", "bold red")
        line(result.get("error") or "no reason was written down")
        line(f"log      {folder / 'run.log'}")
        return
    line(f"{result['name']} ({result['id']})", "bold")
    console.print(_splits_table(result))
    line()
    console.print(_more_table(result))
    if AS_TRAINED in result["trained"]:
        line("as trained: the facts of train as training saw them, without the space", "dim")
    for warning in result["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))
    line()
    line(f"folder   {folder}")
    if (folder / "figures").is_dir():
        line(f"figures  {folder / 'figures'}")
    if any((folder / "wandb").glob("*run-*/*.wandb")):
        line(f"curves   wandb leet {folder / 'wandb'}")
    line(f"again    factdpo eval run={folder}")


def print_line(result: Result, folder: Path, console: Console) -> None:
    """One run of a sweep in one line: its state, what tells it from the others, and its accuracies or why it failed."""
    what = result["config"]["label"] or result["name"]
    if result["state"] != "FINISHED":
        text = f"{result['state']}  {what}  {result.get('error') or 'no reason was written down'}  {folder / 'run.log'}"
        console.print(Text(text, style="bold red"), soft_wrap=True)
        return
    scores = "  ".join(f"{split} {values['accuracy']:.2f}" for split, values in result["trained"].items())
    console.print(Text(f"FINISHED  {what}  {scores}  {result['timing']['total_seconds']:.1f} s"), soft_wrap=True)


def _splits_table(result: Result) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("split", no_wrap=True)
    for heading in ("n", "base", "accuracy\ntrained [95 %]", "balanced"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("best\nbaseline", "flips"):  # these two may take two lines where n is large or the screen narrow
        table.add_column(heading, justify="right")
    for split, after in result["trained"].items():
        before, rules = result["base"][split], result["baselines"].get(split, {})
        best = best_baseline(rules)
        trained = Text(f"{after['accuracy']:.2f} [{after['accuracy_low']:.2f}, {after['accuracy_high']:.2f}]")
        if best is not None and not after["accuracy_low"] <= best[1] <= after["accuracy_high"]:
            trained.stylize("green" if after["accuracy"] > best[1] else "red")
        table.add_row(
            "as trained" if split == AS_TRAINED else split,
            str(after["n"]),
            f"{before['accuracy']:.2f}",
            trained,
            f"{before['balanced_accuracy']:.2f}->{after['balanced_accuracy']:.2f}",
            f"{best[0].removesuffix('_name')} {best[1]:.2f}" if best else "-",
            f"+{after['wrong_to_right']} -{after['right_to_wrong']}",
        )
    return table


def best_baseline(rules: dict[str, float | None]) -> tuple[str, float] | None:
    """The best rule that understands nothing, and its accuracy; `implied` is logic, not such a rule."""
    known = {rule: value for rule, value in rules.items() if rule != "implied" and value is not None}
    return max(known.items(), key=lambda pair: pair[1], default=None)


def _more_table(result: Result) -> Table:
    """What does not fit into one row per split."""
    base, trained, across = result["base"], result["trained"], result["across"]

    def arrows(values: dict[str, tuple[float | None, float | None]]) -> str:
        return "   ".join(f"{k} {b:.2f} -> {a:.2f}" for k, (b, a) in values.items() if b is not None and a is not None)

    seen = [split for split in ("train", "test") if split in trained]
    implied = {split: result["baselines"].get(split, {}).get("implied") for split in seen}
    nats = [across[model]["retention_nats_per_token"] for model in ("base", "trained")]
    rows = {
        "says the fact": arrows({s: (base[s]["greedy_accuracy"], trained[s]["greedy_accuracy"]) for s in seen}),
        "both orders alike": arrows(
            {s: (across["base"][f"symmetry_{s}"], across["trained"][f"symmetry_{s}"]) for s in ("train", "test")}
        ),
        "reward accuracy": "   ".join(f"{s} {trained[s]['reward_accuracy']:.2f}" for s in seen),
        "implied by train": "   ".join(f"{s} {value:.2f}" for s, value in implied.items() if value is not None),
        "neutral text": f"{nats[0]:.2f} -> {nats[1]:.2f} nats per token",
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, text in rows.items():
        if text:
            table.add_row(Text(name, style="dim"), Text(text))
    return table
