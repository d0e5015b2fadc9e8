"""What a base is asked before the batched engine may have it: each way to be wrong is found, and named."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from factdpo.config.schema import ConfigError
from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.models.soundness import extremes
from factdpo.training.batched import adapter, masks, stacked_lora
from factdpo.training.batched.interrogation import interrogate
from factdpo.training.batched.packing import Packed
from tests.helpers.architectures import LONG, base_of, held_out_pairs, tiny_model, training_pairs
from tests.helpers.tiny import tiny_base, tiny_config

CFG = tiny_config()


@pytest.fixture(scope="module")
def probes() -> Pairs:
    """Of data with short rows, long ones, and prompts that begin alike."""
    return extremes([training_pairs(CFG), held_out_pairs()])


def test_the_probes_have_the_longest_and_the_shortest_row_of_every_split(probes: Pairs) -> None:
    whole = [len(prompt) for split in (training_pairs(CFG), held_out_pairs()) for prompt in split.prompt_ids]
    asked = [len(prompt) for prompt in probes.prompt_ids]
    assert (min(asked), max(asked)) == (min(whole), max(whole)) and max(asked) > LONG
    assert len(probes) <= 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_ordinary_model_is_known_to_be_exact_and_is_left_as_it_was(probes: Pairs, dtype: torch.dtype) -> None:
    base = tiny_base("llama", dtype)
    before = {name: (tensor, tensor.data_ptr()) for name, tensor in base.model.state_dict().items()}
    random = torch.random.get_rng_state()
    assert interrogate(base, CFG, probes) == (None, None)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(after[name].data_ptr() == place and after[name].dtype == dtype for name, (_, place) in before.items())
    assert torch.equal(random, torch.random.get_rng_state())


def test_a_window_is_in_the_mask_of_its_layers(probes: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_of("gemma2", tiny_model("gemma2"))
    assert interrogate(base, CFG, probes) == (None, None)
    monkeypatch.setattr(stacked_lora, "attention_masks", lambda config, packed, dtype: packed.attention_mask(dtype))
    sentence = interrogate(base, CFG, probes).not_batched
    assert sentence is not None and "where pairs share a row, an answer's log-prob is up to" in sentence


def test_a_window_as_long_as_every_pair_changes_no_mask() -> None:
    config = tiny_model("mistral").config
    packed = Packed(*[torch.zeros(1, 4, dtype=torch.long)] * 8, longest=config.sliding_window)
    assert isinstance(masks.attention_masks(config, packed, torch.float32), torch.Tensor)


class Recurrent(nn.Module):
    """Adds a running mean over the tokens before, as recurrence and convolution do, whoever's they are."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.inner(x + 0.1 * x.cumsum(1) / steps)


class Twice(nn.Module):
    """Calls a layer twice."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.inner(x))


class WithoutGradient(Twice):
    """Calls it without gradient, as an indexer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.inner(x)


def _leaks(base: Base) -> None:
    base.model.model.layers[0].mlp = Recurrent(base.model.model.layers[0].mlp)


def _calls_twice(base: Base) -> None:
    base.model.model.layers[0].mlp = Twice(base.model.model.layers[0].mlp)


def _has_no_gradient(base: Base) -> None:
    attention = base.model.model.layers[1].self_attn
    attention.o_proj = WithoutGradient(attention.o_proj)


def _never_calls(base: Base) -> None:
    base.model.model.layers[0].spare = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_leaks, "where pairs share a row, an answer's log-prob is up to"),
        (_calls_twice, r"calls the adapted layer model.layers.0.mlp.inner.gate_proj and 2 more 2 times"),
        (_has_no_gradient, "computes the adapted layer model.layers.1.self_attn.o_proj.inner without gradient"),
        (_never_calls, "calls the adapted layer model.layers.0.spare 0 times"),
    ],
)
def test_a_forward_that_is_not_what_it_seems_is_named(
    probes: Pairs, change: Callable[[Base], None], sentence: str
) -> None:
    base = tiny_base("llama")
    change(base)
    found = interrogate(base, CFG, probes)
    assert found.no_engine is None and sentence in str(found.not_batched)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("mpt", "an answer's log-prob is up to"),  # ALiBi by place, not by position
        ("lfm2", "an answer's log-prob is up to"),  # convolution
        ("bloom", "does not take several pairs in a row"),
    ],
)
def test_architectures_that_cannot_share_a_row_are_trls(probes: Pairs, kind: str, sentence: str) -> None:
    found = interrogate(base_of(kind, tiny_model(kind)), CFG, probes)
    assert found.no_engine is None and sentence in str(found.not_batched)


def _of_another_loss(base: Base) -> None:
    """The model's own loss of its routers is another than the one that is computed here."""
    base.model.num_experts_per_tok = 3


def _asks_for_it(base: Base) -> None:
    base.model.config.output_router_logits = True


def _without_a_loss(base: Base) -> None:
    del base.model.num_experts_per_tok  # which its forward takes to compute it


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda base: None, None),
        (_asks_for_it, None),
        (_of_another_loss, "where pairs share a row, its router's auxiliary loss is"),
        (_without_a_loss, "the auxiliary loss of its router cannot be computed"),
    ],
)
def test_a_routers_loss_that_is_another_is_trls(
    probes: Pairs, change: Callable[[Base], None], sentence: str | None
) -> None:
    base = tiny_base("qwen2_moe")
    change(base)
    found = interrogate(base, CFG, probes)
    assert found.no_engine is None
    assert found.not_batched is None if sentence is None else sentence in str(found.not_batched)


def test_adapters_past_the_last_router_change_no_loss_of_it(probes: Pairs) -> None:
    last = tiny_config(lora_target_modules=["model.layers.1.mlp.shared_expert.down_proj"])
    assert interrogate(tiny_base("qwen2_moe"), last, probes) == (None, None)


def test_an_adapter_that_would_not_load_back_is_for_no_engine(probes: Pairs) -> None:
    """PEFT renames what transformers renames when it loads: here the shared experts."""
    found = interrogate(base_of("laguna", tiny_model("laguna")), CFG, probes)
    assert "PEFT does not load back what it saves of the adapted layer" in str(found.no_engine)
    assert "mlp.shared_experts.gate_proj and 2 more" in str(found.no_engine)


def test_what_the_trainer_exempts_from_weight_decay_by_name_is_trls(probes: Pairs) -> None:
    base = tiny_base("llama")
    layer = base.model.model.layers[0]
    layer.pre_norm = layer.mlp  # as DBRX calls what holds its attention
    del layer.mlp
    layer.mlp = lambda x: layer.pre_norm(x)
    assert interrogate(base, CFG, probes) == (None, None)
    found = interrogate(base, tiny_config(dpo_weight_decay=0.1), probes)
    assert "exempts 6 of its adapters from dpo.weight_decay by name" in str(found.not_batched)


def test_adapters_that_do_not_compute_are_for_no_engine(probes: Pairs) -> None:
    base = tiny_base("llama")
    cfg = dataclasses.replace(CFG, lora=dataclasses.replace(CFG.lora, target_modules=["nothing_here"]))
    assert "lora.target_modules=['nothing_here']" in str(interrogate(base, cfg, probes).no_engine)


def test_a_falcon_has_a_linear_layer_by_another_name(probes: Pairs) -> None:
    base = base_of("falcon", tiny_model("falcon"))
    assert type(base.model.get_submodule("transformer.h.0.mlp.dense_h_to_4h")).__name__ == "FalconLinear"
    assert interrogate(base, CFG, probes) == (None, None)
    with pytest.raises(ConfigError, match="FalconMLP"):
        adapter.fresh_adapter(tiny_config(lora_target_modules=["mlp"]), base)
