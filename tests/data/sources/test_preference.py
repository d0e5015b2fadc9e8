"""Preferences as TRL, ShareGPT, Alpaca and UltraFeedback write them; conversations through a chat template."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from factdpo import nano
from factdpo.config.schema import BadRows, ConfigError, DataConfig, DataSource, PreferenceConfig, Template
from factdpo.data.chat import in_template, writer
from factdpo.data.facts import Fact, FactError
from factdpo.data.load import load_facts
from factdpo.data.pairs import tokenise
from factdpo.data.sources.preference import in_random_order

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ASKED = {"role": "user", "content": "Where is the sun?"}
SKY, SEA = ({"role": "assistant", "content": f"In the {where}."} for where in ("sky", "sea"))
SPLITS = ("train", "test")
SYSTEM = {"role": "system", "content": "Be brief."}
PLAIN = ("user: Where is the sun?\nassistant:", "In the sky.", "In the sea.")
BRIEF = ("system: Be brief.\n" + PLAIN[0], *PLAIN[1:])


def own(tmp_path: Path, *rows: dict[str, Any], **changes: Any) -> DataConfig:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return DataConfig(source=DataSource.preference, path=str(path), **changes)


def tokenizer(template: str | None) -> Any:
    found = AutoTokenizer.from_pretrained(nano.WEIGHTS)
    found.chat_template = template
    return found


def said(fact: Fact) -> tuple[str, str, str]:
    return fact.prompt, fact.chosen, fact.rejected


# What the format is called -> a row, and the fact in it.
FORMATS: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "standard": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        ("The sky is", "blue.", "green."),
    ),
    "implicit prompt": (
        {"chosen": "The sun is in the sky.", "rejected": "The sun is in the sea."},
        ("The sun is in the", "sky.", "sea."),
    ),
    "conversational": ({"prompt": [ASKED], "chosen": [SKY], "rejected": [SEA]}, PLAIN),
    "conversational with a system message": ({"prompt": [SYSTEM, ASKED], "chosen": [SKY], "rejected": [SEA]}, BRIEF),
    "conversational, implicit prompt": ({"chosen": [SYSTEM, ASKED, SKY], "rejected": [SYSTEM, ASKED, SEA]}, BRIEF),
    "UltraFeedback": (
        {
            "prompt": "Where is the sun?", "chosen": [ASKED, SKY], "rejected": [ASKED, SEA], "score_chosen": 8.5,
            "score_rejected": 4.0,
        },
        PLAIN,
    ),
    "a text, and messages as answers": ({"prompt": "Where is the sun?", "chosen": [SKY], "rejected": [SEA]}, PLAIN),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Where is the sun?"}],
            "chosen": {"from": "gpt", "value": "In the sky."},
            "rejected": {"from": "gpt", "value": "In the sea."},
        },
        PLAIN,
    ),
    "Alpaca": (
        {"instruction": "Answer.", "input": "Where is the sun?", "chosen": "In the sky.", "rejected": "In the sea."},
        ("Answer.\nWhere is the sun?", "In the sky.", "In the sea."),
    ),
    "Alpaca with both answers in output": (
        {"instruction": "Where is the sun?", "input": "", "output": ["In the sky.", "In the sea."]},
        ("Where is the sun?", "In the sky.", "In the sea."),
    ),
    "Alpaca with a history": (
        {
            "instruction": "Where is the sun?", "system": "Be brief.", "history": [["Hi", "Hello"]],
            "chosen": "In the sky.", "rejected": "In the sea.",
        },
        ("system: Be brief.\nuser: Hi\nassistant: Hello\n" + PLAIN[0], *PLAIN[1:]),
    ),
    "content in parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Where is the sun?"}]}], "chosen": [SKY],
         "rejected": [SEA]},
        PLAIN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_its_fact(tmp_path: Path, name: str):
    row, expected = FORMATS[name]
    (fact,) = load_facts(own(tmp_path, row)).facts
    assert said(fact) == expected
    assert (fact.conversation is None) == ("assistant:" not in fact.prompt)
    (plain,) = load_facts(own(tmp_path, row, preference=PreferenceConfig(Template.plain))).facts
    assert said(plain) == expected and plain.conversation is None


def test_an_implicit_prompt_without_white_space_ends_at_a_character(tmp_path: Path):
    row = {"chosen": "法国的首都是巴黎", "rejected": "法国的首都是罗马"}
    assert said(load_facts(own(tmp_path, row, separator="")).facts[0]) == ("法国的首都是", "巴黎", "罗马")


REFUSED: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "unpaired": (
        [{"prompt": "p", "completion": "a", "label": True}],
        ["own.jsonl:1", "unpaired", "DPO needs pairs"],
    ),
    "one completion": ([{"prompt": "p", "completion": "a"}], ["own.jsonl:1", "DPO needs pairs", "column rejected"]),
    "no columns": ([{"text": "a"}], ["own.jsonl:1", "no column 'chosen' (found: text)"]),
    "no rejected": ([{"prompt": "p", "chosen": "a"}], ["own.jsonl:1: rejected is empty"]),
    "nothing in common": ([{"chosen": "Yes.", "rejected": "No."}], ["own.jsonl:1", "do not begin with the same"]),
    "same conversation": ([{"chosen": [ASKED, SKY], "rejected": [ASKED, SKY]}], ["own.jsonl:1", "before any message"]),
    "no question": ([{"chosen": [SKY], "rejected": [SEA]}], ["own.jsonl:1", "found assistant"]),
    "no message": ([{"prompt": ["p"], "chosen": [SKY], "rejected": [SEA]}], ["own.jsonl:1: prompt holds 'p'"]),
    "a tie": (
        [{"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 3}],
        ["own.jsonl:1: score_chosen is 3, score_rejected 3", "data.bad_rows=drop"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_pair_is_refused_with_the_row(tmp_path: Path, name: str):
    rows, words = REFUSED[name]
    with pytest.raises(FactError) as refusal:
        load_facts(own(tmp_path, *rows))
    assert [word for word in words if word not in str(refusal.value)] == []


DRAWN = PreferenceConfig(draw_rejected=True)


def test_a_false_answer_is_drawn_only_if_asked_and_only_where_there_is_none(tmp_path: Path):
    rows = [{"prompt": "Sky:", "completion": "blue"}, {"prompt": "Sun:", "completion": "gold"}]
    with pytest.raises(FactError, match=r"own.jsonl:1: has a completion and no rejected .*draw_rejected=true"):
        load_facts(own(tmp_path, *rows))
    with pytest.raises(FactError, match=r"draw_rejected=true: has no effect, .*own.jsonl:1 has a false answer"):
        load_facts(own(tmp_path, FORMATS["standard"][0], preference=DRAWN))
    with pytest.raises(FactError, match=r"own.jsonl:1: 'Sky:' has a completion .* no other row has another"):
        load_facts(own(tmp_path, rows[0], preference=DRAWN))


def test_completions_alone_take_their_false_answer_from_another_prompt(tmp_path: Path):
    rows = [{"prompt": p, "completion": f" {c}"} for p, c in (("Sky:", "blue"), ("Sky:", "azure"), ("Sun:", "gold"))]
    facts, notes, _ = load_facts(own(tmp_path, *rows, preference=DRAWN))
    assert [said(fact) for fact in facts[:2]] == [("Sky:", "blue", "gold"), ("Sky:", "azure", "gold")]
    assert facts[2].rejected in ("blue", "azure") and facts == load_facts(own(tmp_path, *rows, preference=DRAWN)).facts
    (note,) = (note for note in notes if "the true one of another row" in note)
    assert note.startswith("3 rows changed") and "A row that is held out may lend its true answer" in note


def test_the_false_answer_of_a_row_that_is_trained_on_is_never_a_held_out_rows_true_one(tmp_path: Path):
    rows = [{"prompt": f"{i}:", "completion": f"{i} {split}", "split": split} for split in SPLITS for i in range(9)]
    facts, notes, _ = load_facts(own(tmp_path, *rows, preference=DRAWN))
    assert all(fact.rejected.endswith(str(fact.split)) for fact in facts)
    assert len({fact.rejected for fact in facts}) > 9 and not any("held out" in note for note in notes)
    alone = own(tmp_path, {"prompt": "p", "completion": "x", "split": "train"}, *rows[9:], preference=DRAWN)
    with pytest.raises(
        FactError, match=r"own.jsonl:1: 'p' has a completion .* no other row of split train has another"
    ):
        load_facts(alone)


def test_a_draw_looks_at_no_more_rows_than_it_needs():
    """Of a billion rows the first can be had, and of few each comes once."""
    assert next(in_random_order(range(10**9), random.Random(0))) == random.Random(0).randrange(10**9)
    assert sorted(in_random_order("abcdef", random.Random(0))) == list("abcdef")
    assert len({"".join(in_random_order("abc", random.Random(seed))) for seed in range(99)}) == 6


def test_completions_that_are_messages_are_compared_as_such(tmp_path: Path):
    rows = [{"prompt": [ASKED], "completion": [SKY]}, {"prompt": [ASKED], "completion": [dict(reversed(SKY.items()))]}]
    rows.append({"prompt": [{"role": "user", "content": "Where is the fish?"}], "completion": [SEA]})
    facts = load_facts(own(tmp_path, *rows, bad_rows=BadRows.drop, preference=DRAWN)).facts
    assert [(fact.chosen, fact.rejected) for fact in facts] == [
        ("In the sky.", "In the sea."),
        ("In the sea.", "In the sky."),
    ]


# ------------------------------------------------------------------------------------------------------ chat templates


def test_a_conversation_is_written_in_the_models_own_template(tmp_path: Path):
    cfg = own(tmp_path, FORMATS["conversational"][0], {"prompt": "The sky is", "chosen": "blue", "rejected": "red"})
    model = tokenizer(CHATML)
    (chat, text), notes, _ = in_template(load_facts(cfg).facts, writer(model), cfg)
    assert said(chat) == ("<|user|>Where is the sun?<|end|><|assistant|>", "In the sky.<|end|>", "In the sea.<|end|>")
    assert (chat.separator, chat.conversation, text.separator, notes) == ("", None, None, [])
    pairs = tokenise([chat, text], model, cfg)
    assert model.decode(pairs.prompt_ids[0] + pairs.chosen_ids[0]) == chat.prompt + chat.chosen
    assert model.decode(pairs.prompt_ids[1] + pairs.chosen_ids[1]) == "The sky is blue"


def test_texts_need_no_template(tmp_path: Path):
    facts = load_facts(own(tmp_path, FORMATS["standard"][0])).facts
    assert in_template(facts, None, DataConfig()) == (facts, [], {})


def test_a_model_without_a_template_is_refused_with_the_cure(tmp_path: Path):
    cfg = own(tmp_path, FORMATS["conversational"][0])
    with pytest.raises(ConfigError, match=r"no chat template.*data.preference.template=plain"):
        in_template(load_facts(cfg).facts, writer(tokenizer(None)), cfg)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.content }}|{{ loop.length }}{% endfor %}", "writes the prompt in another way"),
        ("{{ raise_exception('no system role') }}", "no system role"),
    ],
)
def test_rows_that_a_template_cannot_write_are_bad_rows(tmp_path: Path, template: str, words: str):
    cfg = own(tmp_path, FORMATS["conversational"][0])
    facts = load_facts(cfg).facts
    with pytest.raises(FactError, match=r"own.jsonl:1: the .*") as refusal:
        in_template(facts, writer(tokenizer(template)), cfg)
    cfg.bad_rows = BadRows.drop
    left, notes, _ = in_template(facts, writer(tokenizer(template)), cfg)
    assert left == [] and notes[0].startswith("1 row left out: the chat template")
    assert words in str(refusal.value) + notes[0]


def test_what_the_tokenizer_begins_with_itself_stands_there_once(tmp_path: Path):
    cfg = own(tmp_path, FORMATS["conversational"][0])
    model = tokenizer("{{ bos_token }}" + CHATML)
    facts = load_facts(cfg).facts
    kept = in_template(facts, writer(model), cfg)[0][0]
    assert kept.prompt.startswith(str(model.bos_token))  # nano's adds none

    class Adding:
        """Begins every text with its beginning, as Llama's tokenizer does."""

        chat_template, bos_token, bos_token_id = model.chat_template, model.bos_token, model.bos_token_id
        apply_chat_template = staticmethod(model.apply_chat_template)

        def __call__(self, text: str) -> Any:
            return {"input_ids": [model.bos_token_id, *model(text)["input_ids"]]}

    assert in_template(facts, writer(Adding()), cfg)[0][0].prompt.startswith("<|user|>")
