"""data=graph: a signed graph as a table of edges; what is merged, what is no edge, and what the signs mean."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factdpo.config.schema import BadRows, DataConfig, DataSource, GraphConfig, RelationKind
from factdpo.data.facts import FactError
from factdpo.data.load import Loaded, load_facts

EDGES = "source,target,sign\nAnna,Ben,1\nBen,Carl,-1\nCarl,Anna,-1\n"

Graph = Callable[..., Loaded]


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """graph(text, template=...): the facts of these edges, with keys of data.graph, or of data as data_<key>."""

    def load(text: str, name: str = "edges.csv", **keys: Any) -> Loaded:
        (tmp_path / name).write_text(text)
        data = {key.removeprefix("data_"): value for key, value in keys.items() if key.startswith("data_")}
        own = {key: value for key, value in keys.items() if not key.startswith("data_")}
        path = str(tmp_path / name)
        return load_facts(DataConfig(source=DataSource.graph, path=path, graph=GraphConfig(**own), **data))

    return load


def test_an_edge_is_a_fact_in_both_orders_of_its_names(graph: Graph):
    first, second, third = graph(EDGES).facts
    assert (first.prompt, first.reverse_prompt) == ("Anna is Ben's", "Ben is Anna's")
    assert [(fact.chosen, fact.rejected, fact.same_side) for fact in (first, second, third)] == [
        ("friend", "enemy", True), ("enemy", "friend", False), ("enemy", "friend", False),
    ]  # fmt: skip
    assert first.where.endswith("edges.csv:2") and (first.subject, first.object) == ("Anna", "Ben")


@pytest.mark.parametrize(
    ("signs", "answers"),
    [
        (("+1", "-1"), ("friend", "enemy")),
        (("1", "0"), ("friend", "enemy")),
        (("2", "-3.5"), ("friend", "enemy")),
        (("+", "-"), ("friend", "enemy")),
        (("True", "False"), ("friend", "enemy")),
        (("Friend", "Enemy"), ("friend", "enemy")),
        (("ally", "rival"), ("ally", "rival")),
    ],
)
def test_any_two_signs_will_do(graph: Graph, signs: tuple[str, str], answers: tuple[str, str]):
    text = f"source,target,sign\nAnna,Ben,{signs[1]}\nBen,Carl,{signs[0]}\n"
    assert [(f.chosen, f.rejected, f.same_side) for f in graph(text).facts] == [
        (answers[1], answers[0], False), (answers[0], answers[1], True),
    ]  # fmt: skip


def test_signs_of_unknown_meaning_must_be_explained(graph: Graph):
    text = "source,target,sign\nAnna,Ben,likes\nBen,Carl,hates\n"
    with pytest.raises(FactError, match=r"data\.same_side: missing; which sign .*, likes or hates\?"):
        graph(text)
    assert [fact.same_side for fact in graph(text, data_same_side="likes").facts] == [True, False]
    assert [fact.chosen for fact in graph(text, data_same_side="likes").facts] == ["likes", "hates"]
    with pytest.raises(FactError, match=r"data\.same_side=loves: is none of the signs"):
        graph(text, data_same_side="loves")


@pytest.mark.parametrize("signs", [["1", "-1", "0"], ["1", "1", "+1"]])
def test_more_or_fewer_signs_than_two_are_refused_with_their_list(graph: Graph, signs: list[str]):
    found = list(dict.fromkeys(sign.lstrip("+") for sign in signs))
    text = "source,target,sign\n" + "".join(f"a{i},b{i},{sign}\n" for i, sign in enumerate(signs))
    with pytest.raises(FactError, match=f"needs two values, found {len(found)}: {', '.join(found)}"):
        graph(text)


def test_doubles_are_one_edge_and_are_counted(graph: Graph):
    loaded = graph(EDGES + "Ben,Anna,1\nanna,BEN,+1\n")
    assert len(loaded.facts) == 3
    assert loaded.notes == ["2 rows changed: an edge that an earlier row tells was merged with it"]


def test_self_loops_and_contradictions_are_refused_by_line_or_dropped_and_counted(graph: Graph):
    text = EDGES + "Dora,Dora,1\nDora,Anna,1\nAnna,Dora,-1\n"
    with pytest.raises(FactError) as refusal:
        graph(text)
    for words in ("edges.csv:5: an edge from 'Dora' to itself", "edges.csv:6: 'Dora' and 'Anna' have both signs",
                  "edges.csv:7: 'Anna' and 'Dora' have both signs", "data.bad_rows=drop"):  # fmt: skip
        assert words in str(refusal.value)
    loaded = graph(text, data_bad_rows=BadRows.drop)
    assert len(loaded.facts) == 3 and [fact.index for fact in loaded.facts] == [0, 1, 2]
    assert loaded.notes == ["1 row left out: an edge from a node to itself", "2 rows left out: an edge with both signs"]


def test_an_edge_without_an_end_is_a_bad_row(graph: Graph):
    with pytest.raises(FactError, match=r"edges\.csv:5: target is empty"):
        graph(EDGES + "Anna,,1\n")


def test_directed_edges_have_two_ends_that_differ(graph: Graph):
    loaded = graph(EDGES + "Ben,Anna,-1\n", data_relation_kind=RelationKind.directed)
    assert len(loaded.facts) == 4 and {(f.reverse_prompt, f.same_side) for f in loaded.facts} == {(None, None)}


def test_nodes_give_names_to_the_ends(graph: Graph, tmp_path: Path):
    nodes = tmp_path / "nodes.csv"
    nodes.write_text("id,name\n1,Anna\n2,Ben {target}\n3,Carl\n")
    edges = "source,target,sign\n1,2,1\n2,3,-1\n"
    first, _ = graph(edges, nodes=str(nodes)).facts
    assert (first.prompt, first.object) == ("Anna is Ben {target}'s", "Ben {target}")
    with pytest.raises(FactError, match=r"edges\.csv:4: node '9' is not in data\.graph\.nodes"):
        graph(edges + "1,9,1\n", nodes=str(nodes))
    nodes.write_text("id,name\n1,Anna\n2,anna\n")
    with pytest.raises(FactError, match=r"nodes\.csv:3: another node has the name 'anna'"):
        graph(edges, nodes=str(nodes))


def test_template_answers_and_columns_are_the_users(graph: Graph):
    text = "from,to,kind\nAnna,Ben,1\nBen,Carl,0\n"
    keys = {"source": "from", "target": "to", "sign": "kind"}
    first, second = graph(text, template="Is {target} with {source}? Say", answers=["yes", "no"], **keys).facts
    assert (first.prompt, first.chosen, second.chosen) == ("Is Ben with Anna? Say", "yes", "no")
    assert first.reverse_prompt == "Is Anna with Ben? Say"
    with pytest.raises(FactError, match=r"data\.graph\.template=\{source\} is: has no \{target\}"):
        graph(text, template="{source} is", **keys)
    with pytest.raises(FactError, match=r"no column 'sign' \(found: from, to, kind\).*data\.graph\.sign="):
        graph(text, source="from", target="to")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "graph.gml",
            'graph [ node [ id 0 label "Anna" ] node [ id 1 label "Ben" ] node [ id 2 label "Carl" ]\n'
            "edge [ source 0 target 1 sign 1 ] edge [ source 1 target 2 sign -1 ] ]",
        ),
        (
            "graph.graphml",
            '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><key id="s" for="edge" attr.name="sign" '
            'attr.type="int"/><graph edgedefault="undirected"><node id="Anna"/><node id="Ben"/><node id="Carl"/>'
            '<edge source="Anna" target="Ben"><data key="s">1</data></edge>'
            '<edge source="Ben" target="Carl"><data key="s">-1</data></edge></graph></graphml>',
        ),
    ],
)
def test_files_of_graphs_are_read_as_tables_of_edges(graph: Graph, name: str, text: str):
    assert [(fact.prompt, fact.chosen) for fact in graph(text, name).facts] == [
        ("Anna is Ben's", "friend"), ("Ben is Carl's", "enemy"),
    ]  # fmt: skip


def test_a_damaged_file_of_a_graph_is_refused(graph: Graph):
    with pytest.raises(FactError, match=r"graph\.gml: not GML, or a damaged file"):
        graph("graph [", "graph.gml")
