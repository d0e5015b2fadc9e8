"""Whatever a file of facts holds, it is read, or refused in a short message that names it."""

import functools
import json
import os
from pathlib import Path

import networkx
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factdpo.config.schema import Config, ConfigError, DataConfig, DataSource
from factdpo.data.facts import FactError
from factdpo.data.load import load_facts

ROWS = [
    {"prompt": f"The capital of {a} is", "chosen": b, "rejected": c, "subject": a, "paraphrases": None}
    for a, b, c in (("France", "Paris", "Rome"), ("Ítaly", "Rome", "Oslo"), ("Norway", "Oslo", "Paris"))
]
NASTY = [
    b"\\ud800", b"9" * 5000, b"[" * 50_000, b'{"a":' * 20_000, b"\x00", b"NaN", b"1e999", b"\xff\xfe", b'"', b"\r",
    b",,,,", b"\xe2\x80\xae", b"x" * 10_000, b"null", b"[]", b"\xed\xa0\x80", b"<!ENTITY a 'b'>", b"-", b"\n\n",
]  # fmt: skip
FORMATS = ["csv", "tsv", "jsonl", "json", "parquet", "arrow", "xlsx", "gml", "graphml", "jsonl.gz", "csv.xz"]
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))  # `make faults` looks longer
quick = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@functools.cache
def sound(ending: str, folder: Path) -> bytes:
    """A sound file of three facts in this format; of a graph, three edges."""
    frame, path = pd.DataFrame(ROWS).drop(columns="paraphrases"), folder / f"sound.{ending}"
    graph = networkx.Graph([(row["subject"], row["chosen"], {"relation": "capital"}) for row in ROWS])
    if ending.startswith(("csv", "tsv")):
        frame.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    elif ending.startswith("json"):
        frame.to_json(path, orient="records", lines="jsonl" in ending, force_ascii=False)
    elif ending == "parquet":
        frame.to_parquet(path)
    elif ending == "arrow":
        frame.to_feather(path, compression="uncompressed")
    elif ending == "xlsx":
        frame.to_excel(path, index=False)
    else:
        (networkx.write_gml if ending == "gml" else networkx.write_graphml)(graph, path)
    return path.read_bytes()


def read_or_refused(path: Path, source: DataSource) -> None:
    cfg = DataConfig(source=source, path=str(path))
    if source is DataSource.graph:
        cfg.graph = Config().data.graph
    try:
        load_facts(cfg)
    except ConfigError as error:
        assert len(str(error)) <= 2000 and str(path.name) in str(error), error


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[float, int, bytes]]:
    """(where, as a share; bytes that go there; what comes in their place), a few."""
    piece = st.one_of(st.sampled_from(NASTY), st.binary(max_size=8))
    return draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), piece), min_size=1, max_size=3))


def damaged(data: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for share, gone, piece in changes:
        at = int(share * len(data))
        data = data[:at] + piece + data[at + gone :]
    return data


@pytest.mark.parametrize("ending", FORMATS)
@settings(quick, max_examples=40 * TIMES)
@given(changes=damages())
def test_a_damaged_file_of_facts_is_read_or_refused(
    ending: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, changes: list[tuple[float, int, bytes]]
):
    path = tmp_path / f"facts.{ending}"
    path.write_bytes(damaged(sound(ending, tmp_path_factory.getbasetemp()), changes))
    read_or_refused(path, DataSource.graph if ending in ("gml", "graphml") else DataSource.pairs)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.text(alphabet="\ud800a", max_size=3)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
)


@pytest.mark.parametrize("source", [DataSource.pairs, DataSource.preference, DataSource.edits, DataSource.triples])
@settings(quick, max_examples=40 * TIMES)
@given(rows=st.lists(st.dictionaries(st.sampled_from([*ROWS[0], "object", "relation", "x"]), values), max_size=4))
def test_rows_of_any_values_are_read_or_refused(source: DataSource, tmp_path: Path, rows: list[dict[str, object]]):
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read_or_refused(path, source)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}', ":1: holds half of a character"),
        ('{"prompt": "a", "chosen": ' + "9" * 5000 + ', "rejected": "c"}', ":1: not JSON: Exceeds the limit"),
        ('{"prompt": ' + "[" * 100_000, ":1: not JSON: maximum recursion depth exceeded"),
        ("[" * 100_000, ": not JSON: maximum recursion depth exceeded"),
        ('{"' + "x" * 100_000 + '": 1}', "facts.jsonl:1: "),
    ],
    ids=range(5),
)
def test_what_fuzzing_found_is_refused_by_name(tmp_path: Path, text: str, says: str):
    path = tmp_path / "facts.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(FactError) as refused:
        load_facts(DataConfig(source=DataSource.pairs, path=str(path)))
    assert says in str(refused.value) and len(str(refused.value)) <= 2000


def test_a_date_that_no_calendar_has_is_refused_by_name(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "facts.parquet"
    days = pyarrow.array([2**31 - 1], pyarrow.int32()).cast(pyarrow.date32())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "chosen": days, "rejected": ["b"]}), path)
    with pytest.raises(FactError, match=r"facts.parquet: cannot be read \(OverflowError: days=2147483647; must have"):
        load_facts(DataConfig(source=DataSource.pairs, path=str(path)))
