"""Factors of a matrix: exact where they can be, the best where not."""

import pytest
import torch

from deltatune.ops.factor import factors


def low(rank, *shape, seed=0):
    """A random matrix of this rank."""
    rng = torch.Generator().manual_seed(seed)
    left = torch.empty(*shape[:-1], rank, dtype=torch.float64).normal_(generator=rng)
    return left @ torch.empty(*shape[:-2], rank, shape[-1], dtype=torch.float64).normal_(generator=rng)


@pytest.mark.parametrize("shape", [(12, 9), (300, 200), (3, 10, 7)])
@pytest.mark.parametrize("rank", [1, 5])
def test_without_a_rank_they_are_exact_and_as_small_as_possible(shape, rank):
    matrix = low(rank, *shape)
    b, a = factors(matrix)
    assert b.shape == (*shape[:-1], rank) and a.shape == (*shape[:-2], rank, shape[-1])
    assert torch.allclose(b @ a, matrix, atol=1e-9)
    assert torch.allclose(b.norm(dim=-2), a.norm(dim=-1))


@pytest.mark.parametrize("shape", [(40, 30), (300, 200)])
def test_with_a_rank_they_leave_out_the_small_singular_values(shape):
    matrix = low(min(shape), *shape)
    b, a = factors(matrix, 4)
    rest = torch.linalg.svdvals(matrix)[4:]
    assert torch.isclose((matrix - b @ a).norm(), rest.norm(), rtol=1e-9)


def test_a_matrix_of_zeros_has_factors_of_rank_one():
    b, a = factors(torch.zeros(6, 4))
    assert b.shape == (6, 1) and not (b @ a).any()
