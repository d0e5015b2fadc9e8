"""W&B's mode, API key and settings on this machine, read without the network; and configs without secrets."""

import configparser
import netrc
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from factdpo.config.schema import TrackConfig, TrackMode
from factdpo.tracking.wandb_process import process

DEFAULT_BASE_URL = "https://api.forge.coreweave.com"  # wandb's own, since 0.31
SECRET_NAME = re.compile(r"key|token(?!s)|passw|secret|credential", re.IGNORECASE)  # max_new_tokens is no secret


def wandb_mode(track: TrackConfig, env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """W&B's mode (online, offline or disabled) and the reason, from files and the environment, never the network.

    If both WANDB_MODE and track.mode are set, the more private one wins.
    """
    if not track.wandb:
        return "disabled", "track.wandb=false"
    private = {"online": 0, "offline": 1, "disabled": 2}
    requested: dict[str, str] = {}  # where it is set -> mode
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
        return f"W&B online: project {track.project} ({why})"
    return f"W&B offline: {why}; `factdpo sync {folder}` uploads later"


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
    secrets = [value for name, value in env.items() if SECRET_NAME.search(name) and len(value) >= 8]

    def holds_secret(value: Any) -> bool:
        return isinstance(value, str) and any(secret in value for secret in secrets)

    def clean(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: clean(v) for k, v in node.items() if not (SECRET_NAME.search(str(k)) or holds_secret(v))}
        if isinstance(node, list):
            return [clean(item) for item in node if not holds_secret(item)]
        return node

    return clean(config)
