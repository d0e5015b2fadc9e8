"""Data sets of the Hugging Face hub: which commit is meant, and its rows."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factdpo.config.schema import HubConfig
from factdpo.data.facts import FactError

TIMEOUT_SECONDS = 4.0


def commit_of(cfg: HubConfig) -> str:
    """The commit that is meant: itself, the one downloaded before, or the hub's answer.

    Raises FactError, within 5 s, with the remedy if the hub does not have it or cannot be reached.
    """
    revision = cfg.revision or "main"
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    folder = _downloaded(cfg, revision)
    return folder.name if folder else _ask_hub(cfg, revision)


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

    A branch is downloaded under its name, so that the cache knows its commit when there is no network. Without that,
    only a listing of the commit's files proves that all are here, which is what the dry run asks for.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, HTTPError  # type: ignore

    name = cfg.revision or "main"
    revision = commit_of(cfg) if _downloaded(cfg, name) else name
    try:
        snapshot_download(str(cfg.id), repo_type="dataset", revision=revision, dry_run=True)
        return Path(snapshot_download(str(cfg.id), repo_type="dataset", revision=revision))
    except (DryRunError, HTTPError, OSError) as error:  # LocalEntryNotFoundError is an OSError
        raise _unreachable(cfg, revision, error) from None


def _downloaded(cfg: HubConfig, revision: str) -> Path | None:
    """The folder of a revision in the hub's cache on this machine; None if it is missing or incomplete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(str(cfg.id), repo_type="dataset", revision=revision, local_files_only=True)
        )  # fmt: skip
    except LocalEntryNotFoundError:
        return None


def _ask_hub(cfg: HubConfig, revision: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,  # type: ignore  # of whichever httpx the client was built on
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return str(HfApi().dataset_info(str(cfg.id), revision=revision, timeout=TIMEOUT_SECONDS).sha)
    except GatedRepoError:
        raise FactError(f"data.hub.id={cfg.id}: gated; accept its terms on the hub, then run `hf auth login`") from None
    except RevisionNotFoundError:
        raise FactError(f"data.hub.revision={revision}: {cfg.id} has no such branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise FactError(
            f"data.hub.id={cfg.id}: no such data set on the hub, or a private one (run `hf auth login`); a file or "
            "folder goes to data.path"
        ) from None
    except (HTTPError, OSError) as error:
        raise _unreachable(cfg, revision, error) from None


def _unreachable(cfg: HubConfig, revision: str, error: Exception) -> FactError:
    return FactError(
        f"data.hub.id={cfg.id}: the hub cannot be reached ({type(error).__name__}) and this data set is not here. With "
        f"network once: `hf download {cfg.id} --repo-type dataset --revision {revision}`; or a file: data.path=..."
    )
