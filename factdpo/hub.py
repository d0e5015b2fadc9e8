"""Repositories of the Hugging Face hub: which commit a name means, what of it is here, and why it cannot be had."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factdpo.config.schema import ConfigError

TIMEOUT_SECONDS = 4.0  # of an answer before anything is downloaded
SILENCE_SECONDS = 10.0  # of the hub in a download; then the client asks again, 5 times


@dataclass(frozen=True)
class Repo:
    """A model or a data set on the hub, and the words for it in a refusal."""

    id: str
    type: str  # model, or dataset
    key: str  # that it stands under in the config
    instead: str  # what can be done without it

    @property
    def what(self) -> str:
        return "data set" if self.type == "dataset" else self.type


def offline() -> str:
    """The environment variable that keeps the hub's client off the network; empty where none does."""
    from huggingface_hub.constants import is_offline_mode

    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name)), names[0]) if is_offline_mode() else ""


def mirror() -> str:
    """The address that HF_ENDPOINT puts in the hub's place; empty where it is the hub itself."""
    from huggingface_hub.constants import ENDPOINT

    return "" if ENDPOINT == "https://huggingface.co" else ENDPOINT


def downloaded(
    repo: Repo, revision: str, names: list[str] | None = None, others: list[str] | None = None, listed: bool = False
) -> Path | None:
    """The folder of a revision in the hub's cache, by its commit; None if it is not here or lacks a file.

    Looked for are the files that match `names` (default: all) and none of `others`, by the commit's listing, which the
    cache keeps. Without a listing only the caller can say whether the folder is whole: with `listed` it is not here.
    Raises ConfigError for a name that no repository can have.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        if listed:
            get_cached_repo_tree(repo.id, repo_type=repo.type, revision=revision)
        return Path(
            snapshot_download(
                repo.id, repo_type=repo.type, revision=revision, allow_patterns=names, ignore_patterns=others,
                local_files_only=True,
            )
        )  # fmt: skip
    except (LocalEntryNotFoundError, CachedRepoTreeNotFoundError):
        return None
    except HFValidationError as error:
        raise ConfigError(f"{repo.key}={repo.id}: {error}") from None


def ask_commit(repo: Repo, revision: str) -> str:
    """The commit of a branch, tag or commit, from the hub; raises ConfigError, within 5 s, if it does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore  # of whichever httpx the client was built on

    try:
        asked = HfApi().repo_info(repo.id, repo_type=repo.type, revision=revision, timeout=TIMEOUT_SECONDS)
    except (HTTPError, OSError) as error:
        raise refusal(repo, revision, error) from None
    except (ValueError, TypeError, KeyError):  # a page of something else, say of a network that wants a login
        raise _no_hub(repo) from None
    return str(asked.sha)


def check_access(repo: Repo, commit: str, name: str) -> None:
    """Raises ConfigError, within 5 s, if the hub does not hand out a file that must be in the repository.

    To ask for the commit is not enough: the hub tells everybody about a gated repository.
    """
    from huggingface_hub.errors import HTTPError, RemoteEntryNotFoundError  # type: ignore

    try:
        served = _ask_file(repo, commit, name)
    except RemoteEntryNotFoundError:
        raise ConfigError(f"{repo.key}={repo.id}: has no {name} at {commit}; is it a {repo.what}?") from None
    except (HTTPError, OSError) as error:
        raise refusal(repo, commit, error) from None
    if served != commit:
        raise _no_hub(repo)


def download(repo: Repo, revision: str, names: list[str] | None = None, others: list[str] | None = None) -> Path:
    """The folder of a revision with the files that match, downloaded; the cache then knows a branch's commit.

    Its name is the commit. Two processes download a file once; a download that breaks goes on where it was.
    Raises ConfigError with what to do, of a hub that is silent within 90 s.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError  # type: ignore

    _end_silence()
    try:
        return Path(
            snapshot_download(
                repo.id, repo_type=repo.type, revision=revision, allow_patterns=names, ignore_patterns=others
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise refusal(repo, revision, error) from None
    except (HTTPError, OSError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"{repo.key}={repo.id}: its download broke off ({said}); run the command again: files that are whole stay"
        ) from None


def _end_silence() -> None:
    """Have the client give up a request that nobody answers: it lists the files of a commit without any limit."""
    from huggingface_hub import get_session

    client = get_session()
    hooks = client.event_hooks["request"]
    if _limit not in hooks:
        client.event_hooks = client.event_hooks | {"request": [*hooks, _limit]}


def _limit(request: Any) -> None:
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        kind: SILENCE_SECONDS if limits.get(kind) is None else limits[kind]
        for kind in ("connect", "read", "write", "pool")
    }


def fetch_file(repo: Repo, commit: str, name: str) -> bool:
    """Download one file; False if the repository has none of that name, which the cache then knows.

    Raises ConfigError within 5 s if the hub does not answer.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError, RemoteEntryNotFoundError  # type: ignore

    try:
        with suppress(RemoteEntryNotFoundError):
            _ask_file(repo, commit, name)  # of a hub that does not answer, the download would ask for minutes
        hf_hub_download(repo.id, name, repo_type=repo.type, revision=commit)
    except RemoteEntryNotFoundError:
        return False
    except (HTTPError, OSError) as error:
        raise refusal(repo, commit, error) from None
    return True


def _ask_file(repo: Repo, commit: str, name: str) -> str | None:
    """The commit that a file is served from; raises the client's errors."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo.id, name, repo_type=repo.type, revision=commit)
    return get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS).commit_hash


def refusal(repo: Repo, revision: str, error: Exception) -> ConfigError:
    """What an error of the hub's client means for who asked for a repository, and what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the hub was not asked
    named, reason = f"{repo.key}={repo.id}", type(error).__name__
    if isinstance(error, GatedRepoError):
        page = f"{mirror() or 'https://huggingface.co'}/{'datasets/' if repo.type == 'dataset' else ''}{repo.id}"
        if error.response.status_code == 403:
            return ConfigError(f"{named}: gated, and the account of your token was not let in; ask for it at {page}")
        return ConfigError(f"{named}: gated; accept its terms at {page}, then run `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        key = f"{repo.key.rsplit('.', 1)[0]}.revision"
        return ConfigError(f"{key}={revision}: {repo.id} has no such branch, tag or commit")
    if isinstance(error, RepositoryNotFoundError):
        return ConfigError(
            f"{named}: no such {repo.what} on the hub, or a private one (`hf auth login`); {repo.instead}"
        )
    if isinstance(error, HfHubHTTPError):
        reason = f"it answers {error.response.status_code}"
        if error.response.status_code == 429:
            seconds = error.response.headers.get("Retry-After")
            when = f"in {seconds} s" if seconds else "in a few minutes"
            return ConfigError(
                f"{named}: the hub answers no more requests for now (429); try again {when}, or run `hf auth login`, "
                "after which more are allowed"
            )
    if isinstance(error, OfflineModeIsEnabled):
        reason = f"{offline()} is set"
    of_type = "" if repo.type == "model" else f" --repo-type {repo.type}"
    at = f" at {mirror()}, which HF_ENDPOINT names," if mirror() else ""
    return ConfigError(
        f"{named}: the hub{at} cannot be reached ({reason}) and this {repo.what} is not here. With network once: "
        f"`hf download {repo.id}{of_type} --revision {revision}`; or {repo.instead}"
    )


def check_push(name: str) -> None:
    """Raises ConfigError for a name that no repository can have, and where no token says who pushes."""
    from huggingface_hub import get_token

    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise ConfigError(f"push={name}: no name of a repository; write user/name, as in push=ada/nano-facts")
    if variable := offline():
        raise ConfigError(f"push={name}: {variable} is set, which keeps everything off the hub; unset it")
    if not get_token():
        raise ConfigError(f"push={name}: no token is configured; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, name: str, message: str) -> str:
    """Upload a folder to a model repository, which is made if it is not there; returns the commit's address.

    Raises ConfigError if the hub does not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore

    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message))
    except (HTTPError, OSError, ValueError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"push={name}: the hub did not take it ({said}); {folder} is whole, push it again") from None


def _no_hub(repo: Repo) -> ConfigError:
    return ConfigError(
        f"{repo.key}={repo.id}: what answers at {mirror() or 'https://huggingface.co'} is no hub; is HF_ENDPOINT "
        "right, or does the network want a login first?"
    )
