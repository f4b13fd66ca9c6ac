"""Precision of the frozen base: chosen once, by measurement, before training or serving."""

import time
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F

WORTH = 1.5
"""How much faster bfloat16 products must be on this processor to be used."""


def base_dtype(bf16: bool | Literal["auto"]) -> torch.dtype:
    """The dtype to load a base in; auto means bfloat16 where this machine is measurably faster with it."""
    if bf16 == "auto":
        return torch.bfloat16 if _faster_in_bf16() else torch.float32
    return torch.bfloat16 if bf16 else torch.float32


@cache
def _faster_in_bf16() -> bool:
    """A GPU with bfloat16, or a processor whose products in it take far less time than in float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return _seconds(torch.float32) > WORTH * _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    """Least time of a few products of the size of a small encoder's."""
    x, weight = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - start)
    return min(times)
