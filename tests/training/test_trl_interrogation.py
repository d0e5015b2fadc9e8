"""What TRL is asked of a base before it trains it: heads with more than a matrix, and experts by other names."""

import pytest
import torch

from factdpo.models.soundness import extremes
from factdpo.training.trl_interrogation import why_not_by_trl
from tests.helpers.architectures import base_of, held_out_pairs, tiny_model, training_pairs
from tests.helpers.tiny import tiny_base, tiny_config

PROBES = extremes([training_pairs(tiny_config()), held_out_pairs()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_ordinary_model_is_computed_and_left_as_it_was(dtype: torch.dtype) -> None:
    base = tiny_base("llama", dtype)
    assert why_not_by_trl(base, PROBES) is None and "forward" not in vars(base.model)


def test_a_head_with_more_than_its_last_matrix_is_none_of_trls() -> None:
    base = base_of("roberta", tiny_model("roberta", is_decoder=True))
    sentence = why_not_by_trl(base, PROBES)
    assert sentence is not None and sentence.startswith("by TRL an answer's log-prob is up to")
    assert "forward" not in vars(base.model)


def test_experts_that_are_not_named_as_mixtrals_are_none_of_trls() -> None:
    sentence = why_not_by_trl(base_of("granitemoe", tiny_model("granitemoe")), PROBES)
    assert sentence is not None and sentence.startswith("TRL cannot compute it (AttributeError")
