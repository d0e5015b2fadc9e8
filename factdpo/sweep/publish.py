"""Publishes a finished sweep to Weights & Biases: its tables, figures, report and best run."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo.config.schema import TrackConfig
from factdpo.results import winners
from factdpo.results.means import means
from factdpo.results.tables import Results, load
from factdpo.store.sweep_file import metrics_asked
from factdpo.tracking.wandb_settings import wandb_mode
from factdpo.tracking.wandb_tracker import agents_run, log_sweep

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("factdpo")

LOG_SCALE_FROM = 20.0  # largest over smallest value of a key from which its axis is logarithmic


def show_sweep(folder: Path, track: TrackConfig, sweep: dict[str, Any]) -> None:
    """Publish the sweep in a folder to W&B; `sweep` is its sweep.json. A failure costs one warning."""
    if wandb_mode(track)[0] == "disabled" or agents_run():  # under `wandb agent` W&B has a page of the sweep already
        return
    try:
        results = load(folder)
        rankings = winners.rankings(results, metrics_asked(sweep))
        best = winners.runs_of(results, rankings[0].best).to_dict("records") if rankings else []
        states = results.table["state"].value_counts().to_dict()
        numbers: dict[str, Any] = {"runs": len(results.table), **{f"runs/{state}": n for state, n in states.items()}}
        if best:
            numbers["best/id"] = best[0]["id"]  # the first of the best setting's: its luckiest would say less
            names = dict.fromkeys([*(ranked.metric.name for ranked in rankings), *results.metrics_of("accuracy")])
            numbers |= {f"best/{name}": _mean(best, name) for name in names}
        page = folder / "report.html"
        log_sweep(
            track,
            folder,
            sweep["id"],
            {name: sweep[name] for name in ("question", "axes")} | {"differ": results.keys},
            numbers,
            {
                "runs": results.runs,
                "means": means(results, results.settings, results.metrics),
                **_figures(results),
            },
            page if page.is_file() else None,
            Path(best[0]["folder"]) if best else None,
        )
    except Exception as error:
        log.warning("the sweep as a whole is not in W&B (%s: %s)", type(error).__name__, error)


def _mean(runs: list[dict[str, Any]], metric: str) -> float:
    return sum(run[metric] for run in runs) / len(runs)


def _figures(results: Results) -> dict[str, "Image"]:
    """A picture per setting that differs: the runs' accuracies on every split over it."""
    if not len(results.finished):
        return {}
    return {f"accuracy_by/{key}": _figure(results, key) for key in results.settings}


def _figure(results: Results, key: str) -> "Image":
    """Accuracy over one setting: a dot per run, a line through the means of each split."""
    import numpy as np
    import pandas as pd
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: no global state, and Agg whatever the caller's backend
    from PIL import Image

    canvas = FigureCanvasAgg(Figure(figsize=(7, 4.5), dpi=120, layout="constrained"))
    axes = canvas.figure.subplots()
    runs: Any = results.finished
    numeric = pd.api.types.is_numeric_dtype(runs[key]) and not pd.api.types.is_bool_dtype(runs[key])
    values: list[Any] = sorted(runs[key].dropna().unique()) if numeric else [str(v) for v in runs[key].unique()]
    x = runs[key].astype(float) if numeric else runs[key].astype(str).map(values.index)
    for metric in results.metrics_of("accuracy"):
        mean = runs[metric].groupby(x).mean()
        (line,) = axes.plot(mean.index, mean, marker="o", markersize=4, label=metric.partition("/")[2])
        axes.scatter(x, runs[metric], s=10, alpha=0.4, color=line.get_color(), linewidths=0)
    axes.axhline(0.5, color="0.7", linewidth=0.8, linestyle=":")
    if numeric and min(values) > 0 and max(values) / min(values) >= LOG_SCALE_FROM:
        axes.set_xscale("log")
    if not numeric:
        axes.set_xticks(range(len(values)), values)
    axes.set(xlabel=key, ylabel="accuracy", ylim=(-0.02, 1.02))
    axes.legend(frameon=False)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
