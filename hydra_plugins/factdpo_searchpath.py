"""Where Hydra looks for options: conf/ and sweeps/ in the current folder, where there are any, and then factdpo's own.

No `from __future__ import annotations` here: a scanned plugin module that has it breaks every start of Hydra.
"""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin


class FactdpoSearchPath(SearchPathPlugin):
    """Adds to the search path of factdpo, and of no other Hydra application that shares the environment."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from factdpo.config.folders import conf_folder

        root = conf_folder().parent
        if not any(e.provider == "main" and e.path == str(root / "conf") for e in search_path.get_path()):
            return
        for scheme, folder in (("file", "conf"), (SweepsSource.scheme(), "sweeps")):
            ours, users = root / folder, Path.cwd() / folder
            if folder != "conf":  # which Hydra has already, as its main folder
                search_path.append("factdpo", f"{scheme}://{ours}")
            if users.is_dir() and users.resolve() != ours.resolve():
                search_path.prepend("current folder", f"{scheme}://{users}")


class SweepsSource(ConfigSource):
    """A folder of YAML files, shown as the config group `sweeps`, though it lies beside conf/ and not in it.

    Those named wandb_* are for `wandb sweep`: not listed, and refused with a word on what they are for.
    """

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider=provider, path=path)
        sources = Plugins.instance().discover(ConfigSource)
        hydras = next(source for source in sources if issubclass(source, ConfigSource) and source.scheme() == "file")
        self.files: ConfigSource = hydras(provider=provider, path=f"file://{self.path}")

    @staticmethod
    def scheme() -> str:
        return "factdpo-sweeps"

    def load_config(self, config_path: str) -> ConfigResult:
        inside = _inside(config_path) or config_path
        if _for_wandb(inside):
            from factdpo.config.schema import ConfigError

            file = Path(self.path) / f"{inside.removesuffix('.yaml')}.yaml"
            raise ConfigError(
                f"sweeps={inside}: is for Weights & Biases, whose server chooses its runs: `wandb sweep {file}`, "
                "then the `wandb agent` command that it prints"
            )
        return self.files.load_config(inside)

    def is_config(self, config_path: str) -> bool:
        inside = _inside(config_path)
        return bool(inside) and self.files.is_config(inside)

    def is_group(self, config_path: str) -> bool:
        inside = _inside(config_path)
        return config_path == "" or (inside is not None and self.files.is_group(inside))

    def available(self) -> bool:
        return self.files.available()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter is ObjectType.CONFIG else ["sweeps"]
        names = self.files.list(_inside(config_path) or "", results_filter)
        return [name for name in names if not _for_wandb(name)]


def _inside(config_path: str) -> str | None:
    """`sweeps/beta` -> `beta`, `sweeps` -> "", and None for what is not in the group."""
    head, _, rest = config_path.partition("/")
    return rest if head == "sweeps" else None


def _for_wandb(name: str) -> bool:
    return name.startswith("wandb_")
