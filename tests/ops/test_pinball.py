"""Quantile loss against its definition, and what it is the loss of."""

import numpy as np
import pytest
import torch

from deltatune.ops.pinball import pinball


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_it_is_twice_the_larger_of_two_lines(quantile):
    differences = torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0])
    wanted = 2 * torch.maximum(quantile * differences, (quantile - 1) * differences)
    assert torch.allclose(pinball(differences, quantile), wanted)
    assert np.allclose(pinball(differences.numpy(), quantile), wanted.numpy())


def test_at_the_median_it_is_the_distance_and_in_the_mean_the_quantile_has_the_least():
    values = torch.randn(2001, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pinball(values, 0.5), values.abs())
    tried = torch.linspace(-2, 2, 401)
    means = torch.stack([pinball(values - each, 0.9).mean() for each in tried])
    assert abs(tried[means.argmin()] - values.quantile(0.9)) <= 0.01
