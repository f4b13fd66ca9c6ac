"""A matrix as a product of two factors of small rank, as good as that rank allows.

Shape legend: O out, I in, R rank; E copies may stand in front.
"""

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""What "exact" leaves out at most, as a share of the matrix's norm: float32 rounding."""


def factors(matrix_OI: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """B [O, R] and A [R, I] with the singular values shared evenly.

    B A is the best approximation of this rank; without a rank R is the smallest (from 1) that is exact. For copies
    [E, O, I] it is the same for all.
    """
    u, s, vt = _compact(matrix_OI)
    if rank is None:
        tail = s.flip(-1).square().cumsum(-1).sqrt().flip(-1)  # tail[k] is what rank k leaves out
        rank = max(1, int((tail > TOLERANCE * tail[..., :1]).sum(-1).max()))
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vt[..., :rank, :]


def _compact(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition; of a small projection where that loses nothing (Halko et al. 2011)."""
    size = min(matrix.shape[-2:])
    rng = torch.Generator().manual_seed(0)
    columns = 32
    while 4 * columns <= size:
        test = torch.empty(matrix.shape[-1], columns).normal_(generator=rng).to(matrix)
        q = torch.linalg.qr(matrix @ test)[0]
        small = q.mT @ matrix
        if float((matrix - q @ small).norm()) <= 0.1 * TOLERANCE * float(matrix.norm()):
            u, s, vt = torch.linalg.svd(small, full_matrices=False)
            return q @ u, s, vt
        columns *= 4
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vt
