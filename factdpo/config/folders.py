"""Where configs lie: factdpo's own conf/ and sweeps/, and those of the current folder; what folders can be called."""

import re
from pathlib import Path

import factdpo


def conf_folder() -> Path:
    """factdpo's own conf/: inside the package when it was installed from a wheel, else beside it in the checkout."""
    package = Path(factdpo.__file__).resolve().parent
    shipped = package / "_config" / "conf"
    return shipped if shipped.is_dir() else package.parent / "conf"


def conf_folders() -> list[Path]:
    """The folders of the groups, in the order in which Hydra searches them."""
    return [Path("conf"), conf_folder()]


def options() -> dict[str, dict[str, Path]]:
    """Group -> option -> its file, both in alphabetical order; of the same name the user's own file."""
    groups: dict[str, dict[str, Path]] = {}
    for conf in reversed(conf_folders()):
        for folder in (*conf.glob("*"), conf.parent / "sweeps"):
            if folder.is_dir() and folder.name != "hydra":
                files = {path.stem: path for path in folder.glob("*.yaml") if not path.name.startswith("wandb_")}
                groups[folder.name] = groups.get(folder.name, {}) | files
    return {group: dict(sorted(files.items())) for group, files in sorted(groups.items())}


def folder_name(text: str) -> str:
    """The text as a folder's name on any file system: letters, digits and `._=+-` only, never a path."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", text).strip("._")[:80].rstrip("._")
