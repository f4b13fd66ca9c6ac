"""The elementwise (Hadamard) product of two low-rank matrices, (B1 A1) * (B2 A2).

It has rank R^2: its element o, i is sum_pq (B1[o, p] B2[o, q]) (A1[p, i] A2[q, i]), so the products of columns of the
B's and of rows of the A's (Khatri-Rao products) are its factors, and it need not be written out.

Shape legend: O out, I in (times the size of a kernel), R rank.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def outer_factor(b1_OR: Tensor, b2_OR: Tensor) -> Tensor:
    """The factor [O, R^2] on the output's side.

    >>> b1, a1, b2, a2 = (torch.randn(4, 2), torch.randn(2, 5), torch.randn(4, 2), torch.randn(2, 5))
    >>> torch.allclose(outer_factor(b1, b2) @ inner_factor(a1, a2), (b1 @ a1) * (b2 @ a2), atol=1e-6)
    True
    """
    return (b1_OR.unsqueeze(2) * b2_OR.unsqueeze(1)).flatten(1)


def inner_factor(a1_RI: Tensor, a2_RI: Tensor) -> Tensor:
    """The factor [R^2, I] on the input's side."""
    return (a1_RI.unsqueeze(1) * a2_RI.unsqueeze(0)).flatten(0, 1)


def factors_are_cheaper(rank: int, inputs: int, outputs: int) -> bool:
    """Whether two products of rank R^2 cost less than one with the matrix written out."""
    return rank**2 * (inputs + outputs) < inputs * outputs


def matrix(b1_OR: Tensor, a1_RI: Tensor, b2_OR: Tensor, a2_RI: Tensor) -> Tensor:
    """(B1 A1) * (B2 A2) [O, I], by products of size R; backward keeps the factors alone."""
    if torch.compiler.is_compiling():  # the compiler decides by itself what to keep and what to compute again
        return (b1_OR @ a1_RI) * (b2_OR @ a2_RI)
    result: Tensor = _Hadamard.apply(b1_OR, a1_RI, b2_OR, a2_RI)  # type: ignore[no-untyped-call]
    return result


class _Hadamard(torch.autograd.Function):
    """Computes B1 A1 and B2 A2 again in backward instead of keeping both, [O, I] each."""

    @staticmethod
    def forward(ctx: Any, b1: Tensor, a1: Tensor, b2: Tensor, a2: Tensor) -> Tensor:
        """The product."""
        ctx.save_for_backward(b1, a1, b2, a2)
        return (b1 @ a1).mul_(b2 @ a2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """With G1 = G * (B2 A2): dB1 = G1 A1^T, dA1 = B1^T G1, and likewise for the other pair."""
        b1, a1, b2, a2 = ctx.saved_tensors
        first, second = gradient * (b2 @ a2), gradient * (b1 @ a1)
        return first @ a1.mT, b1.mT @ first, second @ a2.mT, b2.mT @ second
