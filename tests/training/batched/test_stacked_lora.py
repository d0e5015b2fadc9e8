"""Many adapters on one base: the layer's product and gradients, PEFT's files, and a base that stays as it was."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from factdpo.config.schema import Config, ConfigError
from factdpo.models.base import Base
from factdpo.models.scoring import PairLogps, pair_logps
from factdpo.training import adapters, trl_trainers
from factdpo.training.batched.adapter import Adapter, fresh_adapter, read_adapter
from factdpo.training.batched.packing import Packed, pack
from factdpo.training.batched.stacked_lora import StackedLinear, _Product, stacked
from tests.helpers.tiny import MODELS, tiny_base, tiny_config, tiny_pairs
from tests.helpers.training import train_with_trl


def random_adapter(cfg: Config, base: Base, seed: int = 0, size: float = 0.1) -> Adapter:
    """A fresh adapter whose B is not 0: as if trained."""
    fresh, generator = fresh_adapter(cfg, base), torch.Generator().manual_seed(seed)
    layers = {name: (a, size * torch.randn(b.shape, generator=generator)) for name, (a, b) in fresh.layers.items()}
    return Adapter(layers, fresh.config)


# ---------------------------------------------------------------------------------------------------------- the layer


def product_inputs(dtype: torch.dtype, bias: bool = True) -> tuple[Any, ...]:
    """x of 3 runs with 2 rows of 2 tokens each, 5 -> 4 features, rank 2."""
    torch.manual_seed(0)
    x = torch.randn(6, 2, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 5, dtype=dtype)
    a, b = (torch.randn(3, *shape, dtype=dtype, requires_grad=True) for shape in ((2, 5), (4, 2)))
    scale = torch.tensor([0.5, 2.0, 1.0], dtype=dtype).view(3, 1, 1)
    return x, weight, torch.randn(4, dtype=dtype) if bias else None, a, b, scale


def by_hand(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """LoRA as its paper has it, one run after the other."""
    rows = len(x) // len(a)
    each = [x[run * rows : (run + 1) * rows] @ a[run].T @ b[run].T * scale[run] for run in range(len(a))]
    return nn.functional.linear(x, weight, bias) + torch.cat(each)


@pytest.mark.parametrize("bias", [True, False])
def test_the_written_out_gradients_are_the_right_ones(bias: bool) -> None:
    inputs = product_inputs(torch.float64, bias)
    assert torch.autograd.gradcheck(_Product.apply, inputs)
    x, *rest = inputs
    assert torch.autograd.gradcheck(lambda *given: _Product.apply(x.detach(), *given), rest)


def test_the_product_and_its_gradients_are_those_of_autograd() -> None:
    found = []
    for product in (_Product.apply, by_hand):
        inputs = product_inputs(torch.float64)
        y = product(*inputs)
        y.square().sum().backward()
        found.append([y.detach(), *(inputs[i].grad for i in (0, 3, 4))])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_a_run_gets_nothing_from_anothers_rows() -> None:
    inputs = product_inputs(torch.float32)
    before = _Product.apply(*inputs)
    poisoned = torch.cat([torch.full_like(inputs[0][:2], torch.nan), inputs[0][2:].detach()]).requires_grad_()
    after = _Product.apply(poisoned, *inputs[1:])
    after[2:].sum().backward()
    assert torch.equal(before[2:], after[2:]) and after[:2].isnan().all()
    a = inputs[3].grad
    assert a[1:].isfinite().all()


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_stacked_layer_is_the_layer_with_each_runs_adapter(kind: str, dropout: bool) -> None:
    x, weight, bias, a, b, scale = product_inputs(torch.float32)
    layer: Any = nn.Linear(5, 4) if kind == "linear" else Conv1D(4, 5)
    with torch.no_grad():
        layer.weight.copy_(weight if kind == "linear" else weight.T)
        layer.bias.copy_(bias)
    stack = StackedLinear(layer, torch.float32)
    stack.a, stack.b, stack.scale = a, b, scale
    expected = by_hand(x, weight, bias, a, b, scale)
    if dropout:  # of the adapter's input alone
        stack.dropout_mask = (torch.rand(3, 4, 5) > 0.5) * 2.0
        dropped = x.view(3, 4, 5) * stack.dropout_mask
        expected = nn.functional.linear(x, weight, bias) + ((dropped @ a.mT) @ b.mT * scale).view(6, 2, 4)
    torch.testing.assert_close(stack(x), expected, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum(), (x, a, b)) for y in (stack(x), expected)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


def test_in_bfloat16_the_adapters_product_is_still_made_in_float32() -> None:
    x, weight, bias, a, b, scale = product_inputs(torch.float32)
    half, w, bias = x.detach().bfloat16(), weight.bfloat16(), bias.bfloat16()
    y = _Product.apply(half.requires_grad_(), w, bias, a, b, scale)
    assert y.dtype == torch.bfloat16
    rows = half.detach().float()
    expected = nn.functional.linear(half, w, bias).float() + by_hand(rows, torch.zeros(4, 5), None, a, b, scale)
    assert torch.equal(y, expected.bfloat16())
    y.float().sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    assert a.grad.dtype == b.grad.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- the stack


@pytest.mark.parametrize("family", MODELS)
def test_with_B_at_zero_every_run_is_the_base_bit_for_bit(family: str) -> None:
    base = tiny_base(family)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.inference_mode():
        before = base.model(ids).logits
    fresh = [fresh_adapter(tiny_config(dpo_seed=seed, lora_rank=rank), base) for seed, rank in ((0, 4), (1, 2))]
    with stacked(base, fresh, 4), torch.inference_mode():
        assert torch.equal(base.model(ids).logits, before)


@pytest.mark.parametrize("family", MODELS)
def test_each_run_of_a_stack_scores_as_plain_peft_with_its_saved_adapter(family: str, tmp_path: Path) -> None:
    """Ranks 2, 8 and 3 padded to 8, one of them rslora; three sets of pairs of their own, answers of many tokens."""
    cfgs = [tiny_config(lora_rank=2), tiny_config(lora_rank=8, lora_rslora=True), tiny_config(lora_rank=3)]
    base = tiny_base(family)
    made = [random_adapter(cfg, base, seed) for seed, cfg in enumerate(cfgs)]
    pairs = [tiny_pairs(count, 3, seed) for seed, count in enumerate((9, 5, 12))]
    with stacked(base, made, 8) as stack:
        found = stack.logps(pairs, max_tokens=64)
        back = [stack.adapter(run, adapter.config) for run, adapter in enumerate(made)]
    untrained = pair_logps(base.model, pairs[0], 64)
    assert (found[0].chosen - untrained.chosen).abs().max() > 0.1, "the adapters do something"
    for run, adapter in enumerate(back):
        adapter.save(tmp_path / str(run))
        plain = PeftModel.from_pretrained(tiny_base(family).model, tmp_path / str(run)).eval()
        expected = pair_logps(plain, pairs[run], 64)
        torch.testing.assert_close(vars(found[run]), vars(expected), rtol=0, atol=2e-5)
        for weights in (adapter, read_adapter(tmp_path / str(run))):
            assert weights.layers.keys() == made[run].layers.keys()
            assert all(
                torch.equal(x, y)
                for name in weights.layers
                for x, y in zip(weights.layers[name], made[run].layers[name], strict=True)
            )


def test_scores_do_not_depend_on_how_many_tokens_pass_at_once() -> None:
    base = tiny_base()
    adapter = random_adapter(tiny_config(), base)
    pairs = [tiny_pairs(9, 3, 0), tiny_pairs(2, 3, 1)]
    with stacked(base, [adapter, adapter], 4) as stack:
        small, large = stack.logps(pairs, max_tokens=1), stack.logps(pairs, max_tokens=10_000)
    for some, whole in zip(small, large, strict=True):
        torch.testing.assert_close(vars(some), vars(whole), rtol=0, atol=1e-5)


def test_out_of_memory_scoring_goes_on_with_half_as_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    base, pairs, cfg = tiny_base(), [tiny_pairs(9, longest=3)], tiny_config()
    sizes: list[int] = []
    with stacked(base, [fresh_adapter(cfg, base)], 4) as stack:
        whole, answers = stack.logps(pairs, 10_000), stack.answers

        def limited(packed: Packed, most: int) -> Any:
            sizes.append(packed.answer_mask.shape[2])
            if sizes[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return answers(packed)

        monkeypatch.setattr(stack, "answers", lambda packed: limited(packed, 2))
        (halved,) = stack.logps(pairs, 10_000)
        assert sizes == [9, 4, 2, 2, 2, 2, 1]
        assert halved.chosen.tolist() == pytest.approx(whole[0].chosen.tolist(), abs=1e-4)
        monkeypatch.setattr(stack, "answers", lambda packed: limited(packed, 0))
        with pytest.raises(torch.OutOfMemoryError):
            stack.logps(pairs, 10_000)


def test_keep_goes_on_with_those_runs_alone() -> None:
    base = tiny_base()
    made = [random_adapter(tiny_config(lora_rank=rank, lora_alpha=rank * 2.0), base, rank) for rank in (2, 4, 3)]
    pairs = tiny_pairs(6, 2)
    with stacked(base, made, 4) as stack:
        before = stack.logps([pairs] * 3, 512)
        stack.keep([2, 0])
        after = stack.logps([pairs] * 2, 512)
    for old, new in ((before[2], after[0]), (before[0], after[1])):
        torch.testing.assert_close(vars(old), vars(new), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "last"),
    [
        ("gpt_neox", {"attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}),
        ("llama", {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("gpt2", {"attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ("opt", {"self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"}),
        ("qwen2", {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
    ],
)
def test_past_the_last_attention_only_what_is_predicted_from_is_computed(family: str, last: set[str]) -> None:
    base, pairs = tiny_base(family), [tiny_pairs(9, 3, 0), tiny_pairs(4, 3, 1)]
    made = [random_adapter(tiny_config(lora_target_modules=["all-linear"]), base, seed) for seed in range(2)]
    packed = pack([(p, list(range(len(p)))) for p in pairs])
    with stacked(base, made, 4) as stack:
        found = {name for name, layer in stack.layers.items() if layer in stack.last}
        assert {name.split(".1.", 1)[-1] for name in found} == last, "of the second layer of two"
        weights = [weight.requires_grad_() for both in stack.views(stack.masters.clone()).values() for weight in both]
        stack.use(dict(zip(stack.layers, zip(weights[::2], weights[1::2], strict=True), strict=True)), stack.scales)
        results, last_layers = [], stack.last
        for stack.last in (last_layers, []):
            logps = stack.answers(packed).logps
            results.append([logps.detach(), *torch.autograd.grad(logps.sum(), weights)])
        assert all(layer.positions is None for layer in stack.layers.values())
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_what_an_adapter_may_bring_back_to_life_is_computed_everywhere() -> None:
    """Layers added with projections of zero pass nothing on, until their adapters do (LLaMA Pro, 2401.02415)."""
    base, pairs = tiny_base("llama"), tiny_pairs(6, 3)
    last = base.model.model.layers[-1]
    with torch.no_grad():
        last.self_attn.o_proj.weight.zero_()
        last.mlp.down_proj.weight.zero_()
    made = [random_adapter(tiny_config(lora_target_modules=["all-linear"]), base, 0)]
    packed = pack([(pairs, list(range(len(pairs))))])
    with stacked(base, made, 4) as stack, torch.no_grad():
        found = stack.answers(packed).logps
        stack.last = []
        torch.testing.assert_close(found, stack.answers(packed).logps, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- the base


def state(base: Base) -> dict[str, Any]:
    """Everything of the base that the stack could leave changed."""
    model = base.model
    return {
        "modules": [(name, type(module)) for name, module in model.named_modules()],
        "weights": {name: weight.clone() for name, weight in model.state_dict().items()},
        "trainable": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "training": model.training,
        "hooks": [name for name, module in model.named_modules() if module._forward_pre_hooks or module._forward_hooks],
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    weights = before["weights"], after["weights"]
    return all(before[key] == after[key] for key in before if key != "weights") and all(
        torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1]
    )


@pytest.mark.parametrize("ending", ["well", "an error within", "an error in a forward", "unknown layer"])
@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
def test_the_base_is_as_it_was_however_the_stack_ended(family: str, ending: str) -> None:
    base = tiny_base(family)
    before = state(base)
    adapter = random_adapter(tiny_config(), base)
    assert same(before, state(base)), "drawing an adapter leaves nothing behind"
    if ending == "unknown layer":
        adapter.layers["transformer.nowhere"] = next(iter(adapter.layers.values()))
        with pytest.raises(AttributeError), stacked(base, [adapter], 4):
            pass
    elif ending == "well":
        with stacked(base, [adapter], 4) as stack:
            assert not same(before, state(base))
            stack.logps([tiny_pairs(3)], 64)
    elif ending == "an error within":
        with pytest.raises(KeyError), stacked(base, [adapter], 4):
            raise KeyError
    else:
        with pytest.raises(IndexError), stacked(base, [adapter], 4) as stack:
            stack.logps([dataclasses.replace(tiny_pairs(3), prompt_ids=[[5000]] * 3)], 64)  # no such token
    assert same(before, state(base))


# -------------------------------------------------------------------------------------------------------- PEFT and TRL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "qwen2"])
def test_a_fresh_adapter_is_what_trls_trainer_starts_with_bit_for_bit(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    cfg = tiny_config(dpo_seed=11, lora_rank=5, lora_dropout=0.1)
    base, pairs = tiny_base(family, dtype), tiny_pairs(4)
    nothing = PairLogps(torch.zeros(4), torch.zeros(4), torch.zeros(4, dtype=torch.bool))
    trainer = trl_trainers._PairsTrainer(
        model=base.model,
        args=trl_trainers._dpo_arguments(cfg, base, str(tmp_path)),
        train_dataset=trl_trainers._dataset(pairs, nothing),
        processing_class=base.tokenizer,
        peft_config=adapters.lora_config(cfg, base),
    )
    model: Any = trainer.model
    theirs = {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight)
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, LoraLayer)
    }
    ours = fresh_adapter(cfg, tiny_base(family, dtype)).layers
    assert list(ours) == list(theirs)
    for name, both in ours.items():
        for mine, trls in zip(both, theirs[name], strict=True):
            assert trls.dtype == torch.float32 and torch.equal(mine, trls)


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("gpt_neox", {}),
        ("gpt2", {"lora_rslora": True, "lora_dropout": 0.2}),
        ("llama", {"lora_target_modules": ["q_proj", "down_proj"], "lora_alpha": 3.5}),
    ],
)
def test_the_files_of_an_adapter_are_those_that_engine_trl_writes(
    family: str, lora: dict[str, Any], tmp_path: Path
) -> None:
    cfg = tiny_config(dpo_max_steps=1, **lora)
    base, pairs = tiny_base(family), tiny_pairs(4)
    refs = pair_logps(base.model, pairs, 64)
    fresh_adapter(cfg, base).save(tmp_path / "ours")
    train_with_trl(base, pairs, refs, cfg, tmp_path)
    ours, theirs = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "adapter"))
    for written in (ours, theirs):
        written["target_modules"] = sorted(written["target_modules"])
    assert ours == theirs
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == sorted(
        p.name for p in (tmp_path / "adapter").iterdir()
    )
    ours, theirs = (read_adapter(tmp_path / name) for name in ("ours", "adapter"))
    shapes = [
        {name: [w.shape for w in both] + [w.dtype for w in both] for name, both in adapter.layers.items()}
        for adapter in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


def test_the_scale_is_peft_s() -> None:
    def scale(**lora: Any) -> float:
        return Adapter({}, LoraConfig(**lora)).scale

    assert scale(r=4, lora_alpha=8) == 2.0
    assert scale(r=4, lora_alpha=8, use_rslora=True) == 4.0


def test_a_target_that_is_no_linear_layer_is_refused_by_name_and_the_base_is_as_it_was() -> None:
    base = tiny_base()
    before = state(base)
    with pytest.raises(ConfigError, match=r"lora\.target_modules: .*embed_in is a Embedding"):
        fresh_adapter(tiny_config(lora_target_modules=["embed_in"]), base)
    assert same(before, state(base))


@pytest.mark.parametrize("other", ["act", "input_layernorm"])
def test_a_target_that_peft_refuses_halfway_leaves_the_base_as_it_was(other: str) -> None:
    base = tiny_base()
    before = state(base)
    with pytest.raises(ConfigError, match=rf"lora.target_modules=\['dense', '{other}'\]: .* is not supported"):
        fresh_adapter(tiny_config(lora_target_modules=["dense", other]), base)
    assert same(before, state(base))
    fresh_adapter(tiny_config(lora_target_modules=["dense"]), base)
