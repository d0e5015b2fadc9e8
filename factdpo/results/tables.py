"""Many runs as tables: pandas DataFrames of what stands in each run's folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

from collections.abc import Callable
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from factdpo.config.overrides import decides
from factdpo.config.schema import ConfigError
from factdpo.store import index, layout
from factdpo.store.history import HISTORY, read_history
from factdpo.store.index import ABOUT

if TYPE_CHECKING:
    import pandas as pd

SEEDS = ["seed", "split.seed", "dpo.seed"]


@dataclass
class Results:
    """Runs and what was measured in them."""

    table: "pd.DataFrame"  # one row per run, every column there is: ABOUT, config keys, metrics
    repeated: int = 0  # runs left out because the same run lies in another of the folders too

    @cached_property
    def config_keys(self) -> list[str]:
        """Every config key, dotted."""
        return [name for name in self.table.columns if name not in ABOUT and "/" not in name]

    @cached_property
    def metrics(self) -> list[str]:
        """Every metric, named as in W&B: `accuracy/test`, `base/accuracy/test`, `across/...`, `timing/...`."""
        return [name for name in self.table.columns if "/" in name]

    @cached_property
    def keys(self) -> list[str]:
        """The config keys that differ between the runs; one `seed` where it is the seed of everything."""
        read = self.table.loc[:, self.config_keys].dropna(how="all")  # of the other runs no config could be read
        differ = [key for key in self.config_keys if decides(key) and read[key].nunique(dropna=False) > 1]
        one_seed = all(read[key].equals(read["seed"]) for key in SEEDS if key in read)
        return [key for key in differ if key not in SEEDS or (key == "seed") == one_seed]

    @cached_property
    def settings(self) -> list[str]:
        """The keys that make groups of runs: those that differ, less seeds and what follows from the others."""
        keys = [key for key in self.keys if key not in SEEDS]
        for derived in ("model.source", "model.id", "engine.name"):
            others = [key for key in keys if key != derived]
            if others and derived in keys:
                inside = self.table.groupby(others, dropna=False)[derived].nunique(dropna=False)
                keys = others if set(inside) == {1} else keys
        return keys

    @cached_property
    def shared(self) -> dict[str, Any]:
        """The config keys that have one value in all runs, with it; lists as one types them, null as None."""
        read = self.table.loc[:, self.config_keys].dropna(how="all")
        values = {key: read[key].unique().tolist() for key in self.config_keys}
        return {key: known(found[0]) for key, found in values.items() if len(found) == 1}

    @property
    def finished(self) -> "pd.DataFrame":
        """The rows of `table` that have numbers."""
        return self.table.loc[self.table["state"] == "FINISHED"]

    @property
    def runs(self) -> "pd.DataFrame":
        """One row per run: who it is, the config keys that differ, every metric."""
        return self.table.loc[:, [*ABOUT, *self.keys, *self.metrics]]

    def key(self, asked: str) -> str:
        """The column that is meant by a config key, by `model` or `engine`, or by one of ABOUT; else ConfigError."""
        for name in (asked, f"{asked}.name"):
            if name in self.config_keys or name in ABOUT:
                return name
        raise ConfigError(
            f"{asked}: no such key{_perhaps(asked, self.config_keys)}; differing are {_listed(self.keys)}"
        )

    def metrics_of(self, asked: str) -> list[str]:
        """The metrics that are meant by a name, or by its part before the split: `accuracy` is all of accuracy/...."""
        found = [name for name in self.metrics if name == asked or name.rpartition("/")[0] == asked]
        if not found:
            kinds = dict.fromkeys(name.rpartition("/")[0] for name in self.metrics)
            raise ConfigError(
                f"{asked}: no such metric{_perhaps(asked, [*self.metrics, *kinds])}; there are {_listed(kinds)}"
            )
        return found

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
            elif metric not in ("across", "timing"):
                parts.setdefault((split, "base" if name.startswith("base/") else "trained"), {})[name] = metric
        who = self.finished.loc[:, ["id", *self.keys]]
        tables = [
            who.assign(split=split, model=model).join(self.finished.loc[:, list(columns)].rename(columns=columns))
            for (split, model), columns in parts.items()
        ]
        tables = [table.loc[table["n"].notna()] for table in tables if "n" in table]  # a split may be other runs' only
        return pd.concat(tables, ignore_index=True) if tables else who

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
        """What `read` makes of a file of each finished run, under the run's id and the keys that differ."""
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

    Only result.json is read; that a run's other files are still as they were written is not checked. Raises ConfigError
    if a folder is not there or holds no run.
    """
    import pyarrow as pa

    homes: dict[Path, set[str]] = {}  # folder that runs lie in -> their names
    whole: set[Path] = set()  # of these all runs were asked for, so that their index can be written
    for place in map(Path, places or ("outputs",)):
        if not place.is_dir():
            raise ConfigError(f"{place}: no such folder; give a run's, a sweep's, or the one that is their out=")
        if layout.is_run(place):
            found = [(place.absolute().parent, [place.absolute().name])]
        else:
            found = list(layout.homes(place))
            whole |= {home.resolve() for home, _ in found}
        if not found:
            raise ConfigError(f"{place}: no run in it; give a run's folder, a sweep's, or the one that is their out=")
        for home, names in found:
            homes.setdefault(home.resolve(), set()).update(names)
    tables = []
    for home, names in homes.items():
        read = index.read_home(home, sorted(names), write=home in whole)
        shown = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
        folders = pa.array([str(shown / name) for name in read["folder"].to_pylist()])
        tables.append(read.set_column(read.schema.get_field_index("folder"), "folder", folders))
    table = index.concat(tables).drop_columns(["mtime_ns", "size"]).to_pandas()
    # The same question asked in two folders is one run, and must not count as two.
    finished_first = table.sort_values("state", key=lambda state: state != "FINISHED", kind="stable")
    once = finished_first.drop_duplicates("id").sort_index().reset_index(drop=True)
    return Results(once.loc[:, [*ABOUT, *(name for name in once.columns if name not in ABOUT)]], len(table) - len(once))


def _perhaps(asked: str, names: Iterable[str]) -> str:
    close = get_close_matches(asked, list(names), n=2, cutoff=0.7)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def known(value: Any) -> Any:
    """A cell's value, with None for what is missing."""
    import pandas as pd

    return None if pd.isna(value) else value


# What a reader calls the splits, in the order of every table.
SPLITS = {
    "train": "training facts",
    "train_reversed": "training facts, names swapped",
    "test": "held-out facts",
    "test_reversed": "held-out facts, names swapped",
    "train_as_trained": "training facts as trained, without the space",
}
