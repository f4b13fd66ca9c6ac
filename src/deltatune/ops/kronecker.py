"""Products with a Kronecker product A (kron) B, never written out.

A (kron) B has the blocks A[i, j] B. With x seen as a matrix of C rows, (A (kron) B) x is A X B^T: two small products.

Shape legend: A by C the left matrix, B by D the right one; O = A B out, I = C D in; R rank.
"""

import math

import torch
from torch import Tensor


def multiply(x_I: Tensor, left_AC: Tensor, *right: Tensor) -> Tensor:
    """(left (kron) right) x, [..., O] for [..., I].

    `right` is one matrix [B, D], or two factors [B, R] and [R, D] of it. The left matrix is applied where the rows
    are shortest, which costs least.

    >>> a, b, x = torch.randn(2, 3), torch.randn(4, 5), torch.randn(7, 15)
    >>> torch.allclose(multiply(x, a, b), x @ torch.kron(a, b).T, atol=1e-5)
    True
    """
    x = x_I.reshape(*x_I.shape[:-1], left_AC.shape[1], -1)
    widths = [x.shape[-1], *(matrix.shape[0] for matrix in reversed(right))]
    narrowest = widths.index(min(widths))
    for place, matrix in enumerate((*reversed(right), None)):
        if place == narrowest:
            x = left_AC @ x
        if matrix is not None:
            x = x @ matrix.mT
    result: Tensor = x.flatten(-2)
    return result


def mix(h_NC: Tensor, left_AC: Tensor) -> Tensor:
    """The left matrix on rows that are dimension 1: [N, A, ...] for [N, C, ...]."""
    mixed: Tensor = torch.tensordot(h_NC, left_AC, dims=([1], [1]))
    return mixed.movedim(-1, 1)


def matrix(left_AC: Tensor, right_BD: Tensor) -> Tensor:
    """left (kron) right [O, I, *kernel]; the right matrix may be a kernel [B, D, *kernel].

    >>> a, b = torch.randn(2, 3), torch.randn(4, 5)
    >>> torch.equal(matrix(a, b), torch.kron(a, b))
    True
    """
    product = torch.einsum("ac,bdk->abcdk", left_AC, right_BD.flatten(2) if right_BD.dim() > 2 else right_BD[..., None])
    return product.reshape(-1, left_AC.shape[1] * right_BD.shape[1], *right_BD.shape[2:])


def split(size: int, factor: int = -1) -> tuple[int, int]:
    """Two numbers with this product, the smaller one first: the most even pair, or one of at most `factor`.

    >>> split(768), split(3072), split(128, 4), split(127)
    ((24, 32), (48, 64), (4, 32), (1, 127))
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    bound = size if factor == -1 else factor
    small = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0 and n <= bound)
    return small, size // small
