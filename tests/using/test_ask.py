"""What the base and the trained model say, side by side, against the record of the run and transformers' own words."""

import io
import math

import pyarrow.parquet
import pytest
import torch
from rich.console import Console

from factdpo.commands import ask as command
from factdpo.config.schema import ConfigError
from factdpo.using.ask import Candidate, Chat, Reply
from factdpo.using.finished import Finished


def rows_of(run: Finished, model: str) -> list[dict]:
    rows = pyarrow.parquet.read_table(run.folder / "items.parquet").to_pylist()
    return [row for row in rows if row["model"] == model]


@pytest.fixture(scope="module", params=["adapter_run", "full_run"])
def chat(request: pytest.FixtureRequest) -> Chat:
    return Chat(request.getfixturevalue(request.param))


def test_the_answers_of_a_fact_have_the_probabilities_of_the_record(chat: Chat):
    for base, trained in list(zip(rows_of(chat.run, "base"), rows_of(chat.run, "trained"), strict=True))[::9]:
        reply = chat.ask(f" {trained['prompt']} ", tokens=1)
        assert reply.split == trained["split"]
        found = {one.text: one for one in reply.candidates}
        assert found.keys() == {trained["chosen"], trained["rejected"]}
        for kind in ("chosen", "rejected"):
            one = found[trained[kind]]
            assert one.is_true == (kind == "chosen")
            assert one.base == pytest.approx(math.exp(base[f"{kind}_logp_nats"]), abs=1e-4)
            assert one.trained == pytest.approx(math.exp(trained[f"{kind}_logp_nats"]), abs=1e-4)
        assert [one.trained for one in reply.candidates] == sorted((o.trained for o in reply.candidates), reverse=True)


def test_any_other_prompt_has_the_likeliest_next_tokens_and_greedy_words(chat: Chat, nano_base):
    reply = chat.ask("The capital of France is", tokens=6, top=3)
    ids = torch.tensor(nano_base.encoder.encode(["The capital of France is"]))
    said = nano_base.model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert reply.greedy[0] == nano_base.tokenizer.decode(said, skip_special_tokens=True)
    shares = nano_base.model(ids).logits[0, -1].softmax(-1)
    top = {repr(nano_base.tokenizer.decode([token])): shares[token].item() for token in shares.topk(3).indices}
    assert reply.split is None and 3 <= len(reply.candidates) <= 6
    shown = {one.text: one.base for one in reply.candidates}
    assert {text: shown[text] for text in top} == pytest.approx(top, abs=1e-5)
    assert sum(one.trained for one in reply.candidates) != pytest.approx(sum(shown.values()))  # it has learned


def test_a_seed_decides_what_is_sampled_and_the_callers_generator_stays(chat: Chat):
    state = torch.random.get_rng_state()
    first, again, other = (chat.ask("A wizard is", tokens=12, seed=seed).sampled for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(state, torch.random.get_rng_state())
    cold = chat.ask("A wizard is", tokens=12, temperature=1e-4)
    assert cold.sampled == cold.greedy


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("  ", {}, "the prompt is empty"),
        ("A", {"tokens": 0}, "--tokens 0: must be a whole number from 1"),
        ("A", {"tokens": 256}, "--tokens 256: the model takes 256 tokens and the prompt has 1; give 1 to 255"),
        ("A", {"tokens": 2.5}, r"--tokens 2\.5: must be a whole number"),
        ("A", {"top": -1}, "--top -1: must be a whole number from 1"),
        ("A", {"seed": 2**70}, "--seed 1180591620717411303424: must be a whole number from 0 to"),
        ("A", {"temperature": 1e-300}, r"--temperature 1e-300: must be at least 1e-06"),
        ("A\udcff", {}, "bytes that are no UTF-8"),
        (["A"], {}, r"\['A'\] is no text"),
        ("word " * 300, {}, "shorten it"),
        ("A", {"temperature": 0.0}, r"--temperature 0: must be at least 1e-06"),
    ],
)
def test_what_cannot_be_asked_is_refused(chat: Chat, prompt: str, options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        chat.ask(prompt, **options)


LONG = "enemy. The soldiers ran from the enemy in the evening, [bold]and[/bold]\nnobody saw them."


@pytest.mark.parametrize("width", [60, 120])
def test_the_table_fits_the_terminal_and_nothing_is_lost(width: int):
    reply = Reply(
        "Who is it?", "test", (LONG, LONG), ("", "x"),
        [Candidate("a rather long answer " * 4, True, 0.5, 1e-5), Candidate("no", False, 0.25, 0.5)],
    )  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=width).print(reply)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for words in (
        "soldiers",
        "[bold]",
        "⏎nobody",
        "(nothing)",
        "<0.001",
        "+ a rather",
        "a fact of test",
        "anything else",
    ):
        assert words in text
    assert "0.250" in text and "0.500" in text
    page = reply._repr_html_()
    assert "&lt;0.001" in page and "⏎nobody" in page and "<b>Who is it?</b>" in page


def test_each_line_of_standard_input_is_a_prompt_and_a_bad_one_ends_nothing(
    adapter_run: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"A wizard is\n\n{'word ' * 300}\nDraco Malfoy is\n"))
    command.main([str(adapter_run.folder), "--tokens", "2"])
    said = capsys.readouterr().out
    assert said.index("A wizard is") < said.index("shorten it") < said.index("Draco Malfoy is")
    assert said.count("greedy") == 2


def test_a_run_whose_facts_are_gone_still_answers(adapter_run: Finished, chat: Chat, monkeypatch: pytest.MonkeyPatch):
    def gone(*_: object) -> None:
        raise ConfigError("data.path=my.csv: no such file")

    monkeypatch.setattr("factdpo.runs.stages.splits_of", gone)
    orphan = Chat(adapter_run, chat.models)
    assert "facts of the run cannot be read" in orphan.note and "my.csv" in orphan.note
    assert orphan.ask(rows_of(adapter_run, "base")[0]["prompt"], tokens=1).split is None
