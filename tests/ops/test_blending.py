"""Trimming, dropping and electing by hand, and against peft's functions where both mean the same."""

import pytest
import torch
from peft.utils import merge_utils

from deltatune.ops import blending


def random(seed):
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))


def test_the_elected_sign_decides_who_is_averaged():
    deltas = [torch.tensor([3.0, -1.0, 0.0, 2.0]), torch.tensor([1.0, 2.0, 4.0, -2.0])]
    assert blending.elected(deltas, [1, 1]).tolist() == [2.0, 2.0, 4.0, 2.0]
    assert blending.elected(deltas, [1, -1]).tolist() == [3.0, -1.5, -4.0, 2.0]


@pytest.mark.parametrize("density", [0.3, 0.99])
def test_ties_is_pefts_for_positive_weights_that_are_equal(density):
    deltas = [random(seed) for seed in range(3)]
    expected = merge_utils.ties(deltas, torch.tensor([0.5] * 3), density)
    trimmed = [blending.trimmed(delta, density) for delta in deltas]
    assert torch.allclose(blending.elected(trimmed, [0.5] * 3), expected, atol=1e-6)


def test_the_largest_entries_stay_all_of_them_at_density_one():
    delta = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
    assert blending.trimmed(delta, 0.5).tolist() == [[0.0, -4.0], [3.0, 0.0]]
    assert torch.equal(blending.trimmed(delta, 1.0), delta)


def test_dropping_keeps_the_mean_and_comes_again_from_its_seed():
    delta = torch.ones(200, 200)
    first, again = (blending.dropped(delta, 0.25, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert set(first.unique().tolist()) == {0.0, 4.0}
    assert abs(float(first.mean()) - 1) < 0.05


def test_the_sum_takes_weights_as_they_are():
    assert blending.linear([torch.tensor([1.0]), torch.tensor([2.0])], [0.5, -2.0]).tolist() == [-3.5]
