import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from factdpo.config.engine_choice import choose_engine
from factdpo.config.overrides import SHORT, command, decides, flat, for_hydra, typed
from factdpo.config.schema import Config, ConfigError, to_dict
from factdpo.runs.identity import config_in_id, run_id, what_is_asked

CONF = Path(__file__).parents[2] / "conf"


def test_values_are_written_as_hydra_reads_them():
    for value, text in [
        (None, "null"), (True, "true"), (0.2, "0.2"), (8.0, "8"), (1e-8, "1e-08"), (300, "300"), ("sigmoid", "sigmoid"),
        ("/data/my.csv", "/data/my.csv"), ("../a-b_c.jsonl", "../a-b_c.jsonl"), (["sigmoid", "sft"], "[sigmoid,sft]"),
        ("5", '"5"'), ("1e-3", '"1e-3"'), ("null", '"null"'), ("True", '"True"'), ("", '""'), ("a b", '"a b"'),
        ('say "hi"', '"say \\"hi\\""'), ("a\\", '"a\\\\"'), ("c:\\x", '"c:\\x"'), ("é,=[x]", '"é,=[x]"'), (".", '"."'),
    ]:  # fmt: skip
        assert typed(value) == text
        assert OverridesParser.create().parse_override(f"key={text}").value() == value


def test_a_config_is_flat_with_dots_and_what_decides_no_number_is_known():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
    deciding = ("dpo.beta", "model.name", "model.revision", "data.path", "seed", "engine.device")
    assert all(map(decides, deciding))
    assert not any(map(decides, ("track.wandb", "track.mode", "out", "sweep", "label", "engine.max_runs")))


COMMANDS = [
    "factdpo",
    "factdpo dpo.beta=0.05 seed=3",
    "factdpo split.seed=1 dpo.seed=2",
    "factdpo model=pythia_14m dpo.beta=0.1",
    "factdpo model=pythia_14m model.revision=step1000",
    "factdpo model=custom model.name=mine model.id=some/folder",
    "factdpo split=canonical lora=none dpo.learning_rate=1e-05",
    "factdpo split=both lora.rank=8 'lora.target_modules=[query_key_value,dense]'",
    "factdpo 'dpo.loss=[sigmoid,sft]' 'dpo.loss_weights=[1,0.5]'",
    "factdpo 'dpo.loss=[exo_pair]' dpo.label_smoothing=0.001",  # auto takes trl by itself
    "factdpo data=pairs data.path=my.csv",
    "factdpo data=pairs data.hub.id=owner/name",  # data=hub sets the same
    "factdpo engine=trl",  # what auto would not have taken
    "factdpo dpo.epochs=null dpo.max_steps=20 'eval.every=\"5\"'",
    'factdpo data=pairs \'data.path="my \\"odd\\" facts, é=x.csv"\' data.columns.prompt=question data.eos=true',
    "factdpo split.seed=0 seed=4",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_record_gives_the_command_that_made_it(compose, line: str):
    ran = choose_engine(compose(*shlex.split(line)[1:], "track=none", "out=elsewhere"))[0]
    assert command(to_dict(ran), [CONF]) == line
    again = choose_engine(compose(*shlex.split(line)[1:]))[0]
    assert config_in_id(again) == config_in_id(ran)
    assert (again.seed, again.model.id, again.data.path) == (ran.seed, ran.model.id, ran.data.path)


def test_the_id_is_the_same_again(compose):
    ran = choose_engine(compose("dpo.beta=0.05", "lora.rank=8", "lora.alpha=16", "seed=1", "dpo.seed=2"))[0]
    line = command(to_dict(ran), [CONF])
    again = choose_engine(compose(*shlex.split(line)[1:]))[0]
    assert run_id(what_is_asked(again)) == run_id(what_is_asked(ran))


def test_a_shell_reads_the_command_as_it_was_meant():
    line = COMMANDS[-2]
    shell = subprocess.run(["sh", "-c", line.replace("factdpo", "printf '%s\\n'", 1)], capture_output=True, text=True)
    assert shell.stdout.splitlines()[1] == 'data.path="my \\"odd\\" facts, é=x.csv"'


def test_the_users_own_options_are_named_where_they_stand_first(compose, tmp_path: Path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "tiny.yaml").write_text("rank: 2\nalpha: 4\n")
    (tmp_path / "lora" / "none.yaml").write_text("rank: 3\n")  # hides factdpo's own
    (tmp_path / "lora" / "based.yaml").write_text("defaults: [tiny]\nrank: 5\n")  # Hydra would read another file too
    (tmp_path / "lora" / "global.yaml").write_text("# @package _global_\nrank: 5\n")
    small = to_dict(compose("lora.rank=2", "lora.alpha=4"))
    assert command(small, [tmp_path, CONF]) == "factdpo lora=tiny"
    assert command(to_dict(compose("lora=none")), [tmp_path, CONF]) == "factdpo lora.method=full"
    assert command(to_dict(compose("lora.rank=5")), [tmp_path, CONF]) == "factdpo lora.rank=5"


def test_a_config_of_another_version_is_refused_by_its_key(compose):
    old = to_dict(compose())
    old["dpo"]["gamma"] = 1
    with pytest.raises(ConfigError, match="gamma"):
        command(old, [CONF])


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["lr=3e-4"], ["dpo.learning_rate=3e-4"]),
        (["dpo.lr=3e-4", "+epochs=2"], ["dpo.learning_rate=3e-4", "+dpo.epochs=2"]),
        (["lr=1e-3,1e-4", "-m"], ["-m", "--", "dpo.learning_rate=1e-3,1e-4"]),
        (["a.b=1", "--cfg", "job", "~c"], ["--cfg", "job", "--", "a.b=1", "~c"]),
        (["--info", "searchpath", "seed=1"], ["--info", "searchpath", "--", "seed=1"]),
        (["seed=1", "--info"], ["--info", "--", "seed=1"]),
        (["sweep=2026_11_25"], ['sweep="2026_11_25"']),
        (["sweep=1e5"], ['sweep="1e5"']),
        (["sweep=beta"], ["sweep=beta"]),
        (["sweep=null", "label="], ["sweep=null", "label="]),
        (["eval.every=5,epoch", "-m"], ["-m", "--", 'eval.every="5",epoch']),
        (["data.path=my facts (1)=a.csv"], ['data.path="my facts (1)=a.csv"']),
        (['data.path="a, b.csv",c d.csv', "-m"], ["-m", "--", 'data.path="a, b.csv","c d.csv"']),
        (["data.path=${oc.env:HOME}/x.csv"], ["data.path=${oc.env:HOME}/x.csv"]),
        (["data.path=~/x.csv,~/y z.csv", "-m"], ["-m", "--", 'data.path=/home/me/x.csv,"/home/me/y z.csv"']),
        (["model.id=~/model", "out=~/o"], ["model.id=/home/me/model", "out=/home/me/o"]),
        (["label=~/x"], ['label="~/x"']),  # no path
        (["dpo.loss=ipo"], ["dpo.loss=[ipo]"]),
        (["loss=ipo,[sft,sigmoid]", "-m"], ["-m", "--", "dpo.loss=[ipo],[sft,sigmoid]"]),
        (["dpo.loss=ipo,sft"], ["dpo.loss=ipo,sft"]),  # refused by Hydra, which shows what was typed
        (["dpo.loss=choice([ipo],[sft])"], ["dpo.loss=choice([ipo],[sft])"]),
        (["dpo.loss_weights=null", "track.tags=1e5"], ["dpo.loss_weights=null", 'track.tags=["1e5"]']),
        (["lora=none", "track=none", "data.boundary=none"], ["lora=none", "track=none", "data.boundary=none"]),
        (["dpo.beta=tag(log,interval(0.01,3))"], ["dpo.beta=tag(log,interval(0.01,3))"]),
        (
            ["data.files.train=~/a.csv", "+data.files.test=b.csv"],
            ["++data.files.train=/home/me/a.csv", "+data.files.test=b.csv"],
        ),
        (["data.files.test=a b.csv"], ['++data.files.test="a b.csv"']),
        (
            ['data.triples.templates.P19=["[X] was, yes, in [Y]","[X] of [Y]"]', "-m"],
            ["-m", "--", '++data.triples.templates.P19=["[X] was, yes, in [Y]","[X] of [Y]"]'],
        ),
        (["data.separator= "], ['data.separator=" "']),  # a shell has taken the quotes off
        (["data.separator=: "], ['data.separator=": "']),
        (["data.separator=\n"], ['data.separator="\n"']),
        (["data.separator=\\n"], ["data.separator=\\n"]),
        (
            ['data.triples.templates.place of work=["[X] works in [Y]"]'],
            ['++data.triples.templates={place of work:["[X] works in [Y]"]}'],
        ),
        (["data.files.v1.0=a.csv,b.csv", "-m"], ["-m", "--", "++data.files={v1.0:a.csv},{v1.0:b.csv}"]),
        (["data.files={train: a.csv}"], ["++data.files={train: a.csv}"]),
        (["data.separator=' '"], ["data.separator=' '"]),
        (["data.separator= ,: ", "-m"], ["-m", "--", 'data.separator=" ",": "']),
        (["data.separator= ,\\n", "-m"], ["-m", "--", 'data.separator=" ","\\n"']),
        (["sweeps=mine"], ["sweeps=mine", "hydra.mode=MULTIRUN"]),
        (["sweeps=mine", "loss=ipo,sft"], ["sweeps=mine", "dpo.loss=[ipo],[sft]", "hydra.mode=MULTIRUN"]),
        (["sweeps=null"], ["sweeps=null"]),
        (["sweeps=mine", "hydra.mode=RUN"], ["sweeps=mine", "hydra.mode=RUN"]),
        (["max_steps=5", "epochs=2"], ["dpo.max_steps=5", "dpo.epochs=2"]),  # refused by validate
        (["dpo.max_steps=null"], ["dpo.max_steps=null"]),
        (["no override", "lora.rnk=3"], ["no override", "lora.rnk=3"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_people_type_is_what_hydra_reads(monkeypatch: pytest.MonkeyPatch, words: list[str], read: list[str]):
    monkeypatch.setenv("HOME", "/home/me")
    assert for_hydra(words) == (read, [])


def test_steps_win_over_the_default_epochs_and_say_so():
    assert for_hydra(["max_steps=5,10", "-m"]) == (
        ["-m", "--", "dpo.max_steps=5,10", "dpo.epochs=null"],
        ["dpo.max_steps=5,10 replaces the default number of epochs (dpo.epochs=null)"],
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("track.entity=None", "write null for no value, as in track.entity=null, and the text in two pairs of quotes"),
        ("max_steps=NONE", "dpo.max_steps=NONE: write null for no value, as in dpo.max_steps=null$"),
        ("dpo.loss_weights=none", "dpo.loss_weights=none: write null for no value"),
        ("--lora.rank=3", "--lora.rank=3: a key has no dashes before it; write lora.rank=3"),
        ("lora=3", "lora=3: no such option; lora can be default, none$"),
        ("engine=trl,True", "engine=True: no such option.*; engine can be auto, batched, trl$"),
        ("sweeps=1e3", "sweeps=1e3: no such option; sweeps can be .*beta"),
        ("--sweeps", "--sweeps: a key has no dashes before it; write sweeps=..."),
    ],
)
def test_what_cannot_be_meant_is_refused(word: str, said: str):
    with pytest.raises(ConfigError, match=said):
        for_hydra([word])


def test_short_names_stand_for_keys_and_for_no_key_or_group_of_that_name():
    keys = flat(to_dict(Config()))
    assert {*SHORT.values()} <= keys.keys() and not {*SHORT} & {*keys, *(path.name for path in CONF.iterdir())}


def test_what_is_written_in_hydras_grammar_already_stays_as_it_is():
    for line in COMMANDS:
        words = shlex.split(line)[1:]
        read, said = for_hydra(words)
        assert [word for word in read if word != "dpo.epochs=null"] == [w for w in words if w != "dpo.epochs=null"]
        assert said == []
