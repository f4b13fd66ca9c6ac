"""Attention by shape: plain products where the fused kernel is slower in training, the fused kernel elsewhere.

Forward and backward of the fused kernel against plain products, 12 heads, with a mask: on a processor with AVX-512 it
takes 1.1 to 1.8 times as long in float32 up to 128 tokens, and in bfloat16 1.2 to 8.8 times up to 512; with AVX2 alone
it is faster at every length (`benchmarks/attention.py`). The choice follows from processor, dtype and length, not from
a clock: a training that goes on computes what it would have computed.

Shape legend: B rows, H heads, Q queries, S keys, K head width.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import create_position_bias_mask, repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from deltatune.engine.attention_switch import switch_attention

BY_SHAPE = "by_shape"
"""Name in the attention registry of `transformers`."""
LONGEST = {torch.float32: 128, torch.bfloat16: 512}
"""Keys up to which plain products are faster on a processor with AVX-512."""


def choose_attention(model: Any) -> None:
    """Replaces the fused attention of a model by the choice; any other attention that was asked for stays."""
    if getattr(getattr(model, "config", None), "_attn_implementation", None) == "sdpa" and _wide():
        switch_attention(model, BY_SHAPE)


def prefers_plain(device: str, dtype: torch.dtype, keys: int, wide: bool) -> bool:
    """Whether plain products train faster than the fused kernel; `wide` is a processor with AVX-512.

    >>> prefers_plain("cpu", torch.float32, 128, wide=True), prefers_plain("cpu", torch.float32, 256, wide=True)
    (True, False)
    """
    return device == "cpu" and wide and keys <= LONGEST.get(dtype, 0)


def plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """softmax(Q K^T / sqrt(K) + mask) V as [B, Q, H, K], for the arguments of the fused function.

    The weights are kept in the dtype of the queries; the softmax adds up in float32 all the same.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = causal and attention_mask is None and query.shape[2] > 1
    scores_BHQS = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    mask = attention_mask
    if position_bias is not None:
        mask, causal = create_position_bias_mask(position_bias, mask, causal, query, key), False
    if causal:
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        scores_BHQS = scores_BHQS.masked_fill(~seen, torch.finfo(scores_BHQS.dtype).min)
    elif mask is not None and mask.dtype == torch.bool:
        scores_BHQS = scores_BHQS.masked_fill(~mask, torch.finfo(scores_BHQS.dtype).min)
    elif mask is not None:
        scores_BHQS = scores_BHQS + mask
    weights_BHQS = nn.functional.dropout(scores_BHQS.softmax(-1), dropout, training=dropout > 0)
    return (weights_BHQS @ value).transpose(1, 2).contiguous(), None


@cache
def _wide() -> bool:
    """A processor with AVX-512 and nothing faster beside it."""
    return not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _by_shape(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> Any:
    chosen = prefers_plain(query.device.type, query.dtype, key.shape[2], _wide())
    return (plain if chosen else sdpa_attention_forward)(module, query, key, value, attention_mask, **rest)


AttentionInterface.register(BY_SHAPE, _by_shape)
AttentionMaskInterface.register(BY_SHAPE, sdpa_mask)
