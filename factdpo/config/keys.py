"""How the schema declares a key: once, with all that validate, help, the run id and the engine choice read of it."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from factdpo.config.schema import Config

Number = int | float
InId = bool | Literal["changed"]


class Dead(NamedTuple):
    """Settings under which nothing reads a key: a value other than its default is then refused."""

    words: str  # completes "has no effect ..."; {dpo[loss]} stands for the config's own value
    holds: Callable[["Config"], bool]


@dataclass(frozen=True)
class Key:
    """What the schema declares of one key."""

    default: Any
    help: str
    unit: str = ""
    low: Number | None = None  # smallest allowed value
    high: Number | None = None  # largest allowed value; only with low
    above: Number | None = None  # bound that the value must exceed
    dead: Dead | None = None
    batched: tuple[Any, ...] | None = None  # values that the batched engine computes, others need TRL; None: all
    in_id: InId = True  # False: cannot change a number, or the id has the bytes; changed: unless at its default
    locates: bool = False  # not in the id, but says where model, data or seeds come from: a command must repeat it
    options: tuple[str, ...] = ()  # of a text, for help and completion; an enum's are its names

    @property
    def bounds(self) -> str:
        """The allowed values in words; empty where any number will do."""
        if self.above is not None:
            return f"above {self.above}"
        if self.low is None:
            return ""
        return f"at least {self.low}" if self.high is None else f"between {self.low} and {self.high}"

    def allows(self, value: Number) -> bool:
        """Whether a number is finite and within the bounds; NaN never is."""
        low, high, above = self.low, self.high, self.above
        return (
            math.isfinite(value)
            and (above is None or value > above)
            and (low is None or value >= low)
            and (high is None or value <= high)
        )


def key(
    default: Any, help: str, *, unit: str = "", low: Number | None = None, high: Number | None = None,
    above: Number | None = None, dead: Dead | None = None, batched: tuple[Any, ...] | None = None, in_id: InId = True,
    locates: bool = False, options: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    """The dataclass field of a key."""
    metadata = {"key": Key(default, help, unit, low, high, above, dead, batched, in_id, locates, options)}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def group(schema: type, *, dead: Dead | None = None, in_id: InId = True) -> Any:
    """The dataclass field of a group of keys; `dead` and an `in_id` other than True hold for each of them."""
    return field(default_factory=schema, metadata={"dead": dead, "in_id": in_id})


def keys_of(schema: type) -> dict[str, Key]:
    """Every key of a schema by its dotted name, in the schema's order."""
    found = {}
    for f in dataclasses.fields(schema):
        if "key" in f.metadata:
            found[f.name] = f.metadata["key"]
        else:
            assert isinstance(f.default_factory, type), f"{f.name}: declare it with key() or group()"
            dead, in_id = f.metadata["dead"], f.metadata["in_id"]
            for name, inner in keys_of(f.default_factory).items():
                inner = dataclasses.replace(
                    inner, dead=inner.dead or dead, in_id=min(inner.in_id, in_id, key=(False, "changed", True).index)
                )
                found[f"{f.name}.{name}"] = inner
    return found
