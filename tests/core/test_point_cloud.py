"""Clouds as a model reads them, at a glance, and varied."""

import numpy as np
import pytest
from pydantic import ValidationError

from deltatune.core.point_augmentation import PointAugmentation, augmented, rotation
from deltatune.core.point_cloud import PointProcessor, counted, in_unit
from deltatune.core.point_glance import COARSE, point_glance

NOTHING = {"jitter": 0, "scale": 0, "dropout": 0}


def cloud(count=60, values=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, values)).astype(np.float32)


def saved(path, points):
    np.save(path, points)
    return path


def test_a_cloud_in_the_unit_sphere_forgets_its_place_and_size():
    found = in_unit(cloud())
    assert np.allclose(found.mean(0), 0, atol=1e-6)
    assert np.linalg.norm(found, axis=1).max() == pytest.approx(1, abs=1e-6)
    assert np.allclose(in_unit(cloud() * 7 + [100, 0, -3]), found, atol=1e-5)


@pytest.mark.parametrize("count", [8, 59, 60, 61, 150])
def test_every_cloud_has_the_wanted_number_of_points_and_only_its_own(count):
    points = cloud()
    found = counted(points, count)
    assert len(found) == count
    assert len(np.unique(found, axis=0)) == min(count, 60)
    assert {tuple(p) for p in found} <= {tuple(p) for p in points}


def test_of_very_many_points_the_same_ones_are_drawn_first():
    points = cloud(50_000)
    assert np.array_equal(counted(points, 16), counted(points, 16))
    inside = counted(points, 16)[:, :3]
    assert np.linalg.norm(inside, axis=1).mean() > 1.5 * np.linalg.norm(points, axis=1).mean()  # far from each other


def test_what_is_read_does_not_depend_on_the_order_in_the_file(tmp_path):
    points = cloud(200, 6)
    processor = PointProcessor(64, 6, True)
    expected = processor.cloud(saved(tmp_path / "a.npy", points))
    assert expected.shape == (64, 6) and expected.dtype == np.float32
    for seed in range(3):
        shuffled = points[np.random.default_rng(seed).permutation(200)]
        assert np.array_equal(processor.cloud(saved(tmp_path / f"{seed}.npy", shuffled)), expected)
    kept = PointProcessor(200, 3, False).cloud(tmp_path / "a.npy")
    assert np.array_equal(kept[np.lexsort(kept.T)], points[np.lexsort(points[:, :3].T), :3])


def test_a_glance_tells_the_same_the_similar_and_the_different(tmp_path):
    points = cloud(300)
    first = point_glance(saved(tmp_path / "a.npy", points))
    assert first.wrong is None
    assert point_glance(saved(tmp_path / "b.npy", points[::-1].astype(np.float64))).digest == first.digest
    moved = point_glance(saved(tmp_path / "c.npy", points * 3 + 9))
    assert moved.digest != first.digest and len(moved.sketch() & first.sketch()) > 0.9 * len(first.sketch())
    other = point_glance(saved(tmp_path / "d.npy", cloud(300, seed=1)))
    assert len(other.sketch() & first.sketch()) < 0.5 * len(first.sketch())
    assert first.grid().shape == (COARSE**3,) and np.square(first.grid()).mean() == pytest.approx(1)


def test_a_glance_sees_that_a_file_changed(tmp_path):
    path = saved(tmp_path / "a.npy", cloud(9))
    assert point_glance(path).wrong is None
    saved(path, cloud(3))
    assert "too few points" in point_glance(path).wrong
    assert point_glance(None).wrong == "path is not text (NoneType)"
    assert point_glance(" ").wrong == "path is empty"


# -- augmentation


def varied(points, seed=0, **settings):
    return augmented(points, PointAugmentation(**{**NOTHING, **settings}), np.random.default_rng(seed))


def distances(points):
    return np.linalg.norm(points[:, None, :3] - points[None, :, :3], axis=-1)


@pytest.mark.parametrize("axis", ["x", "y", "z", "any"])
def test_a_turn_keeps_all_distances_and_its_axis(axis):
    points = cloud(values=6)
    points[:, 3:] = points[:, :3] * 2
    found = varied(points, rotation=180, axis=axis)
    assert found.dtype == np.float32
    assert np.allclose(distances(found), distances(points), atol=1e-5)
    assert np.allclose(found[:, 3:], found[:, :3] * 2, atol=1e-5)  # normals turn along
    assert not np.allclose(found, points, atol=0.1)
    if axis != "any":
        assert np.allclose(found[:, "xyz".index(axis)], points[:, "xyz".index(axis)], atol=1e-6)


def test_turns_are_rotations_of_the_angle():
    axis = np.array([2.0, -1, 2]) / 3
    matrix = rotation(axis, 0.7)
    assert np.allclose(matrix @ matrix.T, np.eye(3)) and np.linalg.det(matrix) == pytest.approx(1)
    assert np.allclose(matrix @ axis, axis)
    assert np.trace(matrix) == pytest.approx(1 + 2 * np.cos(0.7))


def test_steps_are_small_sizes_bounded_and_left_out_points_are_others():
    points = cloud(4000)
    steps = varied(points, jitter=0.02) - points
    assert np.abs(steps).max() < 0.0601 and steps.std() == pytest.approx(0.02, rel=0.05)
    for seed in range(20):
        factor = varied(points, seed, scale=0.25) / points
        assert np.allclose(factor, factor[0, 0], atol=1e-4) and 0.75 <= factor[0, 0] <= 1.25
        left = varied(points, seed, dropout=0.5)
        count = len(np.unique(left, axis=0))
        assert 2000 <= count <= 4000 and {tuple(p) for p in left} <= {tuple(p) for p in points}


def test_one_seed_gives_one_cloud_and_the_cloud_itself_stays():
    points = cloud()
    before = points.copy()
    settings = PointAugmentation(rotation=30)
    found = [augmented(points, settings, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert np.array_equal(points, before)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (NOTHING, "nothing is varied"),
        ({"axis": "x"}, "axis has no effect without rotation"),
        ({"jitter": -1}, "greater than or equal to 0"),
        ({"dropout": 1}, "less than 1"),
        ({"rotation": 181}, "less than or equal to 180"),
    ],
)
def test_settings_without_sense_are_refused(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        PointAugmentation(**settings)


def test_settings_are_read_back_from_what_an_adapter_file_keeps():
    for settings in (PointAugmentation(), PointAugmentation(rotation=20, axis="any")):
        assert PointAugmentation(**settings.model_dump()) == settings
