"""What Weights & Biases will do here, and what it may be told: read from config, environment and files, no network."""

import configparser
import netrc
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from factdpo.config.schema import TrackConfig, TrackMode

DEFAULT_BASE_URL = "https://api.forge.coreweave.com"  # wandb's own, since 0.31
SECRET_NAME = re.compile(r"key|token(?!s)|passw|secret|credential", re.IGNORECASE)  # max_new_tokens is no secret

server_failed = False  # in this process: the next run of a sweep need not wait for the same timeout again


def wandb_mode(track: TrackConfig, env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """What W&B will do (online, offline or disabled) and why; asks files and the environment, never the network.

    WANDB_MODE and track.mode may both be set: the more private of the two is taken.
    """
    if not track.wandb:
        return "disabled", "track.wandb=false"
    private = {"online": 0, "offline": 1, "disabled": 2}
    wanted = {f"track.mode={track.mode.name}": track.mode.name} if track.mode is not TrackMode.auto else {}
    if said := setting("mode", env):
        known = {"run": "online", "shared": "online", "dryrun": "offline"}.get(said, said)
        wanted[f"WANDB_MODE={said}" + ("" if known in private else " is not a mode of W&B")] = known
    why, mode = max(wanted.items(), key=lambda pair: private.get(pair[1], 1), default=("", "auto"))
    if mode in ("auto", "online"):
        source = key_source(env)
        if source is None:
            return "offline", "no API key found" + (f" for {why}" if why else "")
        if server_failed:
            return "offline", "the server did not take an earlier run"
        return "online", ", ".join(filter(None, [why, f"API key from {source}"]))
    return (mode if mode in private else "offline"), why


def wandb_sentence(track: TrackConfig, folder: Path, env: Mapping[str, str] = os.environ) -> str:
    """What W&B will do with the run or the sweep in a folder, in one line for people."""
    mode, why = wandb_mode(track, env)
    if mode == "disabled":
        return f"W&B off: {why}"
    if mode == "online":
        return f"W&B online: project {track.project} ({why})"
    return f"W&B offline: {why}; `factdpo sync {folder}` uploads later"


def key_source(env: Mapping[str, str]) -> str | None:
    """Where W&B will find an API key, None when nowhere: the places it looks at, in its order."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if env.get(name):
            return name
    base_url = setting("base_url", env)
    hosts = [urlsplit(base_url).netloc] if base_url else [urlsplit(DEFAULT_BASE_URL).netloc, "api.wandb.ai"]
    home = Path(env.get("HOME", "~")).expanduser()
    for path in [Path(env["NETRC"])] if env.get("NETRC") else [home / ".netrc", home / "_netrc"]:
        try:
            found = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError):
            continue
        if any((login := found.authenticators(host)) and login[2] for host in hosts):
            return str(path)
    return "W&B's settings file" if setting("api_key", env) else None


def setting(key: str, env: Mapping[str, str]) -> str | None:
    """A setting where W&B looks for it: in the environment, the current folder's settings, the user's settings."""
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
    """A config less every key that is named like a secret and every value that holds one of the environment's."""
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
