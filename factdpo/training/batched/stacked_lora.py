"""Many LoRA adapters on one frozen base: every forward carries rows of R runs, the runs one after the other.

Each adapted linear layer adds its own run's product to the base's, by two batched matmuls whatever R is. Smaller ranks
are padded with zeros; their gradients are zero, so they stay zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from peft import LoraConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from factdpo.data.pairs import Pairs
from factdpo.models.base import Base
from factdpo.models.logps import answer_logps
from factdpo.models.scoring import PairLogps
from factdpo.training.batched.adapter import Adapter
from factdpo.training.batched.masks import attention_masks
from factdpo.training.batched.packing import Packed, pack, shared_lengths
from factdpo.training.batched.routing import Logits, router_logits, router_of


class Answers(NamedTuple):
    """What a packed forward gives for each pair, summed over an answer's tokens; side 0 is chosen, 1 rejected."""

    logps: Float[Tensor, "2 R B"]  # nats
    greedy: Float[Tensor, "2 R B"]  # tokens that greedy decoding predicts
    entropy: Float[Tensor, "2 R B"]  # of the predictions, in nats
    mean_logit: Float[Tensor, "2 R B"]  # means over the vocabulary
    router_logits: list[Logits]  # of each router, where they were asked for


class _Product(torch.autograd.Function):
    """x W^T + b + scale (x A^T) B^T, each run's rows with its own A and B, W and b frozen (LoRA, 2106.09685 eq. 3).

    Written out so that no product is copied: the adapter's is added in place, forward and backward.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: Tensor
    ) -> Tensor:
        rows = x.reshape(len(a), -1, x.shape[-1]).to(a.dtype)
        inner = torch.bmm(rows, a.mT).mul_(scale)
        y = F.linear(x.to(weight.dtype), weight, bias).to(a.dtype)
        y.view(len(a), -1, y.shape[-1]).baddbmm_(inner, b.mT)
        ctx.save_for_backward(rows, inner, weight, a, b, scale)
        ctx.dtype = x.dtype
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, inner, weight, a, b, scale = ctx.saved_tensors
        g = grad.reshape(len(a), -1, grad.shape[-1]).to(a.dtype)
        grad_inner = torch.bmm(g, b).mul_(scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad.to(weight.dtype) @ weight).to(a.dtype)
            grad_x.view(len(a), -1, grad_x.shape[-1]).baddbmm_(grad_inner, a)
            grad_x = grad_x.to(ctx.dtype)
        return grad_x, None, None, torch.bmm(grad_inner.mT, rows), torch.bmm(g.mT, inner), None


class StackedLinear(nn.Module):
    """A frozen linear layer with the adapters of R runs, in place of nn.Linear or GPT-2's Conv1D."""

    def __init__(self, base: nn.Module, dtype: torch.dtype):
        super().__init__()
        weight, bias = cast(Tensor, base.weight), cast(Tensor | None, base.bias)
        self.base = base
        self.weight, self.bias = weight.T if isinstance(base, Conv1D) else weight, bias  # [d_out, d_in], [d_out]
        self.in_training = self.weight.to(dtype), bias if bias is None else bias.to(dtype)
        self.a = self.b = self.scale = torch.empty(0)  # [R, K, d_in], [R, d_out, K], [R, 1, 1]: the stack sets them
        self.dropout_mask: Float[Tensor, "R tokens d_in"] | None = None  # 0, or 1 / (1 - p); None without dropout
        self.positions: Int[Tensor, "R H"] | None = None  # tokens whose output is needed; None: all

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_out]; 0 for tokens whose output is not needed."""
        if self.positions is None:
            return self._product(x, self.dropout_mask)
        needed, mask = self.positions.flatten(), self.dropout_mask
        mask = None if mask is None else mask.flatten(0, 1)[needed].view(*self.positions.shape, -1)
        y = self._product(x.reshape(-1, x.shape[-1]).index_select(0, needed), mask)
        return y.new_zeros(x.shape[:-1].numel(), y.shape[-1]).index_copy(0, needed, y).view(*x.shape[:-1], -1)

    def _product(self, x: Tensor, dropout_mask: Tensor | None) -> Tensor:
        weight, bias = self.in_training if torch.is_grad_enabled() else (self.weight, self.bias)
        if dropout_mask is None:
            return _Product.apply(x, weight, bias, self.a, self.b, self.scale)  # type: ignore[return-value]
        y = F.linear(x.to(weight.dtype), weight, bias)
        rows = x.reshape(len(self.a), -1, x.shape[-1]).to(self.a.dtype) * dropout_mask
        inner = torch.bmm(rows, self.a.mT) * self.scale
        stacked = torch.baddbmm(y.view(len(self.a), -1, y.shape[-1]).to(inner.dtype), inner, self.b.mT)
        return stacked.to(x.dtype).view_as(y)


class Stack:
    """A base with the adapters of R runs; their weights are float32 masters in one tensor [R, P]. See `stacked`."""

    def __init__(self, base: Base, layers: dict[str, StackedLinear], adapters: list[Adapter], rank: int):
        self.base, self.layers, self.rank = base, layers, rank
        self.router = router_of(base)
        # A config may ask the model for a router's loss, which takes a mask of whole rows.
        asks = getattr(base.model.config.get_text_config(), "output_router_logits", False)
        self._no_loss = {"output_router_logits": False} if asks else {}
        self.last = [layers[name] for name in _after_attention(base, list(layers))]
        parameters = sum(self.rank * (layer.weight.shape[0] + layer.weight.shape[1]) for layer in layers.values())
        self.masters = torch.zeros(len(adapters), parameters)
        self.scales = torch.tensor([adapter.scale for adapter in adapters]).view(-1, 1, 1).to(base.device)
        trained = torch.tensor([adapter.trained for adapter in adapters]).view(-1, 1)
        self.trained = (torch.arange(rank) < trained).float().to(base.device)  # [R, K]: 0 for rows that stay
        self.frozen = any(adapter.frozen for adapter in adapters)
        views = self.views(self.masters)
        for run, adapter in enumerate(adapters):
            for name, (a, b) in adapter.layers.items():
                views[name][0][run, : len(a)] = a
                views[name][1][run, :, : len(a)] = b
        self.masters = self.masters.to(base.device)
        self.use(self.views(self.masters), self.scales)

    def put_on(self) -> None:
        """Put the stacked layers into the base: its forward is then that of the runs."""
        for name, layer in self.layers.items():
            self.base.model.set_submodule(name, layer)

    def take_off(self) -> None:
        """Put the base's own layers back: it is then as it was."""
        for name, layer in self.layers.items():
            self.base.model.set_submodule(name, layer.base)

    def views(self, flat: Float[Tensor, "R P"]) -> dict[str, tuple[Tensor, Tensor]]:
        """Each layer's A [R, K, d_in] and B [R, d_out, K] in a tensor laid out as `masters`."""
        views, start = {}, 0
        for name, layer in self.layers.items():
            outputs, inputs = layer.weight.shape
            middle, end = start + self.rank * inputs, start + self.rank * (inputs + outputs)
            a, b = flat[:, start:middle], flat[:, middle:end]
            views[name] = a.view(-1, self.rank, inputs), b.view(-1, outputs, self.rank)
            start = end
        return views

    def use(self, weights: dict[str, tuple[Tensor, Tensor]], scales: Float[Tensor, "R 1 1"]) -> None:
        """Compute with these weights from now on."""
        for name, (a, b) in weights.items():
            layer = self.layers[name]
            layer.a, layer.b, layer.scale = a, b, scales

    def keep(self, runs: list[int]) -> None:
        """Drop all other runs; the padding of the ranks stays as it is."""
        self.masters, self.scales, self.trained = self.masters[runs].contiguous(), self.scales[runs], self.trained[runs]
        self.use(self.views(self.masters), self.scales)

    def adapter(self, run: int, config: LoraConfig) -> Adapter:
        """One run's weights without the padding."""
        layers = {
            name: (a[run, : config.r].cpu().contiguous(), b[run, :, : config.r].cpu().contiguous())
            for name, (a, b) in self.views(self.masters).items()
        }
        return Adapter(layers, config)

    def answers(self, packed: Packed, with_routers: bool = False) -> Answers:
        """One forward; layers after the last attention compute only the positions that predict an answer's token.

        With `with_routers` they compute all, and the routers' logits are among what is returned.
        """
        if with_routers:
            with router_logits(self.base.model) as of_routers:
                logits = self._logits(packed, [])
        else:
            logits, of_routers = self._logits(packed, self.last), []
        logps = logits.float().log_softmax(-1)
        at, mask = packed.answer_at, packed.answer_mask
        answers = answer_logps(logps, at, packed.answer_ids, mask)
        with torch.no_grad():
            entropy = -(logps.exp() * logps).sum(-1)
            is_greedy = logits.argmax(-1)[at] == packed.answer_ids

            def over_tokens(values: Tensor) -> Tensor:
                return torch.where(mask, values, 0.0).sum(-1)

            return Answers(
                answers,
                over_tokens(is_greedy.float()),
                over_tokens(entropy[at]),
                over_tokens(logits.float().mean(-1)[at]),
                of_routers,
            )

    def _logits(self, packed: Packed, last: list[StackedLinear]) -> Float[Tensor, "M V"]:
        """At the M = R * H positions of `packed.head`, which are all that the layers `last` compute."""
        model = self.base.model
        head = cast(nn.Module, model.get_output_embeddings())
        # The head, and with it the rest of the model's own forward, gets [1, M, D] in place of [rows, T, D].
        hook = head.register_forward_pre_hook(lambda _, given: (given[0].flatten(0, 1)[packed.head.flatten()][None],))
        for layer in last:
            layer.positions = packed.head
        try:
            return model(
                input_ids=packed.ids,
                attention_mask=attention_masks(model.config, packed, model.dtype),
                position_ids=packed.positions,
                use_cache=False,
                **self._no_loss,
            ).logits[0]
        finally:
            hook.remove()
            for layer in last:
                layer.positions = None

    @torch.no_grad()
    def logps(self, pairs: list[Pairs], max_tokens: int) -> list[PairLogps]:
        """Score each run's own pairs, in shared forwards of at most `max_tokens`; on the CPU, NaN included.

        Out of memory, the forwards are halved.
        """
        orders = [sorted(range(len(p)), key=lambda row, p=p: p.prompt_ids[row]) for p in pairs]  # alike ones together
        most = max(map(len, pairs))
        tokens = sum(sum(shared_lengths(p, order)) for p, order in zip(pairs, orders, strict=True))
        at_once = max(1, min(most, max_tokens * most // max(1, tokens)))
        sides, greedy = torch.empty(2, len(pairs), most), torch.empty(len(pairs), most, dtype=torch.bool)
        start = 0
        while start < most:
            selected = [order[start : start + at_once] for order in orders]
            packed = pack(list(zip(pairs, selected, strict=True)), share=True)
            try:
                answers = self.answers(packed.to(self.base.device))
            except torch.OutOfMemoryError:
                if at_once == 1:
                    raise
                at_once //= 2
                continue
            start += at_once
            for r, rows in enumerate(selected):
                sides[:, r, rows] = answers.logps[:, r, : len(rows)].cpu()
                greedy[r, rows] = (answers.greedy[0, r].cpu() == packed.answer_mask[0, r].sum(-1))[: len(rows)]
        return [
            PairLogps(sides[0, r, : len(p)].clone(), sides[1, r, : len(p)].clone(), greedy[r, : len(p)].clone())
            for r, p in enumerate(pairs)
        ]


@contextmanager
def stacked(base: Base, adapters: list[Adapter], rank: int, bf16_products: bool = False) -> Iterator[Stack]:
    """The base with these adapters while the context lasts; all have the same layers and at most this rank.

    With `bf16_products` the frozen layers multiply in bfloat16 in training, and in their own dtype when they score.
    """
    layers = {}
    for name in adapters[0].layers:
        layer = base.model.get_submodule(name)
        dtype = torch.bfloat16 if bf16_products else cast(Tensor, layer.weight).dtype
        layers[name] = StackedLinear(layer, dtype)
    stack = Stack(base, layers, adapters, rank)
    try:
        stack.put_on()
        yield stack
    finally:
        stack.take_off()


@torch.enable_grad()
def _after_attention(base: Base, names: list[str]) -> list[str]:
    """The layers whose output at a position affects only the prediction from that position.

    Measured, not derived from names: the gradient of one prediction reaches the layer's output at its own position and
    no other. Empty if any layer's weights are all zero: its adapter will pass on gradients that are blocked now.
    """
    if not all(cast(Tensor, base.model.get_submodule(name).weight).any() for name in names):
        return []
    outputs: dict[str, Tensor] = {}
    embedding = cast(nn.Module, base.model.get_input_embeddings())
    hooks = [embedding.register_forward_hook(lambda _, given, output: output.requires_grad_())]
    for name in names:
        module = base.model.get_submodule(name)
        hooks.append(module.register_forward_hook(lambda _, given, y, name=name: outputs.update({name: y})))
    try:
        last = base.model(input_ids=torch.arange(1, 9, device=base.device)[None], use_cache=False).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
    outputs = {name: y for name, y in outputs.items() if y.requires_grad}
    grads = torch.autograd.grad(last.float().logsumexp(0), list(outputs.values()), allow_unused=True)
    reached = {name: grad.view(8, -1).any(1) for name, grad in zip(outputs, grads, strict=True) if grad is not None}
    return [name for name, positions in reached.items() if positions[-1] and not positions[:-1].any()]
