"""The model card of an exported model: its facts, its figures with their intervals, its config, how to load it."""

from typing import Any

import yaml

from factdpo.config.schema import Method, Quantization
from factdpo.data.files import data_name
from factdpo.runs.identity import config_in_id
from factdpo.store.result import Result, accuracy_metric, best_baseline, headline_row
from factdpo.using.finished import Finished

EXAMPLES = 3  # facts that are shown


def card(run: Finished, where: str, commit: str | None, whole: bool) -> str:
    """README.md of an exported run: Markdown with the hub's metadata in front.

    `where` is what the model is loaded by, a folder or a hub id; `commit` that of a base on the hub; `whole` whether
    the folder is a model and no adapter.
    """
    parts = [
        _metadata(run, commit, whole),
        f"# {run.result['name']}",
        _about(run, commit, whole),
        "## Load it\n\n" + _load(run, where, commit, whole),
        "## Facts\n\n" + _facts(run),
        "## Figures\n\n" + _figures(run.result),
        "## Config\n\n```yaml\n" + yaml.safe_dump(config_in_id(run.cfg), sort_keys=False, allow_unicode=True) + "```",
        "## Versions\n\n" + "\n".join(f"* {name} {version}" for name, version in _versions(run.result)),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(run: Finished, commit: str | None, whole: bool) -> str:
    about: dict[str, Any] = {"library_name": "transformers" if whole else "peft", "pipeline_tag": "text-generation"}
    if commit is not None:
        about["base_model"] = run.cfg.model.id
    return f"---\n{yaml.safe_dump(about | {'tags': ['factdpo', run.cfg.method.name.name]}, sort_keys=False)}---"


def _about(run: Finished, commit: str | None, whole: bool) -> str:
    base = f"{run.cfg.model.id} at commit {commit}" if commit else run.cfg.model.name
    is_full = run.cfg.lora.method is Method.full
    kind = "All weights of" if is_full else "A LoRA adapter, merged into" if whole else "A LoRA adapter on"
    text = (
        f"{kind} {base}, trained to rank true statements above false ones. Run {run.result['id']} of factdpo, "
        f"{run.result.get('started') or 'on an unknown day'}."
    )
    if whole and not is_full and run.cfg.model.dtype.name != "float32":
        text += f" Merged in {run.cfg.model.dtype.name}, which rounds what the adapter adds."
    return text


def _load(run: Finished, where: str, commit: str | None, whole: bool) -> str:
    name, module = ("AutoModelForCausalLM", "transformers") if whole else ("AutoPeftModelForCausalLM", "peft")
    tokenizer = where if whole else run.cfg.model.id if commit else f"{where}/base"
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if not whole:
        imports = [f"from {module} import {name}", "from transformers import AutoTokenizer"]
    lines = [
        *imports, "", f'model = {name}.from_pretrained("{where}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")',
    ]  # fmt: skip
    note, how = "", run.cfg.model.quantization
    if how is not Quantization.none and commit is not None:
        note = f"\n\nThe base was quantised in training ({how.name}, by bitsandbytes): load it so for the same numbers."
    if not whole and commit is None:
        note = (
            "\n\nThe base lies in `base/`, and `adapter_config.json` names it by its folder: if this folder moves, "
            "correct `base_model_name_or_path` there."
        )
    return "```python\n" + "\n".join(lines) + "\n```" + note


def _facts(run: Finished) -> str:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(run.folder / "items.parquet").to_pylist()
    shown = [row for row in rows if row["split"] == "train" and row["model"] == "trained"][:EXAMPLES]
    sizes = ", ".join(f"{split} {scores['n']}" for split, scores in run.result["trained"].items())
    lines = [f"* {row['prompt']} **{row['chosen']}** (not {row['rejected']})" for row in shown]
    return f"{data_name(run.cfg.data)}: {sizes}. The first of those that it was trained on:\n\n" + "\n".join(lines)


def _figures(result: Result) -> str:
    """Accuracy per split, after training with its interval, beside the base and the best shallow baseline."""
    metric = accuracy_metric([headline_row(result)])
    score = "by mean log-prob per token" if metric == "accuracy_per_token" else "by summed log-prob"
    lines = ["| split | facts | base | trained [95 %] | best shallow baseline |", "|---|---:|---:|---:|---:|"]
    for split, after in result["trained"].items():
        best = best_baseline(result["baselines"].get(split, {}))
        low, high = after[f"{metric}_low"], after[f"{metric}_high"]
        cells = [
            split, str(after["n"]), f"{result['base'][split][metric]:.2f}",
            f"{after[metric]:.2f} [{low:.2f}, {high:.2f}]", f"{best[0]} {best[1]:.2f}" if best else "-",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    before, after = (result["across"][model]["retention_nats_per_token"] for model in ("base", "trained"))
    text = [
        f"Accuracy: the share of facts that the model ranks above their false version, {score}, with its 95 % Wilson "
        "interval.",
        "\n".join(lines),
        f"Neutral English costs {after:.2f} nats per token, {before:.2f} before training: what it grew by was "
        "forgotten.",
        *(f"Warning: {warning}" for warning in result["warnings"]),
    ]
    return "\n\n".join(text)


def _versions(result: Result) -> list[tuple[str, str]]:
    return [(name, version) for name, version in result["versions"].items() if version]
