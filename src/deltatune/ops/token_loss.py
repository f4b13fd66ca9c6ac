"""Cross entropy over a vocabulary, a few rows at a time, with its own backward.

    loss_n = logsumexp(z_n) - z_n[y_n]          d loss_n / d z_n = softmax(z_n) - onehot(y_n)

Autograd keeps log probabilities of every row in float32; here the rows of z and one number each are kept, and float32
exists for one chunk at a time. Memory for N rows: z, its gradient in z's own dtype, and one chunk.

Shape legend: N tokens, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 24
"""Logits of one chunk: 64 MiB in float32."""


def token_losses(logits_NV: Tensor, targets_N: Tensor, chunk: int = CHUNK) -> Tensor:
    """Loss of every token [N], at least in float32; zero where the target is negative, which stands for none.

    >>> token_losses(torch.zeros(2, 4), torch.tensor([1, -100])).tolist()
    [1.3862943649291992, 0.0]
    """
    found: Tensor = _TokenLosses.apply(logits_NV, targets_N, chunk)  # type: ignore[no-untyped-call]
    return found


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        norms_N = logits_NV.new_empty(len(logits_NV), dtype=wide)
        right_N = torch.empty_like(norms_N)
        for rows in _chunks(logits_NV, chunk):
            z = logits_NV[rows].to(wide)
            norms_N[rows] = z.logsumexp(-1)
            right_N[rows] = z.gather(-1, targets_N[rows].clamp_min(0)[:, None])[:, 0]
        ctx.save_for_backward(logits_NV, targets_N, norms_N)
        ctx.chunk = chunk
        return (norms_N - right_N).masked_fill(targets_N < 0, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, targets_N, norms_N = ctx.saved_tensors
        scale_N = grad_N.masked_fill(targets_N < 0, 0)
        grads_NV = torch.empty_like(logits_NV)
        for rows in _chunks(logits_NV, ctx.chunk):
            chances = (logits_NV[rows].to(norms_N.dtype) - norms_N[rows, None]).exp_()
            chances.scatter_add_(-1, targets_N[rows].clamp_min(0)[:, None], chances.new_full((len(chances), 1), -1))
            grads_NV[rows] = (chances * scale_N[rows, None]).to(grads_NV.dtype)
        return grads_NV, None, None


def _chunks(logits_NV: Tensor, chunk: int) -> Iterator[slice]:
    rows = max(1, chunk // max(1, logits_NV.shape[-1]))
    return (slice(start, start + rows) for start in range(0, len(logits_NV), rows))
