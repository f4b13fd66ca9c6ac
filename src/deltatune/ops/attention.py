"""Attention by plain products, with its own backward.

    P = softmax(s Q K^T + bias)        O = P V
    dV = P^T dO      dP = dO V^T      dS = P * (dP - rowsum(P * dP))      dQ = s dS K      dK = s dS^T Q

Against the same in separate operations: scale, mask and softmax need no tensor of their own and the mask no backward,
since dS is 0 where P is; every product reads its operands along their rows.

Shape legend: B rows, H heads, Q queries, S keys, K head width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float = 0.0) -> Tensor:
    """softmax(s Q K^T + bias) V as [B, H, Q, K] for a bias that broadcasts to [B, H, Q, S]; dropout is on the weights.

    >>> q = k = v = torch.eye(2).view(1, 1, 2, 2)
    >>> attention(q, k, v, torch.tensor([[0.0, -1e9], [0.0, 0.0]]), 0.0)
    tensor([[[[1.0000, 0.0000],
              [0.5000, 0.5000]]]])
    """
    separate = torch.compiler.is_compiling() or torch.is_autocast_enabled(q.device.type)
    if separate or dropout or (bias is not None and bias.requires_grad):
        scores = q @ k.mT * scale
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return nn.functional.dropout(weights, dropout) @ v
    result: Tensor = _Attention.apply(q, k, v, bias, scale)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    """The formulas above. Q, K and V are kept as they came, which is how others may keep them too."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        scores_BHQS = _scaled(q.contiguous(), k.contiguous().mT, scale)
        if bias is not None:
            scores_BHQS += bias
        weights_BHQS = torch.softmax(scores_BHQS, -1, out=scores_BHQS)
        ctx.save_for_backward(q, k, v, weights_BHQS)
        ctx.scale = scale
        return weights_BHQS @ v.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do_BHQK: Tensor) -> Any:
        q, k, v, weights_BHQS = ctx.saved_tensors
        of_q, of_k, of_v, *_ = ctx.needs_input_grad
        dq = dk = dv = None
        if of_v:
            dv = (do_BHQK.mT.contiguous() @ weights_BHQS).mT
        if of_q or of_k:
            dweights_BHQS = do_BHQK.contiguous() @ v.contiguous().mT
            ds_BHQS = torch._softmax_backward_data(dweights_BHQS, weights_BHQS, -1, weights_BHQS.dtype)
            dq = _scaled(ds_BHQS, k.contiguous(), ctx.scale) if of_q else None
            dk = _scaled(q.mT.contiguous(), ds_BHQS, ctx.scale).mT if of_k else None
        return dq, dk, dv, None, None


def _scaled(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """s L R for stacks of matrices, scaled before it is rounded."""
    unread = left.new_empty(1, 1, 1)
    product = torch.baddbmm(unread, left.flatten(0, -3), right.flatten(0, -3), beta=0, alpha=scale)
    return product.view(*left.shape[:-1], right.shape[-1])
