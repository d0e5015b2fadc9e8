"""`factdpo report --figures`: the graphs of runs that drew none when they ended (eval.figures), from their record."""

from pathlib import Path

from factdpo.config.schema import ConfigError
from factdpo.config.validate import from_dict
from factdpo.data import load
from factdpo.evaluation.belief_graph import write_graphs
from factdpo.results.tables import Results
from factdpo.store.result import read_record


def draw(results: Results) -> list[Path]:
    """Draw `figures/` in the folder of each finished run that has none; returns those drawn.

    Raises OSError or ValueError for a run whose items.parquet cannot be read, and OSError where nothing can be written.
    """
    import pyarrow.parquet

    drawn = []
    for folder in map(Path, results.finished["folder"]):
        if not (folder / "figures").is_dir():
            items = pyarrow.parquet.read_table(folder / "items.parquet").to_pylist()
            if write_graphs(items, _sides(folder), folder / "figures"):
                drawn.append(folder / "figures")
    return drawn


def _sides(folder: Path) -> dict[str, int] | None:
    """Name -> its camp; None where the data, or what this version needs of the config, is gone: all share a circle."""
    config = read_record(folder)["config"]
    try:
        return load.sides(from_dict(config).data)
    except ConfigError:
        return None
