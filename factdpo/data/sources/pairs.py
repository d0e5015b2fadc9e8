"""Facts from the user's own table: a prompt with its true and its false answer in each row."""

from collections.abc import Iterator

from factdpo.config.schema import DataConfig, to_dict
from factdpo.data import columns
from factdpo.data.facts import BadRow, Fact, RowCheck
from factdpo.data.files import rows

REQUIRED = ("prompt", "chosen", "rejected")


def read(cfg: DataConfig, check: RowCheck) -> Iterator[Fact]:
    """A fact per row, under the column names of data.columns."""
    names = to_dict(cfg.columns)
    for index, row in enumerate(rows(cfg)):
        first = f"{row.where.rpartition(':')[0]}:1" if index == 0 else row.where  # where the header is
        values = columns.pick(row.values, names, REQUIRED if index == 0 else (), first)
        try:
            texts = {field: columns.text(value, names[field], row.where) for field, value in values.items()}
            missing = [names[field] for field in REQUIRED if texts[field] is None]
            if missing:
                raise BadRow(f"{missing[0]} is empty", f"{row.where}: {missing[0]} is empty")
            fact = Fact(index, where=row.where, **texts | {"split": row.split})  # type: ignore[arg-type]
        except BadRow as bad:
            check.refuse(bad.kind, str(bad))
        else:
            yield fact
