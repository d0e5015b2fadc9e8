"""Engine trl: what is trained, the sanity checks, and that a run is the same each time."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from factdpo import nano
from factdpo.config.schema import Config, ConfigError, DataConfig, Loss, Method, ModelConfig, ModelSource, Schedule
from factdpo.config.validate import validate
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base, load_base
from factdpo.models.logps import Diverged
from factdpo.models.scoring import PairLogps, pair_logps
from factdpo.training import adapters
from factdpo.training.sanity_checks import SanityCheckError
from factdpo.training.schedule import planned_steps
from tests.helpers.training import train_with_trl, training_pairs

CPU = torch.device("cpu")
Fit = tuple[Path, list[dict[str, Any]]]


def config(**dpo: Any) -> Config:
    """A short run: 16 facts, 4 steps, rank 4."""
    cfg = Config()
    cfg.split.train, cfg.split.test = 16, 16
    cfg.lora.rank, cfg.lora.alpha = 4, 8.0
    cfg.eval.every = "never"
    dpo = {"epochs": None, "max_steps": 4, "batch_size": 4} | dpo
    for key, value in dpo.items():
        setattr(cfg.dpo, key, value)
    return cfg


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Fit]:
    """fit(cfg): train as a run does; the folder that training leaves, and the history."""
    count = 0

    def train_once(cfg: Config, change: Callable[[Base, PairLogps], None] | None = None) -> Fit:
        nonlocal count
        count += 1
        cfg = validate(cfg)
        base = load_base(cfg.model, CPU, tmp_path)
        pairs = training_pairs(cfg, base)
        refs = pair_logps(base.model, pairs, 64)
        if change:
            change(base, refs)
        history: list[dict[str, Any]] = []
        folder = tmp_path / f"fit{count}"
        folder.mkdir()
        curves, point = {"train": pairs.take(2)}, {"eval/train/accuracy": 0.5}
        train_with_trl(base, pairs, refs, cfg, folder, history.append, curves, lambda scores: point)
        return folder, history

    return train_once


def check_reloaded(model: Any, folder: Path, pairs: Pairs) -> None:
    probe = pair_logps(model, pairs.take(adapters.PROBE_PAIRS), 64)
    adapters.check_probe(folder, probe, torch.float32)


def test_the_first_loss_is_ln_2_and_the_curves_bear_trls_names(fit: Callable[..., Fit]) -> None:
    folder, history = fit(config())
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    names = {"loss", "grad_norm", "learning_rate", "epoch", "step", "rewards/chosen", "rewards/rejected"}
    names |= {"rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"}
    assert all(names <= set(row) for row in history)
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    facts = json.loads((folder / "fit.json").read_text())
    assert facts["steps"] == 4
    assert facts["canaries"]["weights_changed_at_step"] == 1
    assert facts["trainable_parameters"] > 0


def test_the_same_config_and_seed_give_bit_equal_adapters_and_another_seed_does_not(fit: Callable[..., Fit]) -> None:
    adapters = [
        (fit(config(seed=seed))[0] / "adapter" / "adapter_model.safetensors").read_bytes() for seed in (0, 0, 1)
    ]
    assert adapters[0] == adapters[1]
    assert adapters[0] != adapters[2]


def test_plain_peft_loads_the_adapter_and_scores_the_same(fit: Callable[..., Fit], tmp_path: Path) -> None:
    cfg = config()
    folder, _ = fit(cfg)
    base = load_base(cfg.model, CPU, tmp_path)
    pairs = training_pairs(validate(cfg), base)
    untrained = pair_logps(base.model, pairs, 64)
    model = PeftModel.from_pretrained(base.model, folder / "adapter").eval()  # type: ignore[arg-type]
    trained = pair_logps(model, pairs, 64)
    check_reloaded(model, folder, pairs)
    assert not torch.equal(untrained.chosen, trained.chosen)
    written = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "factdpo/nano", "no path of this machine"


def test_a_reloaded_model_that_scores_otherwise_is_refused(fit: Callable[..., Fit], tmp_path: Path) -> None:
    cfg = config()
    folder, _ = fit(cfg)
    base = load_base(cfg.model, CPU, tmp_path)
    pairs = training_pairs(validate(cfg), base)
    with pytest.raises(SanityCheckError, match="loaded from disk into a fresh base"):
        check_reloaded(base.model, folder, pairs)  # the adapter was forgotten


def test_lora_dropout_is_really_on_when_asked_for(fit: Callable[..., Fit]) -> None:
    """D4: TRL's disable_dropout=True would set it to 0, and a sweep over it would measure nothing."""
    histories = {}
    for dropout in (0.0, 0.5):
        cfg = config()
        cfg.lora.dropout = dropout
        _, histories[dropout] = fit(cfg)
    assert histories[0.0][0]["loss"] == pytest.approx(histories[0.5][0]["loss"], abs=1e-5), "B is 0: nothing to drop"
    assert histories[0.0][-1]["loss"] != histories[0.5][-1]["loss"]


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(fit: Callable[..., Fit]) -> None:
    def spoil(base: Base, refs: PairLogps) -> None:
        refs.chosen.fill_(math.nan)

    with pytest.raises(Diverged, match="loss is nan at step 1"):
        fit(config(), spoil)


def test_a_gradient_that_overflows_diverges_and_a_large_beta_does_not(fit: Callable[..., Fit]) -> None:
    with pytest.raises(Diverged, match="grad_norm is inf at step 1"):  # clipped by it, nothing changes
        fit(config(beta=1e38))
    _, history = fit(config(beta=1e6))
    assert len(history) == 4 and all(math.isfinite(row["loss"]) for row in history)


def test_a_reference_of_another_model_fails_the_first_step_check(fit: Callable[..., Fit]) -> None:
    def shift(base: Base, refs: PairLogps) -> None:
        refs.chosen.sub_(1.0)

    for log_every in (1, 3):
        cfg = config()
        cfg.track.log_every = log_every
        with pytest.raises(SanityCheckError, match=r"should be its own reference, but chosen differs by 1 nats"):
            fit(cfg, shift)


def test_the_first_and_the_last_step_are_logged_whatever_log_every_is(fit: Callable[..., Fit]) -> None:
    cfg = config(max_steps=8)
    cfg.track.log_every = 3
    _, history = fit(cfg)
    assert [row["step"] for row in history] == [1, 3, 6, 8]


def test_a_run_whose_every_rate_is_0_is_no_training(fit: Callable[..., Fit]) -> None:
    with pytest.raises(SanityCheckError, match="no optimizer step had a learning rate above 0"):
        fit(config(max_steps=1, warmup_ratio=0.5))


def test_a_step_that_changes_nothing_fails_the_sanity_check(fit: Callable[..., Fit]) -> None:
    with pytest.raises(SanityCheckError, match="changed no weight"):
        fit(config(learning_rate=1e-46))  # nothing, in float32


def test_with_warmup_the_first_rate_is_0_and_the_check_waits_for_the_second(fit: Callable[..., Fit]) -> None:
    folder, history = fit(config(warmup_ratio=0.5))
    assert history[0]["learning_rate"] == 0.0
    assert json.loads((folder / "fit.json").read_text())["canaries"]["weights_changed_at_step"] == 2


@pytest.mark.parametrize("loss", list(Loss))
def test_every_loss_of_trl_trains_and_starts_where_it_should(loss: Loss, fit: Callable[..., Fit]) -> None:
    smoothing = {Loss.exo_pair: 0.001, Loss.robust: 0.1}.get(loss, 0.0)
    folder, history = fit(config(loss=[loss], label_smoothing=smoothing, max_steps=1))
    canaries = json.loads((folder / "fit.json").read_text())["canaries"]
    expected = {
        "sigmoid": math.log(2), "hinge": 1.0, "ipo": 6.25, "robust": math.log(2), "apo_zero": 1.0, "apo_down": 1.0,
        "nca_pair": 2 * math.log(2), "sppo_hard": 12.5, "bco_pair": 2 * math.log(2), "aot": math.log(2),
        "aot_unpaired": math.log(2), "sigmoid_norm": math.log(2), "discopop": 0.5 * math.log(2) + 0.5,
        "exo_pair": math.log(0.5) - 0.5 * math.log(0.001 * 0.999),
    }  # fmt: skip
    assert canaries.get("expected_first_loss") == (
        pytest.approx(expected[loss.name]) if loss.name in expected else None
    )
    assert math.isfinite(history[-1]["loss"])


def test_several_losses_add_up_with_their_weights(fit: Callable[..., Fit]) -> None:
    _, history = fit(config(loss=[Loss.sigmoid, Loss.hinge], loss_weights=[1.0, 0.5], max_steps=1))
    assert history[0]["loss"] == pytest.approx(math.log(2) + 0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("facts", "dpo"),
    [
        (16, {"epochs": 2.0, "batch_size": 4}),
        (13, {"epochs": 1.0, "batch_size": 4}),
        (13, {"epochs": 2.0, "batch_size": 2, "gradient_accumulation_steps": 3}),
        (10, {"epochs": 1.5, "batch_size": 4}),
        (10, {"epochs": None, "max_steps": 5}),
    ],
)
def test_the_planned_steps_are_the_steps_made(facts: int, dpo: dict[str, Any], fit: Callable[..., Fit]) -> None:
    cfg = config(**({"max_steps": None} | dpo))
    cfg.split.train = facts
    _, history = fit(cfg)
    assert history[-1]["step"] == planned_steps(facts, cfg.dpo)


def test_eval_every_draws_points_over_training(fit: Callable[..., Fit]) -> None:
    cfg = config(epochs=2.0, max_steps=None)
    for every, steps in (("epoch", [4, 8]), ("3", [3, 6]), ("never", [])):
        cfg.eval.every = every
        _, history = fit(cfg)
        assert [row["step"] for row in history if "eval/train/accuracy" in row] == steps


def test_full_fine_tuning_saves_a_model_that_reloads(fit: Callable[..., Fit], tmp_path: Path) -> None:
    cfg = config(learning_rate=1e-4)
    cfg.lora = type(cfg.lora)(method=Method.full)
    folder, history = fit(cfg)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    base = load_base(cfg.model, CPU, tmp_path)
    check_reloaded(adapters.load_trained(base, folder), folder, training_pairs(validate(cfg), base))
    assert not (folder / "adapter").exists()


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_the_variants_of_lora_are_what_peft_makes(variant: str, fit: Callable[..., Fit]) -> None:
    cfg = config()
    setattr(cfg.lora, variant, True)
    folder, _ = fit(cfg)
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())[f"use_{variant}"] is True


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_other_architectures_train_too(family: str, fit: Callable[..., Fit], tmp_path: Path) -> None:
    torch.manual_seed(0)
    if family == "llama":
        shape = LlamaConfig(
            vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
        )
        model: Any = LlamaForCausalLM(shape)
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_embd=32, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path / family)
    AutoTokenizer.from_pretrained(nano.WEIGHTS).save_pretrained(tmp_path / family)
    cfg = config()
    cfg.model = ModelConfig(name=family, source=ModelSource.pretrained, id=str(tmp_path / family))
    _, history = fit(cfg)
    assert history[-1]["loss"] < history[0]["loss"]


def test_unknown_target_modules_are_refused_with_those_there_are(nano_base: Base) -> None:
    cfg = config()
    cfg.lora.target_modules = ["q_proj"]
    with pytest.raises(
        ConfigError, match=r"has no module q_proj; its linear layers are dense, dense_4h_to_h, dense_h_to_4h, query"
    ):
        adapters.check_targets(cfg, nano_base)
    cfg.lora.target_modules = ["query_key_value"]
    adapters.check_targets(cfg, nano_base)


def test_the_head_is_refused_as_a_target(nano_base: Base) -> None:
    """TRL reads its weight directly, and the batched engine gives it no rows of each run."""
    (head,) = (name for name, m in nano_base.model.named_modules() if m is nano_base.model.get_output_embeddings())
    cfg = config()
    cfg.lora.target_modules = ["query_key_value", head]
    with pytest.raises(ConfigError, match=rf"lora.target_modules=.*: {head} is the head, which no engine can adapt"):
        adapters.check_targets(cfg, nano_base)


def test_answers_of_many_tokens_train(fit: Callable[..., Fit], tmp_path: Path) -> None:
    rows = ["prompt,chosen,rejected"]
    rows += [f"Question {i} is about,the old castle by the sea {i},an old mill {i}" for i in range(32)]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    cfg = config(ld_alpha=0.5)
    cfg.data = DataConfig(source=type(cfg.data.source).pairs, path=str(tmp_path / "pairs.csv"))
    _, history = fit(cfg)
    assert history[-1]["loss"] < history[0]["loss"]


def test_bf16_autocast_starts_within_its_own_tolerance(fit: Callable[..., Fit]) -> None:
    _, history = fit(config(bf16=True, lr_scheduler=Schedule.constant))
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_trains_as_the_cpu_does(tmp_path: Path) -> None:
    """The same steps in float32: the devices differ by rounding alone, since PEFT draws the init on the CPU."""
    losses = []
    for name in ("cpu", "cuda"):
        cfg = validate(config())
        base = load_base(cfg.model, torch.device(name), tmp_path)
        pairs = training_pairs(cfg, base)
        history: list[dict[str, Any]] = []
        folder = tmp_path / name
        folder.mkdir()
        train_with_trl(base, pairs, pair_logps(base.model, pairs, 64), cfg, folder, history.append)
        losses.append([row["loss"] for row in history])
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
