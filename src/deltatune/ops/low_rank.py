"""Products with a low-rank matrix B A, never written out.

Shape legend: O out, I in, R rank, E stacked copies.
"""

import torch
from torch import Tensor


def matrix(b_OR: Tensor, a_RI: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """B A in the shape of a weight: [O, I], [O, I, *kernel], or [E, O, I] for stacked copies."""
    if b_OR.dim() == 3:
        return (b_OR @ a_RI).view(shape)
    return (b_OR @ a_RI.flatten(1)).view(shape)


def row_norm(weight_OI: Tensor, b_OR: Tensor, a_RI: Tensor, scale: float, squares_O: Tensor | None = None) -> Tensor:
    """||W + s B A|| per output, [O] or [E, O], by products of size R only.

    ||W + s B A||^2 = ||W||^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>, each term per output.
    """
    flat = weight_OI.flatten(1) if b_OR.dim() == 2 else weight_OI
    a = a_RI.flatten(1) if b_OR.dim() == 2 else a_RI
    squares = flat.square().sum(-1) if squares_O is None else squares_O
    cross = ((flat @ a.mT) * b_OR).sum(-1)
    own = ((b_OR @ (a @ a.mT)) * b_OR).sum(-1)
    return (squares + 2 * scale * cross + scale**2 * own).clamp_min(0).sqrt()
