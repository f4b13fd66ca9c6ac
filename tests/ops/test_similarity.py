"""CKA against its definition by sums over rows, and what it must not see."""

from itertools import permutations

import pytest
import torch

from deltatune.ops.similarity import cka


def hsic_by_counting(x, y):
    """The U-statistic itself: mean over ordered fours of different rows (Song et al. 2012, eq. 4)."""
    k, el = x @ x.T, y @ y.T
    terms = [k[i, j] * (el[i, j] + el[q, r] - 2 * el[i, q]) for i, j, q, r in permutations(range(len(x)), 4)]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("rows", [4, 7])
def test_it_is_the_u_statistic(rows):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for d in (3, 5))
    wanted = hsic_by_counting(x, y) / (hsic_by_counting(x, x) * hsic_by_counting(y, y)).sqrt()
    assert cka(x, y) == pytest.approx(float(wanted), abs=1e-12)


def test_rotation_scale_and_shift_are_not_seen():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    assert cka(x, 3 * x @ turn + 5) == pytest.approx(1.0, abs=1e-10)


def test_unrelated_representations_are_near_zero_with_more_features_than_rows():
    generator = torch.Generator().manual_seed(2)
    found = [cka(*(torch.randn(30, 300, generator=generator) for _ in range(2))) for _ in range(20)]
    assert abs(sum(found) / 20) < 0.03  # the biased estimate says 0.9 here


def test_fewer_than_four_rows_are_refused():
    with pytest.raises(ValueError, match="at least 4 rows"):
        cka(torch.zeros(3, 2), torch.zeros(3, 2))
