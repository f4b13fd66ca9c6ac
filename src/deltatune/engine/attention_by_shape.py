"""Attention by shape: plain products where the fused kernel is slower in training, the fused kernel elsewhere.

Forward and backward of the fused kernel against plain products (`ops/attention.py`), 12 heads, with a mask, on a
processor with AVX-512: in bfloat16 it takes 1.4 to 5 times as long at every length; in float32 1.1 to 1.8 times up to
128 tokens on an Intel one, and less than plain products on others (`benchmarks/attention.py`). The choice follows from
processor, dtype and length, not from a clock: a training that goes on computes what it would have computed.

Shape legend: B rows, H heads, Q queries, S keys, K head width.
"""

import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import create_position_bias_mask, repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from deltatune.engine.attention_switch import switch_attention
from deltatune.ops.attention import attention

BY_SHAPE = "by_shape"
"""Name in the attention registry of `transformers`."""
LONGEST = {torch.float32: 128, torch.bfloat16: 512}
"""Keys up to which plain products are used on a processor with AVX-512: in float32 on an Intel one, where they are
faster up to here; in bfloat16, where they are faster beyond, as long as the weights that they keep are few."""


def _wide() -> bool:
    """A processor with AVX-512 and nothing faster beside it."""
    return not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _intel() -> bool:
    """A processor for which the library of float32 products (MKL) was made."""
    info = Path("/proc/cpuinfo")
    return "GenuineIntel" in (info.read_text(encoding="utf-8") if info.is_file() else platform.processor())


WIDE, INTEL = _wide(), _intel()
"""Asked once, here: a compiled graph cannot ask."""


def choose_attention(model: Any) -> None:
    """Replaces the fused attention of a model by the choice; any other attention that was asked for stays."""
    if getattr(getattr(model, "config", None), "_attn_implementation", None) == "sdpa" and WIDE:
        switch_attention(model, BY_SHAPE)


def prefers_plain(device: str, dtype: torch.dtype, keys: int, wide: bool, intel: bool) -> bool:
    """Whether plain products train faster than the fused kernel; `wide` is a processor with AVX-512.

    >>> [prefers_plain("cpu", dtype, 128, wide=True, intel=False) for dtype in (torch.float32, torch.bfloat16)]
    [False, True]
    """
    if device != "cpu" or not wide or (dtype == torch.float32 and not intel):
        return False
    return keys <= LONGEST.get(dtype, 0)


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
    mask = attention_mask
    if position_bias is not None:
        mask, causal = create_position_bias_mask(position_bias, mask, causal, query, key), False
    if causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output_BHQK = attention(query, key, value, _bias(mask, query.dtype), scale, dropout)
    return output_BHQK.transpose(1, 2).contiguous(), None


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores: a mask as it is, or the least number where a mask of yes and no says no."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _by_shape(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> Any:
    chosen = prefers_plain(query.device.type, query.dtype, key.shape[2], WIDE, INTEL)
    return (plain if chosen else sdpa_attention_forward)(module, query, key, value, attention_mask, **rest)


AttentionInterface.register(BY_SHAPE, _by_shape)
AttentionMaskInterface.register(BY_SHAPE, sdpa_mask)
