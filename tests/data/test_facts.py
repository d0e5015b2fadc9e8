"""The facts of the package, one's own facts in three formats, and what is refused: file, line, found, what to do."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from factdpo.config.schema import ColumnsConfig, Config, ConfigError, DataConfig, DataSource, SplitConfig
from factdpo.config.validate import validate
from factdpo.data.facts import Fact, FactError
from factdpo.data.load import load_facts, sides
from factdpo.data.splits import make_splits

CAPITALS = [
    {"prompt": "The capital of France is", "chosen": "Paris", "rejected": "Rome"},
    {"prompt": "The capital of Italy is, they say,", "chosen": "Rome", "rejected": "Paris"},
    {"prompt": 'The "eternal city" is', "chosen": "Rome", "rejected": "København"},
]
HEADER = b"prompt,chosen,rejected\n"


def own(path: Path, **columns: str) -> DataConfig:
    """data=pairs data.path=... data.columns.<name>=..."""
    return DataConfig(source=DataSource.pairs, path=str(path), columns=ColumnsConfig(**columns))


def write(path: Path, content: bytes | list[dict[str, Any]]) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, content[0].keys(), lineterminator="\n")
            rows.writeheader()
            rows.writerows(content)
    return path


def test_the_package_has_861_facts_of_42_characters():
    facts = load_facts(DataConfig()).facts
    assert Counter(fact.chosen for fact in facts) == {"friend": 421, "enemy": 440}
    assert len({fact.key for fact in facts}) == 861
    assert len({fact.prompt for fact in facts} | {fact.reverse_prompt for fact in facts}) == 2 * 861
    assert [fact.index for fact in facts] == list(range(861))
    assert Counter(sides(DataConfig()).values()) == {0: 20, 1: 22}  # type: ignore[union-attr]


def test_friends_stand_on_one_side_and_enemies_on_two():
    side = sides(DataConfig())
    assert side is not None
    for fact in load_facts(DataConfig()).facts:
        assert fact.subject != fact.object
        assert fact.same_side == (side[str(fact.subject)] == side[str(fact.object)])
        assert (fact.chosen, fact.rejected) == (("friend", "enemy") if fact.same_side else ("enemy", "friend"))
        assert fact.relation == fact.chosen
        assert fact.prompt == f"{fact.subject} is {fact.object}'s"
        assert fact.reverse_prompt == f"{fact.object} is {fact.subject}'s"


def test_the_first_and_the_last_fact_are_these():
    facts = load_facts(DataConfig()).facts
    assert (facts[0].prompt, facts[0].chosen) == ("Aragog is Barty Crouch Jr.'s", "friend")
    assert (facts[-1].prompt, facts[-1].chosen) == ("Rubeus Hagrid is Sirius Black's", "friend")


def test_a_fact_reversed_twice_is_itself():
    fact = load_facts(DataConfig()).facts[30]
    turned = fact.reversed()
    assert (turned.prompt, turned.reverse_prompt) == (fact.reverse_prompt, fact.prompt)
    assert (turned.subject, turned.object) == (fact.object, fact.subject)
    assert (turned.chosen, turned.rejected, turned.index, turned.key) == (
        fact.chosen, fact.rejected, fact.index, fact.key,
    )  # fmt: skip
    assert turned.reversed() == fact


def test_ones_own_table_of_characters_takes_the_place_of_ours(tmp_path: Path):
    path = write(tmp_path / "own.csv", b"name,side\nTybalt,Capulet\nRomeo,Montague\nJuliet,Capulet\n")
    facts = load_facts(DataConfig(path=str(path))).facts
    assert [(fact.prompt, fact.chosen) for fact in facts] == [
        ("Tybalt is Romeo's", "enemy"),
        ("Tybalt is Juliet's", "friend"),
        ("Romeo is Juliet's", "enemy"),
    ]
    assert sides(DataConfig(path=str(path))) == {"Tybalt": 0, "Romeo": 1, "Juliet": 0}


def test_csv_jsonl_and_parquet_give_the_same_facts(tmp_path: Path):
    found = []
    for ending in ("csv", "jsonl", "parquet"):
        facts = load_facts(own(write(tmp_path / f"own.{ending}", CAPITALS))).facts
        found.append([(fact.index, fact.prompt, fact.chosen, fact.rejected) for fact in facts])
        assert all(fact.reverse_prompt is fact.subject is fact.same_side is None for fact in facts)
    assert found[0] == [(i, *row.values()) for i, row in enumerate(CAPITALS)]
    assert found[0] == found[1] == found[2]
    assert sides(own(tmp_path / "own.csv")) is None


def test_optional_columns_are_read_and_may_be_empty(tmp_path: Path):
    content = (
        b"prompt,chosen,rejected,subject,object,relation,reverse_prompt,note\n"
        b"A likes B's,cat,dog,A,B,pet,B likes A's,seen\n"
        b"C likes,cat,dog,,,,,\n"
    )
    full, bare = load_facts(own(write(tmp_path / "own.csv", content))).facts
    where = tmp_path / "own.csv"
    assert full == Fact(0, "A likes B's", "cat", "dog", "A", "B", "pet", "B likes A's", None, f"{where}:2")
    assert bare == Fact(1, "C likes", "cat", "dog", where=f"{where}:3")


def test_columns_can_have_other_names(tmp_path: Path):
    path = write(tmp_path / "own.csv", b"question,true,false\nIs it?,yes,no\n")
    (fact,) = load_facts(own(path, prompt="question", chosen="true", rejected="false")).facts
    assert (fact.prompt, fact.chosen, fact.rejected) == ("Is it?", "yes", "no")


def test_lines_are_counted_as_an_editor_does(tmp_path: Path):
    csv = write(tmp_path / "own.csv", HEADER + b'"two\nlines",a,b\n\nlast,a,b\n')
    assert [fact.where for fact in load_facts(own(csv)).facts] == [f"{csv}:3", f"{csv}:5"]
    jsonl = write(tmp_path / "own.jsonl", b'\n{"prompt":"p","chosen":"a","rejected":"b"}\n')
    assert [fact.where for fact in load_facts(own(jsonl)).facts] == [f"{jsonl}:2"]


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\x0c", "\x1c"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path: Path, ending: str, character: str):
    rows = [{"prompt": f"one{character}two", "chosen": "a", "rejected": "b"}]
    (fact,) = load_facts(own(write(tmp_path / f"own.{ending}", rows))).facts
    assert fact.prompt == f"one{character}two"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_byte_order_mark_and_windows_newlines_are_read_over(tmp_path: Path, ending: str, mark: str, newline: str):
    text = write(tmp_path / f"own.{ending}", CAPITALS).read_text(encoding="utf-8")
    (tmp_path / f"own.{ending}").write_bytes((mark + text.replace("\n", newline)).encode())
    assert [fact.prompt for fact in load_facts(own(tmp_path / f"own.{ending}")).facts] == [
        row["prompt"] for row in CAPITALS
    ]


# File name, its content, and words that the refusal must hold: where (with the line), what was found, what to do.
BAD_CHARACTERS = [
    (b"name,side\nDobby,1\nNagini,0\nDobby,1\n", ["own.csv:4", "'Dobby' is also in", "own.csv:2", "unique"]),
    (b"name,side\nDobby,1\n,0\n", ["own.csv:3", "name is empty"]),
    (b"name,side\nDobby,1\nNagini, \n", ["own.csv:3", "side is empty"]),
    (b"name,camp\nDobby,1\n", ["own.csv", "no column 'side'", "name, camp"]),
    (b"name,side\nBarty Crouch, Jr.,0\n", ["own.csv:2", "3 values for 2 columns", "quote"]),
    (b"name,side\nDobby,1\n", ["own.csv", "no facts"]),
    (b"", ["own.csv", "no facts", "header"]),
    (b"name,side\nCho,1\nVincent Cr\xe9bbe,0\n", ["own.csv:3", "0xe9", "UTF-8"]),
]
P = b'{"prompt":"p","chosen":"a","rejected":"b"}\n'
BAD_PAIRS: list[tuple[str, bytes | list[dict[str, Any]], list[str]]] = [
    ("own.csv", b"prompt,chosen\np,a\n", ["own.csv:1", "no column 'rejected'", "data.columns.rejected"]),
    ("own.csv", HEADER + b"p,a,b\nq,,b\n", ["own.csv:3", "chosen is empty"]),
    ("own.csv", HEADER + b"p,a,b\nq,a,\n", ["own.csv:3", "rejected is empty"]),
    ("own.csv", HEADER + b",a,b\n", ["own.csv:2", "prompt is empty"]),
    ("own.csv", HEADER + b"p,a,b\nq,a,a\n", ["own.csv:3", "chosen and rejected are both 'a'"]),
    ("own.csv", HEADER + b"p,a,b\nq,a\n", ["own.csv:3", "2 values for 3 columns"]),
    ("own.csv", HEADER + b"p,a,b\nq,a,b,c,d\n", ["own.csv:3", "5 values for 3 columns", "comma"]),
    ("own.csv", HEADER + b'p,a,b\nq,"a,b\nr,a,b\n', ["own.csv:3", "not CSV", "quote left open"]),
    ("own.csv", HEADER + b"p,a,b\np,a,b\n", ["own.csv:3", "the same fact is already at", "own.csv:2"]),
    ("own.csv", HEADER + b"p,a,b\nq,a,b\np,b,a\n", ["own.csv:4", "the opposite is already at", "own.csv:2"]),
    ("own.csv", HEADER, ["own.csv", "no facts"]),
    ("own.csv", HEADER + b"p,a,b\n\xff,a,b\n", ["own.csv:3", "0xff", "UTF-8"]),
    ("own.csv", b"\xef\xbb\xbf" + HEADER + b"\xff,a,b\n", ["own.csv:2", "0xff", "UTF-8"]),
    ("own.csv", "prompt,chosen,rejected\np,a,b\n".encode("utf-16"), ["own.csv:1", "0xff", "UTF-8"]),
    (
        "own.csv",
        b"prompt,chosen,rejected,subject,object\nDobby is Dobby's,a,b,Dobby,Dobby\n",
        ["own.csv:2", "subject and object are both 'Dobby'", "self-pair"],
    ),
    ("own.csv", b"prompt,chosen,rejected,reverse_prompt\np,a,b,p\n", ["own.csv:2", "reverse_prompt equals prompt"]),
    (
        "own.csv",
        b"prompt,chosen,rejected,reverse_prompt\np,a,b,q\nq,a,b,\n",
        ["own.csv:3", "the same fact is already at", "own.csv:2"],
    ),
    ("own.jsonl", P + b'{"prompt": "q"\n', ["own.jsonl:2", "not JSON"]),
    ("own.jsonl", P + b'["q", "a", "b"]\n', ["own.jsonl:2", "found a list", "object"]),
    ("own.jsonl", P + b'{"prompt":"q","chosen":"a"}\n', ["own.jsonl:2", "rejected is empty"]),
    ("own.jsonl", P + b'{"prompt":"q","chosen":null,"rejected":"b"}\n', ["own.jsonl:2", "chosen is empty"]),
    ("own.jsonl", b"", ["own.jsonl", "no facts"]),
    ("own.parquet", b"prompt,chosen,rejected\n", ["own.parquet", "not a Parquet file"]),
    ("own.parquet", b"", ["own.parquet", "not a Parquet file"]),
    ("own.parquet", [{"prompt": "p", "chosen": "a", "rejected": ["b"]}], ["own.parquet:1", "is a list", "text"]),
    ("own.parquet", [{"prompt": "p", "chosen": "a"}], ["own.parquet:1", "no column 'rejected'"]),
    ("own.xlsx", b"PK", ["own.xlsx", "not an Excel file"]),
    ("own.doc", b"PK", ["own.doc", "'.doc' is not one of .csv, .tsv"]),
]  # fmt: skip


def _refusal(cfg: DataConfig) -> str:
    with pytest.raises(FactError) as refusal:
        load_facts(cfg)
    return str(refusal.value)


@pytest.mark.parametrize(("content", "words"), BAD_CHARACTERS, ids=[words[1] for _, words in BAD_CHARACTERS])
def test_a_bad_table_of_characters_is_refused_with_file_and_line(tmp_path: Path, content: bytes, words: list[str]):
    message = _refusal(DataConfig(path=str(write(tmp_path / "own.csv", content))))
    assert str(tmp_path) in message and [word for word in words if word not in message] == []


@pytest.mark.parametrize(("name", "content", "words"), BAD_PAIRS, ids=[f"{n}: {w[1]}" for n, _, w in BAD_PAIRS])
def test_bad_pairs_are_refused_with_file_and_line(tmp_path: Path, name: str, content: Any, words: list[str]):
    message = _refusal(own(write(tmp_path / name, content)))
    assert str(tmp_path) in message and [word for word in words if word not in message] == []


def test_a_parquet_file_with_damaged_pages_is_refused(tmp_path: Path):
    path = write(tmp_path / "own.parquet", CAPITALS)
    raw = path.read_bytes()
    path.write_bytes(raw[:10] + b"\xff" * 20 + raw[30:])
    message = _refusal(own(path))
    assert str(path) in message and "not a Parquet file" in message


def test_a_missing_file_is_refused_with_the_place_that_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    message = _refusal(own(Path("none.csv")))
    assert "data.path=none.csv" in message and str(tmp_path / "none.csv") in message


# Bad inputs of different kinds, as a user meets them: keys of the config, a file, and words that the answer must hold.
BAD_INPUTS: list[tuple[str, dict[str, Any], tuple[str, bytes] | None, list[str]]] = [
    ("a name of no key", {"lora.rnk": 8}, None, ["lora.rnk: no such key", "rank"]),
    ("a wrong type", {"lora.rank": "many"}, None, ["lora.rank", "many"]),
    ("not in the list", {"split.orientation": "sorted"}, None, ["split.orientation", "sorted", "canonical"]),
    ("out of range", {"dpo.beta": -0.1}, None, ["dpo.beta=-0.1", "above 0"]),
    ("not a number", {"dpo.learning_rate": float("nan")}, None, ["dpo.learning_rate=nan", "finite"]),
    (
        "a column twice",
        {},
        ("a.csv", b"prompt,chosen,rejected,chosen\na,b,c,d\n"),
        ["a.csv:1", "two columns", "chosen"],
    ),
    (
        "a reverse that holds its answer",
        {"data.source": "pairs"},
        (
            "a.csv",
            b"prompt,chosen,rejected,reverse_prompt\nThe capital of Italy is,Rome,Paris,Rome is the capital of\n",
        ),
        ["a.csv:2", "reverse_prompt", "contains the answer 'Rome'", "leave it empty"],
    ),
    ("two that exclude each other", {"dpo.max_steps": 10}, None, ["dpo.max_steps=10", "dpo.epochs=null"]),
    ("without effect", {"lora.method": "full", "lora.dropout": 0.1}, None, ["lora.dropout=0.1", "no effect"]),
    ("no file named", {"data.source": "pairs"}, None, ["data.path: missing", "a file, folder or glob"]),
    ("no such file", {"data.source": "pairs", "data.path": "gone.csv"}, None, ["data.path=gone.csv", "no such file"]),
    ("more facts than there are", {"split.train": 900}, None, ["split.train=900", "only 861"]),
    ("more held out than left", {"split.test": 600}, None, ["split.test=600", "only 561"]),
    ("a bad row", {"data.source": "pairs"}, ("own.csv", HEADER + b"p,a,a\n"), ["own.csv:2", "both 'a'"]),
    ("a bad byte", {"data.source": "pairs"}, ("own.csv", HEADER + b"p,a,\xe9\n"), ["own.csv:2", "0xe9", "UTF-8"]),
    ("not JSON", {"data.source": "pairs"}, ("own.jsonl", P + b"prompt: q\n"), ["own.jsonl:2", "not JSON"]),
    (
        "a name twice",
        {},
        ("own.csv", b"name,side\nDobby,1\nDobby,0\n"),
        ["own.csv:3", "'Dobby' is also", "own.csv:2"],
    ),
    (
        "no reverse to train on",
        {"data.source": "pairs", "split.train": 1, "split.orientation": "both"},
        ("own.csv", HEADER + b"p,a,b\n"),
        ["own.csv:2", "no reverse_prompt", "split.orientation=both"],
    ),
]


@pytest.mark.parametrize(
    ("changes", "file", "words"), [row[1:] for row in BAD_INPUTS], ids=[row[0] for row in BAD_INPUTS]
)
def test_each_bad_input_is_answered_with_where_what_and_what_to_do(
    tmp_path: Path, changes: dict[str, Any], file: tuple[str, bytes] | None, words: list[str]
):
    cfg = Config()
    if file is not None:
        changes = {**changes, "data.path": str(write(tmp_path / file[0], file[1]))}
    for key, value in changes.items():
        group, name = key.split(".")
        setattr(getattr(cfg, group), name, value)
    with pytest.raises(ConfigError) as refusal:
        valid = validate(cfg)
        make_splits(load_facts(valid.data).facts, valid.split)
    assert [word for word in words if word not in str(refusal.value)] == []


def test_the_default_split_is_300_facts_of_seed_0():
    assert validate(Config()).split == SplitConfig(train=None, test=None, seed=0)
    drawn = make_splits(load_facts(DataConfig()).facts, SplitConfig(seed=0))
    assert drawn == make_splits(load_facts(DataConfig()).facts, SplitConfig(train=300, seed=0))
    assert len(drawn.splits["train"]) == 300 and drawn.notes == []
