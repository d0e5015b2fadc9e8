"""What the id and the folder of a run depend on in the rows of its data, kept in the cache by the data's bytes.

So a look-up of a run that is finished reads no row, which of a large table or a data set on the hub takes seconds.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from factdpo.config.schema import Config, to_dict
from factdpo.data.files import has_own_splits, has_reverses, is_built_in
from factdpo.store import cache

FILE = "shape.json"


class Shape(NamedTuple):
    own_splits: bool  # whether the data itself says which rows are trained on
    reverses: bool  # whether the order of names can be drawn


def shape_of(cfg: Config, identity: Any) -> Shape:
    """The shape of the data of a config, whose bytes are `identity`; raises FactError for what cannot be read."""
    if is_built_in(cfg.data):
        return Shape(has_own_splits(cfg.data), has_reverses(cfg.data))
    folder = Path(cfg.out) / "cache" / "shapes" / cache.signature([to_dict(cfg.data), identity])
    if cache.damage(folder) is None:
        return Shape(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    found = Shape(has_own_splits(cfg.data), has_reverses(cfg.data))
    with suppress(OSError):  # a plan may look into an `out` that it must not write: then the rows are read each time
        cache.fetch(folder, lambda target: _write(found, target))
    return found


def _write(found: Shape, target: Path) -> None:
    (target / FILE).write_text(json.dumps(found._asdict()), encoding="utf-8")
