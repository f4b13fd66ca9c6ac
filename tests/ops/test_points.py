"""Farthest points, neighbours and Chamfer distance against plain loops and scipy."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from deltatune.ops.points import at, chamfer, farthest, neighbours


def clouds(batch, count, seed=0, values=3):
    return torch.randn(batch, count, values, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("values", [3, 6])
def test_every_next_point_is_farthest_from_those_before(values):
    points = clouds(3, 50, values=values)
    for cloud, found in zip(points[..., :3].double(), farthest(points, 20).tolist()):
        assert found[0] == int((cloud - cloud.mean(0)).norm(dim=1).argmax())
        for step in range(1, 20):
            distances = torch.cdist(cloud, cloud[found[:step]]).amin(1)
            assert found[step] == int(distances.argmax())


def test_once_all_points_are_taken_the_first_one_comes_again():
    found = farthest(clouds(1, 5), 9)[0].tolist()
    assert sorted(found[:5]) == [0, 1, 2, 3, 4]
    assert set(found[5:]) == {0}


def test_neighbours_are_those_of_a_tree():
    points, centres = clouds(4, 60, values=5), clouds(4, 7, seed=1)
    found = neighbours(points, centres, 9)
    for row in range(4):
        _, expected = cKDTree(points[row, :, :3].numpy()).query(centres[row].numpy(), 9)
        assert np.array_equal(found[row].numpy(), expected)


def test_near_points_far_from_zero_are_told_apart():
    points = torch.tensor([[[1000.0, 0, 0], [1000.01, 0, 0], [1000.02, 0, 0]]])
    assert neighbours(points, points[:, 2:], 3)[0].tolist() == [[2, 1, 0]]


def test_chosen_points_have_all_their_values():
    points = clouds(2, 10, values=4)
    found = at(points, torch.tensor([[[1, 2], [3, 4]], [[0, 0], [9, 8]]]))
    assert found.shape == (2, 2, 2, 4)
    assert torch.equal(found[1, 1, 0], points[1, 9])


def test_chamfer_is_that_of_a_tree():
    one, other = clouds(3, 20), clouds(3, 31, seed=2)
    expected = [
        (cKDTree(b.numpy()).query(a.numpy())[0] ** 2).mean() + (cKDTree(a.numpy()).query(b.numpy())[0] ** 2).mean()
        for a, b in zip(one, other)
    ]
    assert torch.allclose(chamfer(one, other), torch.tensor(expected, dtype=torch.float32), rtol=1e-5)
    assert chamfer(one, one[:, torch.randperm(20)]).abs().max() < 1e-6
