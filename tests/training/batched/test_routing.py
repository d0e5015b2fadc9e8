"""The auxiliary loss of routers in packed rows is transformers' own of whole rows."""

import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from factdpo.training.batched.packing import pack
from factdpo.training.batched.routing import auxiliary_losses, mean_over_batches, router_of, token_weights
from tests.helpers.tiny import tiny_base, tiny_pairs

LAYERS, EXPERTS, TOP_K = 3, 5, 2


def test_a_loss_is_transformers_in_every_micro_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2 * 20, EXPERTS, generator=generator) for _ in range(LAYERS)]
    weights = torch.randint(0, 3, (2, 3, 20), generator=generator).float()
    weights[1, 2] = 0  # a micro-batch that the second run does not have
    found = auxiliary_losses(logits, weights, TOP_K)
    for r in range(2):
        own = tuple(of_layer.view(2, 20, EXPERTS)[r] for of_layer in logits)
        for b in range(3 - r):
            wanted = load_balancing_loss_func(own, EXPERTS, TOP_K, weights[r, b])
            torch.testing.assert_close(found[r, b], wanted)
    assert found[1, 2] == 0
    torch.testing.assert_close(mean_over_batches(found, weights), torch.stack([found[0].mean(), found[1, :2].mean()]))


def test_tokens_weigh_what_trl_has_of_them() -> None:
    """By rows that TRL would have: both answers of a pair, or the chosen one, and nothing of what is retained."""
    pairs = tiny_pairs(6, longest=3)
    batches = [[4, 1], [0]]
    packed = pack([(pairs, [4, 1, 0, 5]), (pairs, [4, 1, 0, 5])], whole=True)
    weights = token_weights(packed, [(pairs, batches, 2), (pairs, batches, 1)])
    for r, answers in enumerate(([pairs.chosen_ids, pairs.rejected_ids], [pairs.chosen_ids])):
        for b, batch in enumerate(batches):
            wanted = torch.zeros(2048)
            for row in batch:
                for column in answers:
                    wanted += torch.bincount(torch.tensor(pairs.prompt_ids[row] + column[row]), minlength=2048)
            ids = packed.ids.view(2, -1)[r]
            assert torch.equal(torch.zeros(2048).index_add(0, ids, weights[r, b]), wanted)


def test_a_coefficient_of_zero_is_no_loss() -> None:
    base = tiny_base("qwen2_moe")
    router = router_of(base)
    assert router is not None and (router.coefficient, router.top_k) == (0.1, 2)
    base.model.config.router_aux_loss_coef = 0.0
    assert router_of(base) is None
    assert router_of(tiny_base("llama")) is None
