"""`factdpo sync --workspace`: saves a view of a sweep in Weights & Biases, with charts over what it swept."""

import importlib.util
import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from factdpo.config.schema import ConfigError, TrackConfig
from factdpo.results.tables import Results, load, or_none
from factdpo.tracking import wandb_settings
from factdpo.tracking.wandb_tracker import default_entity
from factdpo.tracking.wandb_views import STEP

CURVES = ("accuracy", "margin_nats", "chosen_logp_nats", "rejected_logp_nats", "p_other")  # eval/<split>/...


def check_installed() -> None:
    """Raises ConfigError if wandb-workspaces is not installed."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("sync --workspace: wandb-workspaces is not installed; pip install 'wandb-workspaces>=0.4'")


def save(folder: Path) -> str:
    """Save a new view of the sweep in a folder and return its address; raises what W&B's client raises."""
    results = load(folder)
    if not len(results.finished):
        raise ConfigError(f"sync --workspace: no run in {folder} has finished, so there is nothing to draw")
    import wandb_workspaces.workspaces as ws  # pyright: ignore[reportMissingImports]

    entity, project, group = (
        or_none(results.finished.iloc[0].get(f"track.{key}")) for key in ("entity", "project", "group")
    )
    view = ws.Workspace(
        entity=entity or default_entity(),
        project=wandb_settings.project(TrackConfig(project=str(project or TrackConfig.project))),
        name=folder.name,
        sections=_sections(results),
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == (group or folder.name), ws.Metric("JobType") != "sweep"],
        ),
    )
    with redirect_stderr(io.StringIO()):  # it prints the address
        view.save()
    return view.url


def _sections(results: Results) -> list[Any]:
    """Accuracies over what was swept; reward accuracy against accuracy; and curves, averaged over seeds."""
    import wandb_workspaces.reports.v2 as wr  # pyright: ignore[reportMissingImports]
    import wandb_workspaces.workspaces as ws  # pyright: ignore[reportMissingImports]

    accuracies = results.metrics_of("accuracy")
    splits = [name.partition("/")[2] for name in accuracies]
    swept = [wr.Config(key) for key in results.settings]
    scores = [wr.SummaryMetric(name) for name in accuracies]
    column = wr.ParallelCoordinatesPlotColumn  # pyright: ignore[reportPrivateImportUsage]
    columns = [column(axis) for axis in [*swept, *scores]]
    scatter = [wr.ScatterPlot(x=key, y=score, title=f"{key.name}: {score.name}") for key in swept for score in scores]
    logged = wr.ScatterPlot(
        x=wr.SummaryMetric("reward_accuracy/train"),
        y=wr.SummaryMetric("accuracy/train"),
        title="reward accuracy (TRL's) and accuracy (the model ranks the fact first)",
    )
    mean = {"groupby": swept[0], "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"} if len(swept) == 1 else {}
    curves = [
        wr.LinePlot(x=STEP, y=[f"eval/{split}/{metric}"], title=f"{metric}, {split}", **mean)
        for metric in CURVES
        for split in splits
    ]
    loss = wr.LinePlot(x=STEP, y=["train/loss"], title="loss", **mean)
    sections = {
        "What was swept": [wr.ParallelCoordinatesPlot(columns=columns), *scatter, logged],
        "Curves": [loss, *curves],
    }
    return [ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()]
