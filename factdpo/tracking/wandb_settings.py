"""W&B's mode, API key and settings on this machine, read without the network; and configs without secrets."""

import configparser
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from factdpo.config import secrets
from factdpo.config.schema import Config, ConfigError, TrackConfig, TrackMode
from factdpo.tracking.wandb_process import process

DEFAULT_BASE_URL = "https://api.forge.coreweave.com"  # wandb's own, since 0.31
DEFAULT = TrackConfig()
LONGEST, LONGEST_TAG = 128, 64  # characters of a name and of a tag
NOT_IN_A_PROJECT = "/\\#?%:"


def wandb_mode(track: TrackConfig, env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """W&B's mode (online, offline or disabled) and the reason, from files and the environment, never the network.

    Of WANDB_MODE, WANDB_DISABLED and track.mode the most private one wins.
    """
    if not track.wandb:
        return "disabled", "track.wandb=false"
    private = {"online": 0, "offline": 1, "disabled": 2}
    requested: dict[str, str] = {}  # where it is set -> mode
    if process.stopped:
        return "disabled", "it did not answer an earlier run"
    if (value := env.get("WANDB_DISABLED", "")).lower() in ("true", "1", "yes", "on"):  # as transformers reads it
        requested[f"WANDB_DISABLED={value}"] = "disabled"
    if track.mode is not TrackMode.auto:
        requested[f"track.mode={track.mode.name}"] = track.mode.name
    value = setting("mode", env)
    if value:
        name = {"run": "online", "shared": "online", "dryrun": "offline"}.get(value, value)
        requested[f"WANDB_MODE={value}" if name in private else f"WANDB_MODE={value} is not a mode of W&B"] = name
    why, mode = max(requested.items(), key=lambda pair: private.get(pair[1], 1), default=("", "auto"))
    if mode in ("auto", "online"):
        source = key_source(env)
        if source is None:
            return "offline", f"no API key found for {why}" if why else "no API key found"
        if process.server_failed:
            return "offline", "the server did not take an earlier run"
        return "online", ", ".join(filter(None, [why, f"API key from {source}"]))
    return (mode if mode in private else "offline"), why


def wandb_sentence(track: TrackConfig, folder: Path, env: Mapping[str, str] = os.environ) -> str:
    """One line for users: what W&B does with the run or sweep in a folder."""
    mode, why = wandb_mode(track, env)
    if mode == "disabled":
        return f"W&B off: {why}"
    if mode == "online":
        return f"W&B online: project {project(track, env)} ({why})"
    return f"W&B offline: {why}; `factdpo sync {folder}` uploads later"


def project(track: TrackConfig, env: Mapping[str, str] = os.environ) -> str:
    """The project: the config's unless it is the default, else W&B's own setting, else the default."""
    return track.project if track.project != DEFAULT.project else setting("project", env) or DEFAULT.project


def job_type(track: TrackConfig, env: Mapping[str, str] = os.environ) -> str:
    """The job type of a run: the config's unless it is the default, else WANDB_JOB_TYPE, else the default."""
    return track.job_type if track.job_type != DEFAULT.job_type else env.get("WANDB_JOB_TYPE") or DEFAULT.job_type


def tags(track: TrackConfig, env: Mapping[str, str] = os.environ) -> list[str]:
    """The config's tags, else those of WANDB_TAGS, between commas."""
    return track.tags or [tag.strip() for tag in env.get("WANDB_TAGS", "").split(",") if tag.strip()]


def display_name(cfg: Config, name: str, env: Mapping[str, str] = os.environ) -> str:
    """What W&B shows for a run of this name: WANDB_NAME for one alone and without a label; no longer than W&B takes."""
    if cfg.sweep is None and cfg.label is None:
        name = env.get("WANDB_NAME") or name
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def check_names(cfg: Config, env: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError for a project, tag, group or job type that W&B would refuse once the run has begun."""
    if wandb_mode(cfg.track, env)[0] == "disabled":
        return
    track = cfg.track
    said = {
        "track.project" if track.project != DEFAULT.project else "WANDB_PROJECT": project(track, env),
        "track.group" if track.group is not None else "sweep": track.group or cfg.sweep or "",
        "track.job_type" if track.job_type != DEFAULT.job_type else "WANDB_JOB_TYPE": job_type(track, env),
    }
    for key, value in said.items():
        if len(value) > LONGEST:
            raise ConfigError(f"{key}={value}: {len(value)} characters; W&B takes at most {LONGEST}")
    (key, value) = next(iter(said.items()))
    if not value.strip() or (bad := sorted({*value} & {*NOT_IN_A_PROJECT})):
        found = f"has {' '.join(bad)}" if value.strip() else "is empty"
        raise ConfigError(f"{key}={value}: {found}; W&B's projects have a name without {' '.join(NOT_IN_A_PROJECT)}")
    for tag in tags(track, env):
        if not 1 <= len(tag) <= LONGEST_TAG:
            key = "track.tags" if track.tags else "WANDB_TAGS"
            raise ConfigError(f"{key}: the tag {tag!r} has {len(tag)} characters; W&B takes 1 to {LONGEST_TAG}")


def key_source(env: Mapping[str, str]) -> str | None:
    """Where W&B finds an API key, searched in W&B's own order; None if there is none."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if env.get(name):
            return name
    base_url = setting("base_url", env)
    hosts = [urlsplit(base_url).netloc] if base_url else [urlsplit(DEFAULT_BASE_URL).netloc, "api.wandb.ai"]
    home = Path(env.get("HOME", "~")).expanduser()
    for path in [Path(env["NETRC"])] if env.get("NETRC") else [home / ".netrc", home / "_netrc"]:
        try:
            logins = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError):
            continue
        passwords = [login[2] for login in map(logins.authenticators, hosts) if login]
        if any(passwords):
            return str(path)
    return "W&B's settings file" if setting("api_key", env) else None


def base_url(env: Mapping[str, str] = os.environ) -> str:
    return setting("base_url", env) or DEFAULT_BASE_URL


def setting(key: str, env: Mapping[str, str]) -> str | None:
    """A W&B setting, from the environment, else the current folder's settings, else the user's settings."""
    if value := env.get(f"WANDB_{key.upper()}"):
        return value
    home = Path(env.get("HOME", "~")).expanduser()
    config_dir = Path(env.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb").expanduser()
    for path in (Path(env.get("WANDB_DIR", ".")) / "wandb" / "settings", config_dir / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path)
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        if value := parser.get("default", key, fallback=None):
            return value
    return None


def without_secrets(config: Any, env: Mapping[str, str]) -> Any:
    """The config without keys that are named like secrets, and without values that hold a secret of the environment."""
    values = secrets.in_environment(env).values()

    def holds_secret(value: Any) -> bool:
        return isinstance(value, str) and any(secret in value for secret in values)

    def clean(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: clean(v) for k, v in node.items() if not (secrets.NAME.search(str(k)) or holds_secret(v))}
        if isinstance(node, list):
            return [clean(item) for item in node if not holds_secret(item)]
        return node

    return clean(config)
