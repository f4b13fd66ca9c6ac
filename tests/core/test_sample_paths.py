"""Sample paths: the numbers they are drawn at, quantiles of both distributions, what they add up to."""

import numpy as np
import pytest
import torch
from scipy import stats

from deltatune.core.sample_paths import changes, hypercube, values_at


def test_every_step_has_one_number_in_each_part_and_steps_are_not_in_one_order():
    found = hypercube(50, 6)
    assert np.allclose(np.sort(found, 0), (np.arange(50)[:, None] + 0.5) / 50)
    between = np.corrcoef(found.T)[np.triu_indices(6, 1)]
    assert np.abs(between).max() < 0.5
    assert (found == hypercube(50, 6)).all()


@pytest.mark.parametrize("freedom", [2.1, 30.0])
def test_quantiles_are_those_of_the_distribution(freedom):
    numbers = np.array([[0.005], [0.3], [0.5], [0.995]])
    df, loc, scale = (torch.tensor([[value]], dtype=torch.float64) for value in (freedom, 1.5, 0.2))
    assert np.allclose(values_at([df, loc, scale], numbers), stats.t.ppf(numbers, freedom, 1.5, 0.2))
    assert np.allclose(values_at([loc, scale], numbers), stats.norm.ppf(numbers, 1.5, 0.2))


def test_changes_from_step_to_step_add_up_and_values_are_told_from_the_last_one():
    paths = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [5.0, 0.0]]], dtype=torch.float64)
    origin, spread = (torch.tensor([value], dtype=torch.float64) for value in (1.0, 2.0))
    assert changes(paths, origin, spread, "none", [0.5, 0.75]).tolist() == [[[1.0, 1.5], [-0.5, 0.0]]]
    assert changes(paths, origin, spread, "difference", [0.5]).tolist() == [[[1.5], [1.5]]]
