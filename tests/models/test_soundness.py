"""A base is asked whether its log-probs mean what they say."""

import torch
from torch import nn

from factdpo.models.soundness import extremes, why_unsound
from tests.helpers.architectures import LONG, base_of, held_out_pairs, tiny_model, training_pairs
from tests.helpers.tiny import tiny_base, tiny_config

PROBES = extremes([training_pairs(tiny_config()), held_out_pairs()])


def test_a_decoder_is_sound_in_any_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert why_unsound(tiny_base("llama", dtype), PROBES, 128) is None


def test_an_encoder_is_not_causal() -> None:
    sentence = why_unsound(base_of("bert", tiny_model("bert", is_decoder=False)), PROBES, 128)
    assert "not causal as it is configured" in str(sentence) and "is_decoder=true" in str(sentence)


def test_a_model_with_fewer_positions_than_the_longest_row_is_named_with_them() -> None:
    model = tiny_model("gpt2", n_positions=LONG)
    assert "it cannot compute a row of 64 tokens" in str(why_unsound(base_of("gpt2", model), PROBES, 64))


class Mixes(nn.Module):
    """Adds a mean over the rows of the batch."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x + x.mean(0, keepdim=True))


def test_a_model_whose_rows_see_each_other_has_no_log_prob() -> None:
    base = tiny_base("llama")
    base.model.model.layers[0].mlp = Mixes(base.model.model.layers[0].mlp)
    assert "depends on the rows beside it" in str(why_unsound(base, PROBES, 128))
