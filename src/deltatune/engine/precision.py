"""Precision of the frozen base."""

from typing import Literal

import torch


def base_dtype(bf16: bool | Literal["auto"]) -> torch.dtype:
    """The dtype to load a base in: auto means bfloat16 on a GPU that has it, float32 elsewhere."""
    if bf16 == "auto":
        return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if bf16 else torch.float32
