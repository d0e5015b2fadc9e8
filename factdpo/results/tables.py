"""Many runs as tables: pandas DataFrames of the records in the runs' folders."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factdpo.config.help import did_you_mean
from factdpo.config.overrides import decides, typed
from factdpo.config.schema import KEYS, ConfigError, to_dict
from factdpo.store import index, layout
from factdpo.store.history import HISTORY, read_history
from factdpo.store.index import ABOUT
from factdpo.store.result import EVALUATION, OF_NO_SPLIT, accuracy_metric

if TYPE_CHECKING:
    import pandas as pd

SEEDS = ["seed", "split.seed", "dpo.seed"]


@dataclass
class Results:
    """Runs with their configs and metrics."""

    table: "pd.DataFrame"  # one row per run; columns: ABOUT, config keys, metrics
    repeated: int = 0  # runs left out because the same run lies in another of the folders too
    unproven: int = 0  # runs whose record is older than its digest: a change of it would not be noticed

    @cached_property
    def config_keys(self) -> list[str]:
        """Every config key, dotted."""
        return [name for name in self.table.columns if name not in ABOUT and "/" not in name]

    @cached_property
    def metrics(self) -> list[str]:
        """Every metric, named as in W&B: `accuracy/test`, `base/accuracy/test`, `across/...`, `training/...`."""
        return [name for name in self.table.columns if "/" in name]

    @cached_property
    def keys(self) -> list[str]:
        """The config keys that differ between the runs; one `seed` where it is the seed of everything.

        Trainings are compared with trainings and evaluations with evaluations, which have no key for how weights of
        other origin were trained.
        """
        configs, is_eval = self._configs, self.table["kind"].eq(EVALUATION).reindex(self._configs.index)
        trainings, evals = configs.loc[~is_eval], configs.loc[is_eval]
        differ = [
            key
            for key in self.config_keys
            if decides(key) and (len(trainings[key].unique()) > 1 or len(evals[key].dropna().unique()) > 1)
        ]
        one_seed = all(configs[key].equals(configs["seed"]) for key in SEEDS if key in configs)
        return [key for key in differ if key not in SEEDS or (key == "seed") == one_seed]

    @cached_property
    def settings(self) -> list[str]:
        """The keys that make groups of runs: those that differ, less seeds and keys that follow from the others.

        Where there are both kinds of runs, `kind` is the first: an evaluation is never pooled with a training.
        """
        keys = [key for key in self.keys if key not in SEEDS]
        for derived in ("model.source", "model.id", "engine.name"):
            others = [key for key in keys if key != derived]
            if others and derived in keys:
                inside = self.table.groupby(others, dropna=False)[derived].nunique(dropna=False)
                keys = others if set(inside) == {1} else keys
        return ["kind", *keys] if self.has_both_kinds else keys

    @property
    def has_both_kinds(self) -> bool:
        """Whether there are trainings and evaluations."""
        return len(set(self.table["kind"])) > 1

    @cached_property
    def shared(self) -> dict[str, Any]:
        """The config keys that have the same value in all runs, with it; lists as one types them, null as None."""
        values = {key: self._configs[key].unique().tolist() for key in self.config_keys}
        return {key: or_none(distinct[0]) for key, distinct in values.items() if len(distinct) == 1}

    @cached_property
    def _configs(self) -> "pd.DataFrame":
        """The config columns of the runs whose config could be read."""
        return self.table.loc[:, self.config_keys].dropna(how="all")

    @cached_property
    def finished(self) -> "pd.DataFrame":
        """The rows of `table` that have numbers."""
        return self.table.loc[self.table["state"] == "FINISHED"]

    @property
    def runs(self) -> "pd.DataFrame":
        """One row per run: ABOUT, the config keys that differ, every metric."""
        return self.table.loc[:, [*ABOUT, *self.keys, *self.metrics]]

    @cached_property
    def groups(self) -> "list[pd.DataFrame]":
        """The runs of each setting, finished or not, in the order of `means.means`."""
        by = self.settings
        return [group for _, group in self.table.groupby(by, dropna=False)] if by else [self.table]

    @cached_property
    def accuracy(self) -> str:
        """The accuracy that headlines, rankings and default tables go by: `accuracy` or `accuracy_per_token`."""
        needed = [name for name in self.table.columns if name == "eval.score" or name.startswith(("n/", "n_equal/"))]
        return accuracy_metric(self.finished.loc[:, needed].to_dict("records"))

    @cached_property
    def splits_scored(self) -> list[str]:
        """The splits that any run was scored on, those of SPLITS first."""
        return in_order(name.removeprefix("accuracy/") for name in self.metrics if name.startswith("accuracy/"))

    @property
    def default_metrics(self) -> list[str]:
        """The accuracy on every split, and per token where that is another; none before a run has finished."""
        return [name for split in self.splits_scored for name in self.accuracies_of(split)]

    def accuracies_of(self, split: str) -> list[str]:
        """`accuracy/<split>`, and `accuracy_per_token/<split>` if the two differ in any run: if lengths do."""
        summed, per_token = f"accuracy/{split}", f"accuracy_per_token/{split}"
        if per_token not in self.metrics or self.table[per_token].fillna(self.table[summed]).equals(self.table[summed]):
            return [summed]
        return [summed, per_token] if self.accuracy == "accuracy" else [per_token, summed]

    def key(self, name: str) -> str:
        """The column of a config key, of `model` or `engine` for short, or of one of ABOUT; else ConfigError."""
        for column in (name, f"{name}.name"):
            if column in self.config_keys or column in ABOUT:
                return column
        hint = did_you_mean(name, self.config_keys, 2, 0.7)
        raise ConfigError(f"{name}: no such key{hint}; differing are {_listed(self.keys)}")

    def metrics_of(self, name: str) -> list[str]:
        """The metrics of this name, or with this part before the split: `accuracy` gives all of accuracy/...."""
        splits = {metric.rpartition("/")[2]: metric for metric in self.metrics if metric.rpartition("/")[0] == name}
        metrics = [name] if name in self.metrics else [splits[split] for split in in_order(splits)]
        if not metrics:
            kinds = dict.fromkeys(metric.rpartition("/")[0] for metric in self.metrics)
            hint = did_you_mean(name, [*self.metrics, *kinds], 2, 0.7)
            raise ConfigError(f"{name}: no such metric{hint}; there are {_listed(kinds)}")
        return metrics

    @cached_property
    def splits(self) -> "pd.DataFrame":
        """One row per finished run, split and model (base or trained): its scores, and the baselines of the split."""
        import pandas as pd

        parts: dict[tuple[str, str], dict[str, str]] = {}  # (split, model) -> {column of table: column here}
        for name in self.metrics:
            metric, _, split = name.removeprefix("base/").rpartition("/")  # an answer's name may have a slash too
            if metric.startswith("baseline/"):
                for model in ("base", "trained"):
                    parts.setdefault((split, model), {})[name] = metric
            elif not name.removeprefix("base/").startswith(OF_NO_SPLIT):
                parts.setdefault((split, "base" if name.startswith("base/") else "trained"), {})[name] = metric
        runs = self.finished.loc[:, ["id", *self.keys]]
        tables = [
            runs.assign(split=split, model=model).join(self.finished.loc[:, list(columns)].rename(columns=columns))
            for (split, model), columns in parts.items()
        ]
        tables = [table.loc[table["n"].notna()] for table in tables if "n" in table]  # not every run has every split
        return pd.concat(tables, ignore_index=True) if tables else runs

    @cached_property
    def items(self) -> "pd.DataFrame":
        """The finished runs' items.parquet: one row per run, fact, split and model; ConfigError if a file is gone."""
        import pandas as pd

        return self._of_each_run("items.parquet", pd.read_parquet)

    @cached_property
    def history(self) -> "pd.DataFrame":
        """The finished runs' curves, row by row under TRL's names; ConfigError if a file is gone."""
        import pandas as pd

        return self._of_each_run(HISTORY, lambda path: pd.DataFrame(read_history(path)))

    def _of_each_run(self, file: str, read: "Callable[[Path], pd.DataFrame]") -> "pd.DataFrame":
        """The same file of each finished run in one table, with the run's id and the keys that differ in front."""
        import pandas as pd

        tables = []
        for run in self.finished.loc[:, ["folder", "id", *self.keys]].to_dict("records"):
            path = Path(run.pop("folder")) / file
            try:
                table = read(path)
            except (OSError, ValueError) as error:
                raise ConfigError(f"{path}: cannot be read ({error}); run it again, or leave it out") from None
            tables.append(pd.concat([pd.DataFrame(run, index=table.index), table], axis=1))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def load(*places: str | Path) -> Results:
    """The runs in folders: a run's, a sweep's, or any above (`outputs`, the default).

    Reads result.json only, which proves itself; whether the other files are unchanged is not checked. Raises
    ConfigError if a folder is missing or holds no run.
    """
    import pyarrow as pa

    names_of, complete = _find(map(Path, places or ("outputs",)))
    tables = []
    for home, names in names_of.items():
        table = index.read_home(home, sorted(names), write=home in complete)
        shown = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
        folders = pa.array([str(shown / name) for name in table["folder"].to_pylist()])
        tables.append(table.set_column(table.schema.get_field_index("folder"), "folder", folders))
    table = index.concat(tables).to_pandas()
    # A run that lies in two folders is one run, and must not count twice.
    finished_first = table.sort_values("state", key=lambda state: state != "FINISHED", kind="stable")
    unique = finished_first.drop_duplicates("id").sort_index().reset_index(drop=True)
    unproven = int((unique["proven"] == False).sum()) if "proven" in unique else 0  # noqa: E712  (missing is not)
    columns = [*ABOUT, *(name for name in unique.columns if name not in [*ABOUT, *index.HIDDEN])]
    return Results(_completed(unique.loc[:, columns]), len(table) - len(unique), unproven)


def _completed(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with defaults for the keys that a training's record lacks since they came after it.

    At its default such a key is in no id, so the run is the same as one whose record has it.
    """
    has_config = table["seed" if "seed" in table else "id"].notna()
    of_trainings = table["kind"].ne(EVALUATION) & has_config
    for name in [name for name in table.columns if name in KEYS and KEYS[name].in_id is not True]:
        default = to_dict(KEYS[name].default)
        if isinstance(default, str | int | float):
            table.loc[of_trainings & table[name].isna(), name] = default
    return table


def _find(places: Iterable[Path]) -> tuple[dict[Path, set[str]], set[Path]]:
    """Folder that runs lie in -> names of the runs; and the folders of which all runs are meant."""
    names_of: dict[Path, set[str]] = {}
    complete: set[Path] = set()  # their index may be written
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"{place}: no such folder; give a run's, a sweep's, or the one that is their out=")
        homes = [(home, names) for home, names in layout.homes(place.absolute()) if names]
        if not homes:
            raise ConfigError(f"{place}: no run in it; give a run's folder, a sweep's, or the one that is their out=")
        if not layout.is_run(place):
            complete |= {home.resolve() for home, _ in homes}
        for home, names in homes:
            names_of.setdefault(home.resolve(), set()).update(names)
    return names_of, complete


def or_none(value: Any) -> Any:
    """A cell's value; None where it is missing."""
    import pandas as pd

    return None if pd.isna(value) else value


def shown(value: Any) -> str:
    """A cell as one would type it."""
    value = or_none(value)
    if hasattr(value, "item"):  # numpy's
        value = value.item()
    return as_typed(value)


def as_typed(value: Any) -> str:
    """A config value as one would type it, text without quotes."""
    return value if isinstance(value, str) else typed(value)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


# Splits as readers see them, in the order of every table; a split of another name is called by it and stands last.
SPLITS = {
    "train": "training facts",
    "train_reversed": "training facts, names swapped",
    "train_paraphrase": "training facts, paraphrased",
    "validation": "validation facts",
    "validation_reversed": "validation facts, names swapped",
    "test": "held-out facts",
    "test_reversed": "held-out facts, names swapped",
    "test_paraphrase": "held-out facts, paraphrased",
    "paraphrase": "paraphrased facts",
    "locality": "facts that must not change",
    "portability": "facts that follow from the edits",
    "train_as_trained": "training facts as trained, without the space",
}


# Metrics as readers see them; an accuracy is called by its split alone.
_WORDS = {
    "accuracy": "", "accuracy_per_token": "per token", "base/accuracy": "before training",
    "across/retention_nats_per_token": "retention, nats per token of neutral text",
    "across/symmetry_train": "order consistency, training facts",
    "across/symmetry_test": "order consistency, held-out facts",
    "training/steps": "optimizer steps", "training/peak_gib": "most memory, GiB", "timing/total_seconds": "seconds",
}  # fmt: skip


def words(metric: str) -> str:
    """A metric as readers see it: `held-out facts`, `held-out facts, per token`, `margin_nats of held-out facts`."""
    if metric in _WORDS:
        return _WORDS[metric]
    kind, _, split = metric.rpartition("/")
    of = SPLITS.get(split, split)
    if kind in _WORDS:
        return f"{of}, {_WORDS[kind]}" if _WORDS[kind] else of
    return f"{kind} of {of}"


def in_order(splits: Iterable[str]) -> list[str]:
    """The splits, each once: those of SPLITS in their order, then the others as they come."""
    splits = list(dict.fromkeys(splits))
    return [*(split for split in SPLITS if split in splits), *(split for split in splits if split not in SPLITS)]
