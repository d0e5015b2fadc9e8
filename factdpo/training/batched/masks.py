"""What attention adds in a packed forward, per kind of layer: transformers' rules, by positions in a pair.

A model takes a ready 4-D mask as it is, so that a window that the model has must be in it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from factdpo.training.batched.packing import Packed

Mask = Float[Tensor, "rows 1 T T"]


def attention_masks(config: Any, packed: Packed, dtype: torch.dtype) -> Mask | dict[str, Mask]:
    """The mask of all layers, or one for each kind of layer by transformers' name of it.

    Where no pair is as long as a window, no window hides anything, and there is one mask.
    """
    text = config.get_text_config()
    window, chunk = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
    if packed.longest <= min(window or packed.longest, chunk or packed.longest):
        return packed.attention_mask(dtype)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:  # all layers are of one kind
        return packed.attention_mask(dtype, window=window, chunk=chunk)
    return {kind: _mask_of(kind, packed, dtype, window, chunk) for kind in set(kinds)}


def _mask_of(kind: str, packed: Packed, dtype: torch.dtype, window: int | None, chunk: int | None) -> Mask:
    if kind == "sliding_attention":
        return packed.attention_mask(dtype, window=window)
    return packed.attention_mask(dtype, chunk=chunk if kind == "chunked_attention" else None)
