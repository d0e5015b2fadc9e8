"""Data sets of the Hugging Face hub: which commit is meant, and its rows."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factdpo import hub
from factdpo.config.schema import ConfigError, HubConfig
from factdpo.data.facts import FactError


def commit_of(cfg: HubConfig) -> str:
    """The commit that is meant: itself, or that of the download, which is made if there is none.

    So the rows are those of the commit in the run's id, even if the branch moves meanwhile; and where a branch is,
    the hub is asked once. Raises FactError with the remedy, within 5 s if the hub does not answer.
    """
    revision = cfg.revision or "main"
    return revision if re.fullmatch(r"[0-9a-f]{40}", revision) else _snapshot(cfg).name


def rows_of(cfg: HubConfig) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """(where, split, row) of every row; the split is None where one is given, or the data set has no other.

    Raises FactError for what cannot be had.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    folder = _snapshot(cfg)
    try:
        names = datasets.get_dataset_split_names(str(folder), cfg.config)
        wanted = names if cfg.split is None else [cfg.split]
        if cfg.split is not None and cfg.split not in names:
            raise FactError(f"data.hub.split={cfg.split}: {cfg.id} has {', '.join(names)}")
        for name in wanted:
            split = datasets.load_dataset(str(folder), cfg.config, split=name)
            for number, row in enumerate(split, start=1):
                yield f"{cfg.id} {name}:{number}", name if len(wanted) > 1 else None, dict(row)  # type: ignore[call-overload]
    except (ValueError, OSError, DatasetsError) as error:
        if isinstance(error, FactError):
            raise
        named = "" if cfg.config is None else f" data.hub.config={cfg.config}"
        first = str(error).strip().splitlines()[0]
        raise FactError(f"data.hub.id={cfg.id}{named}: cannot be read: {first}") from None


def _snapshot(cfg: HubConfig) -> Path:
    """The folder with every file of the commit, downloaded where the hub's cache lacks one.

    A branch is downloaded under its name, so that the cache knows its commit when there is no network.
    """
    repo = hub.Repo(str(cfg.id), "dataset", "data.hub.id", "a file or a folder: data.path=...")
    revision = cfg.revision or "main"
    folder = hub.downloaded(repo, revision, listed=True)
    try:
        if folder is None:
            hub.ask_commit(repo, revision)  # of a hub that does not answer, the download would wait for ever
            folder = hub.download(repo, revision)
    except ConfigError as error:
        raise FactError(str(error)) from None
    return folder
