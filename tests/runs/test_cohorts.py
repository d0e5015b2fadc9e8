"""A sweep's runs trained and scored together: the same results as one by one, and no run in another's way."""

import gc
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from factdpo import signals
from factdpo.config.schema import (
    Config,
    ConfigError,
    DataSource,
    EngineName,
    Loss,
    ModelConfig,
    ModelSource,
    Orientation,
    TrackMode,
)
from factdpo.models import base
from factdpo.runs import answer, attempt, pipeline
from factdpo.runs.answer import answers
from factdpo.runs.attempt import Attempt
from factdpo.runs.clock import Clock
from factdpo.runs.pipeline import execute
from factdpo.store import index
from factdpo.store.history import LocalTracker, read_history
from factdpo.tracking import tracker
from factdpo.training import adapters
from factdpo.training.batched.adapter import Adapter
from tests.helpers.command_line import in_process
from tests.helpers.runs import WEIGHTS, folder_of, new_session, small, spec_of
from tests.helpers.tiny import tiny_base, tokenizer
from tests.helpers.wandb_records import records


def sweep(*cfgs: Config) -> list[dict[str, Any]]:
    """The result of each run, as hydra/launcher=batched does them."""
    specs = [spec_of(cfg) for cfg in cfgs]
    outcomes = {spec.folder: outcome for spec, outcome in answers(specs, new_session())}
    return [outcomes[spec.folder].result for spec in specs]  # type: ignore[union-attr]


def place(cfg: Config) -> Path:
    return spec_of(cfg).folder


def adapters_in(out: Path) -> list[Path]:
    return [p for p in (out / "cache" / "adapters").iterdir() if p.is_dir()]


def of_every_kind(out: Path) -> list[Config]:
    """Three that train together, one that shares another base data, and one with other optimizer constants."""
    return [
        small(out, dpo_beta=0.5, lora_rank=4),
        small(out, dpo_loss=[Loss.ipo], dpo_max_steps=8, eval_generations=3),
        small(out, split_orientation=Orientation.canonical, split_train=11, lora_dropout=0.3, eval_every="epoch"),
        small(out, dpo_adam_beta1=0.8, eval_every="never"),
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Path, Path]:
    """The same runs one by one, and together; each side has its own empty cache."""
    one, other = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    return [answer.ask(cfg) for cfg in of_every_kind(one)], sweep(*of_every_kind(other)), one, other


def test_runs_are_the_same_together_and_one_by_one(both: Any) -> None:
    """Ids to the letter; log-probs in nats within float32's rounding; what is counted, exactly."""
    for alone, together in zip(*both[:2], strict=True):
        assert (together["id"], together["state"]) == (alone["id"], "FINISHED")
        assert together["config"]["engine"]["name"] == alone["config"]["engine"]["name"] == "batched"
        assert together["base"] == alone["base"] and together["baselines"] == alone["baselines"]
        for split, scores in alone["trained"].items():
            for key, value in scores.items():
                if key == "answer_shares":
                    assert together["trained"][split][key] == value
                else:
                    assert together["trained"][split][key] == pytest.approx(value, abs=1e-4), (split, key)
        assert together["across"]["base"] == alone["across"]["base"]
        assert together["across"]["trained"] == pytest.approx(alone["across"]["trained"], abs=1e-4)
        assert together["canaries"] == pytest.approx(alone["canaries"], abs=1e-5)
        assert together["files"].keys() == alone["files"].keys()
    assert [result["training"]["trained_together"] for result in both[1]] == [3, 3, 3, 1]
    assert [result["training"]["trained_together"] for result in both[0]] == [1, 1, 1, 1]


def test_histories_are_the_same_together_and_one_by_one(both: Any) -> None:
    alone, together, *outs = both
    for one, other in zip(alone, together, strict=True):
        histories = [
            read_history(folder_of(out, result) / "history.jsonl")
            for out, result in zip(outs, (one, other), strict=True)
        ]
        assert len(histories[0]) == len(histories[1])
        for a, b in zip(*histories, strict=True):
            assert list(a) == list(b)
            for key in a.keys() - {"time_seconds", "rewards/accuracies"}:
                assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-4), key


def test_what_was_said_is_the_same_together_and_one_by_one(both: Any) -> None:
    alone, together, *outs = both
    for one, other in zip(alone, together, strict=True):
        said = [
            json.loads((folder_of(out, result) / "generations.json").read_text())
            for out, result in zip(outs, (one, other), strict=True)
        ]
        assert said[0] == said[1]


def test_a_second_sweep_trains_nothing_and_opens_nothing(both: Any) -> None:
    _, together, _, out = both
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    again = sweep(*of_every_kind(out))
    assert again == together
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()} == before


def test_a_training_that_two_runs_want_is_made_once_and_told_to_both(tmp_path: Path) -> None:
    done = sweep(small(tmp_path), small(tmp_path, eval_generations=3))
    assert len({result["id"] for result in done}) == 2 and len(adapters_in(tmp_path)) == 1
    first, second = ((folder_of(tmp_path, result) / "history.jsonl").read_bytes() for result in done)
    assert first == second != b""
    assert done[0]["trained"] == done[1]["trained"]


def test_a_run_that_diverges_ends_so_and_the_others_finish(tmp_path: Path) -> None:
    wild = small(tmp_path, dpo_learning_rate=1e30, dpo_max_grad_norm=0.0)
    done = sweep(small(tmp_path), wild, small(tmp_path, dpo_beta=0.5))
    assert [result["state"] for result in done] == ["FINISHED", "DIVERGED", "FINISHED"]
    assert re.search(r"Diverged: (loss|grad_norm) is (nan|inf) at step \d+|not finite", done[1]["error"])
    rows = read_history(place(wild) / "history.jsonl")
    assert 0 < len(rows) < 12 and len(adapters_in(tmp_path)) == 2
    assert "Traceback" in (place(wild) / "run.log").read_text()


def test_a_run_alone_that_diverges_leaves_the_base_to_the_next(tmp_path: Path) -> None:
    """Both find the same base in memory."""
    with pytest.raises(answer.RunFailed):
        answer.ask(small(tmp_path / "b", dpo_learning_rate=1e30, dpo_max_grad_norm=0.0))
    after = answer.ask(small(tmp_path / "b"))
    before = answer.ask(small(tmp_path / "a"))
    assert after["trained"] == before["trained"]


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path: Path) -> None:
    held, free = small(tmp_path), small(tmp_path, dpo_beta=0.5)
    folder = place(held)
    folder.parent.mkdir(parents=True)
    script = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    lock = folder.with_name(f".{spec_of(held).id}.lock")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "held\n"
        ended = answers([spec_of(held), spec_of(free)], new_session())
        spec, outcome = next(ended)
        assert (spec.folder, outcome.state) == (place(free), "FINISHED")  # type: ignore[union-attr]
        assert not folder.exists() and len(adapters_in(tmp_path)) == 1
        other.stdin.close()
        assert [(spec.folder, outcome.state) for spec, outcome in ended] == [(folder, "FINISHED")]  # type: ignore[union-attr]


def test_what_only_trl_does_is_left_to_its_own_job(tmp_path: Path) -> None:
    done = sweep(small(tmp_path, dpo_max_steps=2), small(tmp_path, dpo_max_steps=2, lora_dora=True))
    assert [(r["state"], r["config"]["engine"]["name"]) for r in done] == [("FINISHED", "batched"), ("FINISHED", "trl")]


def test_a_run_whose_folder_is_anothers_stops_no_other(tmp_path: Path) -> None:
    mine, theirs = small(tmp_path), small(tmp_path, dpo_beta=0.5)
    place(theirs).mkdir(parents=True)
    (place(theirs) / "asked.json").write_text('{"config": {}, "data": "", "model": {}, "versions": {}}')
    outcomes = {spec.folder: outcome for spec, outcome in answers([spec_of(mine), spec_of(theirs)], new_session())}
    assert outcomes[place(mine)].state == "FINISHED"  # type: ignore[union-attr]
    assert isinstance(outcomes[place(theirs)], ConfigError)
    with pytest.raises(ConfigError, match="holds another run"):
        answer.ask(theirs)


def test_runs_that_cannot_train_stop_none_of_another_group(tmp_path: Path) -> None:
    """An embedding is adapted by TRL alone: under engine=auto it trains such a run, else the run is refused."""
    wanted = [
        small(tmp_path, lora_target_modules=["embed_in"], dpo_max_steps=steps, eval_every="never") for steps in (2, 3)
    ]
    wanted[0].engine.name = EngineName.batched
    done = sweep(*wanted, small(tmp_path))
    assert [result["state"] for result in done] == ["FAILED", "FINISHED", "FINISHED"]
    assert re.search("engine=batched: .*embed_in is a Embedding.*engine=trl", done[0]["error"])
    assert re.fullmatch(r"trl \(auto: .*embed_in is a Embedding.*\)", done[1]["engine"])


def test_runs_of_which_some_continue_nothing_are_scored_together(tmp_path: Path) -> None:
    """With facts of one's own and eval.generations=0 there is no prompt at all."""
    path = tmp_path / "facts.csv"
    rows = [f"The {thing} of the {where} is,{a},{b}"
            for i, (thing, where) in enumerate((t, w) for t in ("door", "roof", "wall", "gate", "lamp", "flag")
                                               for w in ("castle", "mill", "school", "shop"))
            for a, b in [("red", "blue") if i % 2 else ("blue", "red")]]  # fmt: skip
    path.write_text("\n".join(["prompt,chosen,rejected", *rows]))

    def cfg(out: Path, generations: int, beta: float) -> Config:
        return small(
            out, split_test=None, data_source=DataSource.pairs, data_path=str(path), eval_generations=generations,
            eval_every="never", dpo_beta=beta, dpo_max_steps=4,
        )  # fmt: skip

    asked = [(0, 0.1), (2, 0.2), (0, 0.3)]
    together = sweep(*(cfg(tmp_path / "b", *one) for one in asked))
    alone = [answer.ask(cfg(tmp_path / "a", *one)) for one in asked]
    for one, other in zip(alone, together, strict=True):
        assert other["across"]["trained"]["retention_nats_per_token"] == pytest.approx(
            one["across"]["trained"]["retention_nats_per_token"], abs=1e-4
        )
        said = [
            json.loads((folder_of(tmp_path / side, result) / "generations.json").read_text())
            for side, result in (("a", one), ("b", other))
        ]
        assert said[0] == said[1]


def test_a_sweep_over_models_holds_one_of_them_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order the jobs come; and runs on one model train together."""
    models = []
    for family in ("llama", "gpt2"):
        tiny_base(family).model.save_pretrained(tmp_path / family)
        tokenizer().save_pretrained(tmp_path / family)
        models.append(ModelConfig(name=family, source=ModelSource.pretrained, id=str(tmp_path / family)))
    in_memory: list[weakref.ref[Any]] = []
    others: list[int] = []
    load = base.load_base

    def load_and_count(*asked: Any) -> Any:
        gc.collect()
        others.append(sum(model() is not None for model in in_memory))
        loaded = load(*asked)
        in_memory.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(base, "load_base", load_and_count)
    cfgs = [small(tmp_path, dpo_beta=beta, dpo_max_steps=2, eval_every="never") for beta in (0.1, 0.1, 0.5, 0.5)]
    for number, cfg in enumerate(cfgs):
        cfg.model = models[number % 2]
    sweep(*cfgs)
    assert others == [0, 0]
    together = [json.loads((p / "fit.json").read_text())["trained_together"] for p in adapters_in(tmp_path)]
    assert together == [2] * 4


def test_the_history_grows_while_the_batch_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from one of the trackers: what was told before is on the disk of each run."""
    specs = [spec_of(small(tmp_path, dpo_beta=beta)) for beta in (0.1, 0.5)]
    specs[0].folder.parent.mkdir()
    lines: list[list[int]] = []
    log = LocalTracker.log

    def log_and_look(self: LocalTracker, *rows: Any) -> None:
        log(self, *rows)
        lines.append([len(read_history(spec.folder / "history.jsonl")) for spec in specs])

    monkeypatch.setattr(LocalTracker, "log", log_and_look)
    ended = list(execute([Attempt(spec) for spec in specs], new_session(), Clock()))
    assert [(attempt.spec.id, outcome.state) for attempt, outcome in ended] == [(s.id, "FINISHED") for s in specs]
    assert lines[0] == [1, 0] and lines[1] == [1, 1], "after the first step"
    assert lines[-1] == [14, 14], "12 steps and 2 points"
    assert any(1 < first < 14 for first, _ in lines)


def test_a_run_that_diverged_is_answered_from_its_record_and_done_again_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, wild = small(tmp_path), small(tmp_path, dpo_learning_rate=1e30, dpo_max_grad_norm=0.0)
    assert [result["state"] for result in sweep(good, wild)] == ["FINISHED", "DIVERGED"]
    before = (place(wild) / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    with pytest.raises(answer.RunFailed, match="DIVERGED"):
        answer.ask(wild)
    assert (place(wild) / "result.json").stat().st_mtime_ns == before
    assert re.search(r"this answer is from \d{4}-\d\d-\d\d \d\d:\d\d UTC; retry_diverged=true", capsys.readouterr().out)
    wild.retry_diverged = True
    with pytest.raises(answer.RunFailed, match="DIVERGED"):
        answer.ask(wild)
    assert (place(wild) / "result.json").stat().st_mtime_ns > before


def test_a_batchs_runs_are_closed_before_the_next_batch_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five runs at most two train at once: with the third, the first two are FINISHED, and hold nothing open."""
    cfgs = [small(tmp_path, dpo_beta=beta, eval_every="never") for beta in (0.1, 0.2, 0.3, 0.4, 0.5)]
    for cfg in cfgs:
        cfg.engine.max_runs = 2
    seen: list[tuple[int, int, int]] = []
    log_of = attempt.Attempt.log

    def log(self: attempt.Attempt, *rows: Any) -> None:
        if rows[0]["step"] == 1:
            folders = [place(cfg) for cfg in cfgs]
            finished = sum((folder / "result.json").exists() for folder in folders)
            held = [Path(os.readlink(link)).name for link in Path("/proc/self/fd").iterdir() if link.exists()]
            seen.append((finished, sum((folder / "asked.json").exists() for folder in folders), held.count("run.log")))
        log_of(self, *rows)

    monkeypatch.setattr(attempt.Attempt, "log", log)
    done = sweep(*cfgs)
    assert [result["state"] for result in done] == ["FINISHED"] * 5
    assert seen == [(0, 2, 2), (0, 2, 2), (2, 4, 2), (2, 4, 2), (4, 5, 1)]


def test_how_a_batch_stood_at_its_last_step_is_told_before_its_runs_are_said_to_have_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two batches; of the first, one run ends after 6 steps, and what it scored is not told again with the other's."""
    cfgs = [small(tmp_path, eval_every="3", dpo_max_steps=steps, dpo_beta=beta) for steps, beta in ((6, 0.1), (9, 0.2))]
    other = small(tmp_path, eval_every="3", dpo_max_steps=3, dpo_adam_beta1=0.8)
    for cfg in (*cfgs, other):
        cfg.sweep, cfg.label = "s", f"beta={cfg.dpo.beta:g}"
    sweep(*cfgs, other)
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r" +\d+/\d|FINISHED", line)]
    told = [line.removeprefix("FINISHED").split()[0] for line in lines]
    assert told == ["3/9", "6/9", "beta=0.1", "9/9", "beta=0.2", "3/3", "beta=0.2"]
    ranges = re.findall(r"([\d.]+)-([\d.]+)", lines[3])
    assert len(ranges) == 4 and all(low == high for low, high in ranges), "of one run"


def test_runs_that_end_at_different_steps_are_closed_as_they_end_and_are_the_same_as_alone(tmp_path: Path) -> None:
    """What is scored in the middle of a batch leaves it as it was."""
    lengths = (3, 6, 12)
    together = sweep(*(small(tmp_path / "b", dpo_max_steps=steps, lora_dropout=0.1) for steps in lengths))
    assert [result["training"]["trained_together"] for result in together] == [3, 3, 3]
    alone = [answer.ask(small(tmp_path / "a", dpo_max_steps=steps, lora_dropout=0.1)) for steps in lengths]
    for one, other in zip(alone, together, strict=True):
        for split, scores in one["trained"].items():
            for key in ("accuracy", "chosen_logp_nats", "rejected_logp_nats"):
                assert other["trained"][split][key] == pytest.approx(scores[key], abs=1e-4)


def test_scores_of_an_adapter_that_is_refused_are_not_taken_for_its_successors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that came to the disk wrong are scored together with all others, before the reload finds them out."""
    save = Adapter.save

    def save_wrong(adapter: Adapter, folder: Path) -> None:
        save(Adapter({name: (a, -b) for name, (a, b) in adapter.layers.items()}, adapter.config), folder)

    with monkeypatch.context() as broken:
        broken.setattr(Adapter, "save", save_wrong)
        (refused,) = sweep(small(tmp_path / "b"))
    assert refused["state"] == "FAILED" and "loaded from disk into a fresh base" in refused["error"]
    (again,) = sweep(small(tmp_path / "b"))
    (sound,) = sweep(small(tmp_path / "a"))
    assert again["trained"] == sound["trained"]


def test_every_run_of_a_sweep_is_one_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    cfgs = [small(tmp_path, dpo_beta=beta, dpo_max_steps=3, eval_every="2") for beta in (0.1, 0.5)]
    for cfg in cfgs:
        cfg.track.wandb, cfg.track.mode = True, TrackMode.offline
    for result in sweep(*cfgs):
        folder = folder_of(tmp_path, result)
        assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
        shown = [record["history"]["item"] for record in records(folder) if record["type"] == "history"]
        for key, there, count in (("loss", "train/loss", 3), ("eval/train/accuracy", "eval/train/accuracy", 1)):
            told = [row[key] for row in read_history(folder / "history.jsonl") if key in row]
            assert [row[there] for row in shown if there in row] == pytest.approx(told) and len(told) == count


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """kill -9 after the first checkpoint; the same command again; nothing differs from a sweep left in peace."""

    def command(out: str) -> list[str]:
        return [
            sys.executable, "-m", "factdpo", "-m", "track=none", f"out={tmp_path / out}", "split.train=40",
            "split.test=12", "dpo.beta=0.1,0.5", "lora.rank=4,8", "dpo.epochs=40", "engine.save_every=20",
            "lora.dropout=0.1", "eval.every=50", "hydra/launcher=batched",
        ]  # fmt: skip

    peace = subprocess.run(command("peace"), capture_output=True, text=True)
    assert peace.returncode == 0, peace.stderr
    with subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list((tmp_path / "killed/cache/batches").glob("*/[0-9]*/manifest.json")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not list((tmp_path / "killed/sweeps").glob("*/*/result.json"))
    again = subprocess.run(command("killed"), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stdout
    runs = sorted(path.parent.relative_to(tmp_path / "peace") for path in tmp_path.glob("peace/sweeps/*/*/result.json"))
    assert len(runs) == 4
    for name in runs:
        one, other = (tmp_path / out / name for out in ("peace", "killed"))
        results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
        for key in ("state", "base", "trained", "across", "canaries"):
            assert results[0][key] == results[1][key], key
        assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
        histories = [read_history(folder / "history.jsonl") for folder in (one, other)]
        for row in (*histories[0], *histories[1]):
            del row["time_seconds"]
        assert histories[0] == histories[1]
    assert list((tmp_path / "killed/cache/batches").iterdir()) == []


def test_two_jobs_in_other_words_are_one_run_and_equal_jobs_both_get_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["track=none", "split.train=8", "split.test=8", "dpo.epochs=1", "eval.every=never", "eval.generations=0"]
    with in_process(tmp_path, monkeypatch) as factdpo:
        for words in (["dpo.seed=0,0"], ["lora.alpha=16,16.0", "sweep=alpha"]):
            assert factdpo("-m", *small, *words) == 0
            assert "1 run, asked for by 2 jobs" in capsys.readouterr().out
    assert [len(list(path.glob("*/result.json"))) for path in sorted((tmp_path / "outputs/sweeps").iterdir())] == [1, 1]


def test_a_run_that_cannot_be_opened_ends_no_other_of_its_cohort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfgs = [small(tmp_path, dpo_beta=beta, eval_every="never", dpo_max_steps=2) for beta in (0.1, 0.2, 0.3)]
    full, open_trackers = place(cfgs[1]), tracker.open_trackers

    def open_or_fail(cfg: Config, run_id: str, name: str, folder: Path) -> Any:
        if folder == full:
            raise OSError(28, "No space left on device")
        return open_trackers(cfg, run_id, name, folder)

    monkeypatch.setattr(tracker, "open_trackers", open_or_fail)
    assert [result["state"] for result in sweep(*cfgs)] == ["FINISHED", "FAILED", "FINISHED"]


def test_what_interrupts_a_tracker_at_the_end_leaves_the_run_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """result.json is written by then."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(tracker.Trackers, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            answer.ask(small(tmp_path, dpo_max_steps=2))
    assert spec_of(small(tmp_path, dpo_max_steps=2)).state() == "FINISHED"


def test_one_training_whose_weights_do_not_reload_ends_its_own_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs want the broken training; it is made again by the next command."""
    twins = [small(tmp_path, eval_generations=count, dpo_adam_beta1=0.8, dpo_max_steps=2) for count in (1, 2)]
    sound = [small(tmp_path, dpo_beta=beta, dpo_max_steps=2) for beta in (0.1, 0.3)]
    with monkeypatch.context() as broken:
        broken.setitem(adapters.RELOAD_TOLERANCE_NATS, torch.float32, -1.0)
        assert [result["state"] for result in sweep(*twins)] == ["FAILED", "FAILED"]
    assert [result["state"] for result in sweep(*twins, *sound)] == ["FINISHED"] * 4


def test_a_signals_reason_comes_back_from_another_process() -> None:
    stopped = pickle.loads(pickle.dumps(signals.Preempted(143, "ended by SIGTERM")))
    assert (stopped.code, stopped.why) == (143, "ended by SIGTERM")


@pytest.mark.parametrize(("seconds", "indexed"), [(0.0, [0, 1, 2]), (1e9, [0, 0, 2])])
def test_the_index_of_a_sweep_is_written_now_and_then_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, indexed: list[int]
) -> None:
    monkeypatch.setattr(pipeline, "INDEX_SECONDS", seconds)
    cfgs = [small(tmp_path, dpo_beta=beta, dpo_max_steps=1, eval_every="never") for beta in (0.1, 0.2)]
    for cfg in cfgs:
        cfg.sweep, cfg.label = "s", f"beta={cfg.dpo.beta:g}"
    home = place(cfgs[0]).parent
    found = [len(index.finished(home)) for _ in answers([spec_of(cfg) for cfg in cfgs], new_session())]
    assert [*found, len(index.finished(home))] == indexed
