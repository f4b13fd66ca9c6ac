"""Rotations in blocks, from skew-symmetric matrices by the Cayley transform.

A rotation is kept as R - 1: near the start it is small, and what is small survives rounding to bfloat16.

Shape legend: N blocks of size K, E = K (K - 1) / 2 entries above the diagonal, I = N K in, O out.
"""

from typing import Any

import torch
from torch import Tensor


def skew(upper_NE: Tensor, size: int) -> Tensor:
    """Skew-symmetric matrices [N, K, K] from the entries above their diagonals, row by row.

    >>> skew(torch.tensor([[1.0, 2.0, 3.0]]), 3)
    tensor([[[ 0.,  1.,  2.],
             [-1.,  0.,  3.],
             [-2., -3.,  0.]]])
    """
    rows, columns = torch.triu_indices(size, size, 1, device=upper_NE.device).unbind()
    matrix = upper_NE.new_zeros(len(upper_NE), size, size)
    matrix[:, rows, columns] = upper_NE
    return matrix - matrix.mT


def cayley(skew_NKK: Tensor) -> Tensor:
    """R - 1 for R = (1 - Q) (1 + Q)^-1, exactly orthogonal.

    >>> change = cayley(skew(torch.randn(2, 6), 4))
    >>> rotation = change + torch.eye(4)
    >>> torch.allclose(rotation @ rotation.mT, torch.eye(4).expand(2, 4, 4), atol=1e-5)
    True
    """
    one = torch.eye(skew_NKK.shape[-1], device=skew_NKK.device, dtype=skew_NKK.dtype)
    solution: Tensor = torch.linalg.solve(one + skew_NKK, -2 * skew_NKK, left=False)
    return solution


def neumann(skew_NKK: Tensor, terms: int) -> Tensor:
    """R - 1 for R = 1 + 2 Q + ... + 2 Q^(n - 1) + Q^n with n = max(3, terms - 1): nearly (1 + Q) (1 - Q)^-1.

    As in peft, whose series turns the other way than its exact transform; orthogonal up to about Q^n. From three terms.
    """
    power, total = skew_NKK, 2 * skew_NKK
    for _ in range(max(3, terms - 1) - 2):
        power = power @ skew_NKK
        total = total + 2 * power
    return total + power @ skew_NKK


def rotate(x_I: Tensor, change_NKK: Tensor) -> Tensor:
    """x R by blocks, [..., I] for [..., I].

    >>> rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([[[-1.0, 1.0], [1.0, -1.0]]]).repeat(2, 1, 1))
    tensor([2., 1., 4., 3.])
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x_I.device.type):
        parts = x_I.reshape(*x_I.shape[:-1], -1, change_NKK.shape[-1])
        return x_I + torch.einsum("...nk,nkc->...nc", parts, change_NKK).flatten(-2)
    result: Tensor = _Rotated.apply(x_I, change_NKK)  # type: ignore[no-untyped-call]
    return result


class _Rotated(torch.autograd.Function):
    """y = x + x C by blocks;   dx = dy + dy C^T,   dC = x^T dy. x is kept as it came, its blocks are not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Tensor) -> Tensor:
        ctx.save_for_backward(x, change)
        return x + _beside(_stacked(x, change) @ change, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, change = ctx.saved_tensors
        (dy,) = gradients
        dy_NTK = _stacked(dy, change)
        dx = dy + _beside(dy_NTK @ change.mT, dy) if ctx.needs_input_grad[0] else None
        return dx, _stacked(x, change).mT @ dy_NTK if ctx.needs_input_grad[1] else None


def _stacked(x_I: Tensor, change_NKK: Tensor) -> Tensor:
    """Blocks of all tokens [N, T, K]; in bfloat16 one behind the other, which its products want, up to six times."""
    x_NTK = x_I.reshape(-1, len(change_NKK), change_NKK.shape[-1]).transpose(0, 1)
    return x_NTK.contiguous() if x_I.dtype == torch.bfloat16 else x_NTK


def _beside(y_NTK: Tensor, like: Tensor) -> Tensor:
    """Stacked blocks in the shape of the tensor they came from."""
    return y_NTK.transpose(0, 1).reshape(like.shape)


def turn(x_I: Tensor, change_MNKK: Tensor) -> Tensor:
    """x B_M ... B_1, [..., I] for [..., I]: each B turns blocks of size K, wired farther apart from one to the next.

    After M of them K 2^(M - 1) neighbours have met; products of that size are multiplied out before x comes in, which
    is faster than one pass over x for each, until they are too large.
    """
    if reach(change_MNKK) > LARGEST:
        return butterfly(x_I, change_MNKK.to(x_I.dtype))
    return rotate(x_I, joined(change_MNKK, x_I.shape[-1]).to(x_I.dtype))


def turn_back(x_I: Tensor, change_MNKK: Tensor) -> Tensor:
    """x (B_M ... B_1)^T, which undoes `turn`."""
    if reach(change_MNKK) <= LARGEST:
        return rotate(x_I, joined(change_MNKK, x_I.shape[-1]).mT.to(x_I.dtype))
    for level, change in enumerate(change_MNKK.to(x_I.dtype)):
        x_I = wired(x_I, change.mT, level)
    return x_I


LARGEST, WORTHWHILE = 256, 32
"""Size from which a block costs more than it saves, and up to which neighbouring blocks are better taken together."""


def reach(change_MNKK: Tensor) -> int:
    """Neighbours that a product of factors mixes: K 2^(M - 1)."""
    size: int = change_MNKK.shape[-1] << (len(change_MNKK) - 1)
    return size


def joined(change_MNKK: Tensor, inputs: int) -> Tensor:
    """B_M ... B_1 - 1 as blocks [I / D, D, D] on the diagonal, D at least the reach; all that `rotate` needs."""
    size = reach(change_MNKK)
    while size < WORTHWHILE and inputs % (2 * size) == 0:
        size *= 2
    if len(change_MNKK) == 1 and size == change_MNKK.shape[-1]:
        return change_MNKK[0]
    one = torch.eye(size, device=change_MNKK.device, dtype=change_MNKK.dtype)
    images = butterfly(one.repeat(1, inputs // size), change_MNKK)  # row j: where input j of every block goes
    return images.view(size, -1, size).transpose(0, 1) - one


def butterfly(x_I: Tensor, change_MNKK: Tensor) -> Tensor:
    """x B_M ... B_1, one factor after the other."""
    for level in reversed(range(len(change_MNKK))):
        x_I = wired(x_I, change_MNKK[level], level)
    return x_I


def wired(x_I: Tensor, change_NKK: Tensor, level: int) -> Tensor:
    """`rotate` with blocks whose two halves stand 2^level half blocks apart in x."""
    if level == 0:
        return rotate(x_I, change_NKK)
    lead, half, apart = x_I.shape[:-1], change_NKK.shape[-1] // 2, 2**level
    together = x_I.reshape(*lead, -1, 2, apart, half).transpose(-3, -2).reshape(*lead, -1)
    turned = rotate(together, change_NKK)
    return turned.reshape(*lead, -1, apart, 2, half).transpose(-3, -2).reshape(*lead, -1)
