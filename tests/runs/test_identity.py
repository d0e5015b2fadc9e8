"""What decides a run's id and folder: the same question is the same run, wherever and however it is asked."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from factdpo.config.engine_choice import choose_engine
from factdpo.config.schema import Config, ConfigError, DataConfig, Loss, ModelSource, SplitConfig
from factdpo.config.validate import validate
from factdpo.data import files
from factdpo.data.splits import TRAIN
from factdpo.runs import identity
from factdpo.runs.identity import RunSpec, can_train_together, look_up, run_id
from factdpo.runs.naming import run_name
from factdpo.store import cache, result
from factdpo.store.result import write_result
from tests.helpers.runs import FACTS as READ

Compose = Callable[..., Config]

FACTS = "prompt,chosen,rejected\nThe capital of France is,Paris,Rome\nThe capital of Italy is,Rome,Paris\n"

# Whoever changes one of these makes everybody's finished runs strangers: it takes a reason, and a line in LOG.md.
IDS = [
    ([], "d684835e6021"),
    (["seed=3", "dpo.beta=0.1", "lora.rank=8"], "1e8d3e249c9c"),
    (["split.orientation=canonical", "dpo.loss=[sigmoid,sft]", "dpo.loss_weights=[1.0,0.5]"], "7163c8e3c844"),
    (["lora=none", "dpo.learning_rate=1e-4", "engine=trl"], "33558b0a0990"),
    (["model=pythia_14m", "model.random_init=true", "model.revision=null", "model.dtype=bfloat16"], "0910abb05f1d"),
    (["data=pairs", "data.path=facts.csv", "split.train=1"], "c9d9341775e8"),
]


@pytest.fixture
def ask(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunSpec]:
    """ask("seed=1"): the run that `factdpo seed=1` asks for, in a folder where facts.csv lies."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facts.csv").write_text(FACTS)
    return lambda *overrides: look_up(compose("track=none", *overrides), kept=READ)


@pytest.mark.parametrize(("overrides", "id"), IDS, ids=[" ".join(o) or "default" for o, _ in IDS])
def test_ids_stay_what_they_are(ask: Callable[..., RunSpec], overrides: list[str], id: str) -> None:
    assert ask(*overrides).id == id


def test_an_id_does_not_depend_on_the_order_of_keys_or_on_the_process(
    ask: Callable[..., RunSpec], tmp_path: Path
) -> None:
    asked = ask("seed=3", "dpo.beta=0.1", "lora.rank=8").asked
    assert ask("lora.rank=8", "seed=3", "dpo.beta=0.1").id == run_id(asked)

    def turned(node: object) -> object:
        return {key: turned(node[key]) for key in reversed(node)} if isinstance(node, dict) else node

    assert run_id(turned(asked)) == run_id(asked)  # type: ignore[arg-type]
    command = [sys.executable, "-m", "factdpo", "dry_run=true", "seed=3", "dpo.beta=0.1", "lora.rank=8", "track=none"]
    for seed in ("1", "2"):
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert f"{run_id(asked)}  to do" in done.stdout


def test_names_places_and_speed_are_no_part_of_it(ask: Callable[..., RunSpec], tmp_path: Path) -> None:
    (tmp_path / "moved.csv").write_text(FACTS)
    pairs = ["data=pairs", "split.train=1"]
    assert ask(*pairs, "data.path=moved.csv").id == ask(*pairs, "data.path=facts.csv").id
    for change in ("out=there", "model.name=other", "engine.max_runs=1", "engine=batched", "sweep=s", "retries=2"):
        assert ask(change).id == "d684835e6021"


def test_a_byte_of_the_data_or_a_key_that_can_change_a_number_is_another_run(
    ask: Callable[..., RunSpec], tmp_path: Path
) -> None:
    pairs = ["data=pairs", "data.path=facts.csv", "split.train=1"]
    before = ask(*pairs).id
    (tmp_path / "facts.csv").write_text(FACTS.replace("Paris,Rome", "Paris,Bonn"))
    changes = [
        "dpo.seed=1",
        "split.seed=1",
        "eval.batch_size=32",
        "engine=trl",
        "model.dtype=bfloat16",
        "dpo.bf16=true",
    ]
    assert len({before, ask(*pairs).id, ask().id, *(ask(change).id for change in changes)}) == 3 + len(changes)


def test_the_same_bytes_under_an_ending_that_reads_them_otherwise_are_another_run(
    tmp_path: Path,
) -> None:
    for text, same in (("prompt\tchosen\trejected\nOne is\t1\t2\n", True), (FACTS, False)):
        for ending in ("csv", "tsv"):
            (tmp_path / f"twin.{ending}").write_text(text)
        both = [identity.data_identity(DataConfig(path=str(tmp_path / f"twin.{e}"))) for e in ("csv", "tsv")]
        assert (both[0] == both[1]) is same and both[0] == cache.file_sha256(tmp_path / "twin.csv")
    assert identity.data_identity(DataConfig(path=str(tmp_path / "twin.tsv"), delimiter=",")) == both[0]


def test_a_line_break_between_prompt_and_answer_has_one_id_however_it_came(ask: Callable[..., RunSpec]) -> None:
    typed, real = ask(r'data.separator="\n"'), ask('data.separator="\n"')
    assert typed.id == real.id and typed.cfg.data.separator == real.cfg.data.separator == r"\n"


def test_a_run_lies_in_its_sweeps_folder_under_its_label_and_its_id(ask: Callable[..., RunSpec]) -> None:
    assert ask().folder == Path("outputs/runs/nano_b=0.2_r=32_s=0_harry_potter_random-d684835e6021")
    assert ask("sweep=s", "label='beta=0.2 seed=0'").folder == Path("outputs/sweeps/s/beta=0.2_seed=0-d684835e6021")
    evil = ask("sweep=s", "label='../../größe, it is [x] " + "y" * 300 + "'").folder
    assert evil.parent == Path("outputs/sweeps/s") and len(evil.name) == 80 + len("-d684835e6021")
    assert evil.name.startswith("gr_e_it_is_x_yyy")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "nano_b=0.2_r=32_s=0_harry_potter_random"),
        (["split=canonical"], "nano_b=0.2_r=32_s=0_harry_potter_canonical"),
        (["data=synthetic", "data.synthetic.names=30", "split.train=9"], "nano_b=0.2_r=32_s=0_synthetic_random"),
        (["data=pairs", "data.path=facts.csv", "split.train=1"], "nano_b=0.2_r=32_s=0_facts"),
        (["data=pairs", "data.path=two.facts.csv", "split.train=1"], "nano_b=0.2_r=32_s=0_two_random"),
        (["data.path=houses.csv", "split.train=2"], "nano_b=0.2_r=32_s=0_houses_random"),
        (["data=graph", "data.path=edges.csv", "split.train=1"], "nano_b=0.2_r=32_s=0_edges_random"),
        (
            ["data=graph", "data.path=edges.csv", "split.train=1", "data.relation_kind=directed"],
            "nano_b=0.2_r=32_s=0_edges",
        ),
        (
            ["data=pairs", "++data.files.train=facts.csv", "++data.files.test=other.csv"],
            "nano_b=0.2_r=32_s=0_facts",
        ),
    ],
)
def test_a_folder_is_named_after_its_own_file_and_the_order_of_names_where_there_is_one(
    ask: Callable[..., RunSpec], tmp_path: Path, overrides: list[str], name: str
) -> None:
    turned = FACTS.replace("rejected\n", "rejected,reverse_prompt\n").replace("Rome\n", "Rome,x\n")
    (tmp_path / "two.facts.csv").write_text(turned.replace("Paris\n", "Paris,\n"))
    (tmp_path / "other.csv").write_text(FACTS.replace("The", "A"))
    (tmp_path / "houses.csv").write_text("name,side\nAnna,G\nBen,H\nCarl,G\n")
    (tmp_path / "edges.csv").write_text("source,target,sign\nAnna,Ben,1\nBen,Carl,-1\nCarl,Dora,1\n")
    spec = ask(*overrides)
    assert spec.folder == Path("outputs/runs") / f"{name}-{spec.id}"
    own = name.split("_")[4] if "path" in str(overrides) or "files" in str(overrides) else ""
    split = [word.replace("split=", "split.orientation=") for word in overrides if word.startswith("split")]
    alone = [word.removeprefix("split.") for word in split]  # what a run alone has other than the default
    assert spec.name == " ".join(filter(None, ["nano b=0.2 r=32 s=0", own, *alone]))


def test_a_run_alone_says_what_it_has_other_than_the_default_and_one_of_a_sweep_does_not() -> None:
    cfg = Config()
    cfg.dpo.epochs, cfg.dpo.loss, cfg.lora.rank, cfg.engine.device = 4, [Loss.ipo], 8, "cpu"
    cfg = validate(cfg)
    assert run_name(cfg) == "nano b=0.2 r=8 s=0 loss=[ipo] epochs=4"
    cfg.sweep = "s"
    assert run_name(cfg) == "nano b=0.2 r=8 s=0"


def test_the_files_beside_the_facts_are_part_of_the_id(ask: Callable[..., RunSpec], tmp_path: Path) -> None:
    (tmp_path / "capitals.csv").write_text("subject,relation,object\nFrance,r,Paris\nItaly,r,Rome\nPeru,r,Lima\n")
    (tmp_path / "edges.csv").write_text("source,target,sign\n1,2,1\n2,3,-1\n")
    (tmp_path / "r.csv").write_text("relation,template\nr,The capital of [X] is [Y]\n")
    (tmp_path / "nodes.csv").write_text("id,name\n1,Anna\n2,Ben\n3,Carl\n")
    triples = ["data=triples", "data.path=capitals.csv", "data.triples.templates_path=r.csv", "split.train=1"]
    graph = ["data=graph", "data.path=edges.csv", "data.graph.nodes=nodes.csv", "split.train=1"]
    before = ask(*triples).id, ask(*graph).id
    assert (ask(*triples).id, ask(*graph).id) == before
    (tmp_path / "r.csv").write_text("relation,template\nr,[X] is governed from [Y]\n")
    (tmp_path / "nodes.csv").write_text("id,name\n1,Anna\n2,Ben\n3,Dora\n")
    assert not {ask(*triples).id, ask(*graph).id} & {*before}


def test_what_is_invented_is_known_by_its_config(ask: Callable[..., RunSpec]) -> None:
    invented = ["data=synthetic", "split.train=9"]
    ids = [ask(*invented, *more).id for more in ([], ["data.synthetic.seed=1"], ["data.synthetic.camps=3"])]
    assert len({*ids, "d684835e6021"}) == 4 and ask(*invented, "out=there").id == ids[0]


def test_a_run_is_found_by_its_id_whatever_it_was_called_before(ask: Callable[..., RunSpec]) -> None:
    first = ask("sweep=s", "label='beta=0.2'").folder
    first.mkdir(parents=True)
    assert ask("sweep=s", "label='seed=0'").folder == first
    assert ask("sweep=other", "label='seed=0'").folder == Path("outputs/sweeps/other/seed=0-d684835e6021")


def test_only_a_run_that_is_not_finished_needs_its_weights_and_facts(tmp_path: Path) -> None:
    cfg = Config(out=str(tmp_path))
    cfg.model.source, cfg.model.id, cfg.model.revision = ModelSource.pretrained, "nobody/no-model", "0" * 40
    cfg = validate(cfg)
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        look_up(cfg)
    asked = identity.what_is_asked(choose_engine(cfg)[0])
    finish(identity.run_folder(cfg, asked), asked)
    assert look_up(cfg).state() == "FINISHED"


def test_of_a_finished_run_no_row_is_read(ask: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = dataclasses.replace(ask("data=pairs", "data.path=facts.csv", "split.train=1").cfg)
    cfg.split = SplitConfig(seed=0)
    asked = identity.what_is_asked(cfg)
    assert asked["config"]["split"]["train"] == TRAIN
    finish(identity.run_folder(cfg, asked), asked)
    monkeypatch.setattr(files, "read_rows", lambda *_: pytest.fail("a row is read"))
    assert look_up(cfg).state() == "FINISHED"


def test_what_cannot_be_split_is_said_before_anything_runs(ask: Callable[..., RunSpec]) -> None:
    with pytest.raises(ConfigError, match=r"split\.train=900: the data has only 861 facts"):
        ask("split.train=900")


def long_row_among(path: Path, rows: int = 10) -> None:
    lines = [f"The river {i} flows into,mud,sand" for i in range(rows - 1)]
    path.write_text("\n".join(["prompt,chosen,rejected", *lines, "word " * 300 + "is,mud,sand"]) + "\n")


def test_a_row_too_long_is_said_before_anything_runs_whichever_facts_the_seed_draws(
    ask: Callable[..., RunSpec], tmp_path: Path
) -> None:
    long_row_among(tmp_path / "own.csv")
    pairs = ["data=pairs", "data.path=own.csv", "split.train=4", "split.test=2"]
    for seed in range(8):
        with pytest.raises(ConfigError, match=r"1 of 10 facts: the row is longer.*own\.csv:11"):
            ask(*pairs, f"seed={seed}")
    assert ask(*pairs, "data.too_long=drop").notes[0].startswith("1 of 10 facts were dropped: the row is longer")
    assert "cut off in 1 facts" in ask(*pairs, "data.too_long=truncate").notes[0]


def test_what_cannot_be_split_once_bad_rows_are_dropped_is_said_before_anything_runs(
    ask: Callable[..., RunSpec], tmp_path: Path
) -> None:
    long_row_among(tmp_path / "own.csv")
    pairs = ["data=pairs", "data.path=own.csv", "split.train=10", "data.too_long=drop"]
    with pytest.raises(ConfigError, match=r"split\.train=10: the data has only 9 facts"):
        ask(*pairs)


def test_a_continuation_longer_than_the_model_is_said_before_anything_runs(ask: Callable[..., RunSpec]) -> None:
    with pytest.raises(ConfigError, match=r"eval\.max_new_tokens=256: the model takes 256 tokens.*at most 255"):
        ask("eval.max_new_tokens=256")


def test_rows_are_checked_once_for_runs_of_one_command_and_again_when_their_bytes_change(
    ask: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[int] = []
    check = identity.check_tokens
    monkeypatch.setattr(identity, "check_tokens", lambda facts, *more: checks.append(len(facts)) or check(facts, *more))
    cfgs = [ask("data=pairs", "data.path=facts.csv", "split.train=1", f"seed={seed}").cfg for seed in range(3)]
    kept: dict[str, object] = {}
    checks.clear()
    for cfg in cfgs:
        look_up(cfg, kept=kept)
    assert checks == [2]
    (tmp_path / "facts.csv").write_text(FACTS + "The capital of Spain is,Madrid,Rome\n")
    look_up(cfgs[0], kept=kept)
    assert checks == [2, 3]


def test_each_file_is_read_once_for_many_runs(ask: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str | None] = []
    load = identity.load_facts
    monkeypatch.setattr(identity, "load_facts", lambda data: read.append(data.path) or load(data))
    cfgs = [ask(f"seed={seed}").cfg for seed in range(3)]
    read.clear()
    known: dict[str, object] = {}
    assert len({look_up(cfg, kept=known).id for cfg in cfgs}) == 3 and len(read) == 1
    assert len({look_up(cfg).id for cfg in cfgs}) == 3 and len(read) == 1 + 3  # one by one


def test_what_runs_on_one_base_with_one_optimizer_can_train_together(ask: Callable[..., RunSpec]) -> None:
    def key(*overrides: str) -> str:
        return cache.signature(can_train_together(ask(*overrides).cfg))

    together = ["seed=4", "dpo.beta=0.5", "lora.rank=2", "dpo.loss=[ipo]", "dpo.epochs=2", "split.train=20", "sweep=s"]
    apart = ["model.dtype=bfloat16", "dpo.adam_beta1=0.8", "lora.target_modules=[dense]", "out=there", "dpo.bf16=true"]
    assert {key(change) for change in together} == {key()}
    assert len({key(), *map(key, apart)}) == 1 + len(apart)


def finish(folder: Path, asked: dict[str, object]) -> None:
    """What a finished run leaves, as far as its state goes."""
    folder.mkdir(parents=True)
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "items.parquet").write_text("")
    files = {"items.parquet": cache.file_sha256(folder / "items.parquet")}
    id = folder.name.rpartition("-")[2]
    write_result(folder, {"id": id, "state": "FINISHED", "config": {}, "files": files})
    assert result.read_result(folder).reason is None
