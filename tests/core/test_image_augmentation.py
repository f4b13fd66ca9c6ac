"""Images varied by a given generator: nothing else draws, nothing leaves its range, moves are those of the map."""

import numpy as np
import pytest

from deltatune.core.errors import SettingsError
from deltatune.core.image_augmentation import ImageAugmentation, Placement, augmented, placed, placement, recoloured

STILL = {"crop": 0, "flip": "none", "colour": 0}
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 20, 30), dtype=np.uint8)


def smooth(height=40, width=60):
    """Bright in x, y and x + y: bilinear sampling of a plane is exact inside."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 3 * y, x + y]).astype(np.uint8)


def drawn(seed=0, pixels=PIXELS, **settings):
    return augmented(pixels, ImageAugmentation(**{**STILL, **settings}), np.random.default_rng(seed))


@pytest.mark.parametrize("changed", [{}, {"rotation": 30}, {"erase": 0.3}, {"flip": "both"}])
def test_size_and_type_stay_and_the_generator_decides(changed):
    settings = ImageAugmentation(**changed)
    first, again, other = (augmented(PIXELS, settings, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == PIXELS.shape and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_input_is_never_written_to():
    given = PIXELS.copy()
    given.flags.writeable = False
    for seed in range(20):
        drawn(seed, given, crop=0.5, colour=0.5, erase=0.5, rotation=20, flip="both")


def test_flips_are_exact_and_come_in_half_of_the_images():
    found = [drawn(seed, flip="horizontal") for seed in range(200)]
    mirrored = sum(np.array_equal(image, PIXELS[:, :, ::-1]) for image in found)
    assert mirrored + sum(np.array_equal(image, PIXELS) for image in found) == 200
    assert 75 < mirrored < 125
    kinds = {drawn(seed, flip="both").tobytes() for seed in range(50)}
    expected = (PIXELS, PIXELS[:, ::-1], PIXELS[:, :, ::-1], PIXELS[:, ::-1, ::-1])
    assert kinds == {np.ascontiguousarray(image).tobytes() for image in expected}


def test_a_crop_shows_a_part_of_the_image_at_its_aspect_ratio():
    settings = ImageAugmentation(**{**STILL, "crop": 0.5})
    shares = []
    for seed in range(200):
        a, b, c, d, e, f = placement(40, 60, settings, np.random.default_rng(seed)).matrix
        assert b == d == 0 and a == pytest.approx(e)
        assert c >= -1e-9 and f >= -1e-9 and c + 60 * a <= 60 + 1e-9 and f + 40 * e <= 40 + 1e-9
        shares.append(a * e)
    assert 0.5 <= min(shares) < 0.55 and 0.95 < max(shares) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_pixels_are_where_the_placement_says(seed):
    """What is at (x, y) afterwards was at a x + b y + c before, at pixel centres."""
    settings = ImageAugmentation(crop=0.4, flip="both", rotation=25, colour=0)
    pixels = smooth()
    place = placement(40, 60, settings, np.random.default_rng(seed))
    found = placed(pixels, place).astype(float)
    a, b, c, d, e, f = place.matrix
    y, x = np.mgrid[:40, :60] + 0.5
    old_x, old_y = a * x + b * y + c - 0.5, d * x + e * y + f - 0.5
    inside = (old_x > 1) & (old_x < 58) & (old_y > 1) & (old_y < 38)
    assert inside.mean() > 0.5
    assert np.abs(found[0] - 2 * old_x)[inside].max() <= 1
    assert np.abs(found[1] - 3 * old_y)[inside].max() <= 1


def test_points_follow_the_pixels():
    settings = ImageAugmentation(crop=0.4, flip="both", rotation=40)
    place = placement(40, 60, settings, np.random.default_rng(3))
    a, b, c, d, e, f = place.matrix
    new = np.random.default_rng(0).random((7, 2)) * 40
    old = np.stack([a * new[:, 0] + b * new[:, 1] + c, d * new[:, 0] + e * new[:, 1] + f], 1)
    assert np.allclose(place.points(old), new)


def test_a_turned_image_is_filled_with_its_mean_colour():
    found = drawn(0, np.full((3, 30, 30), 77, np.uint8), rotation=45)
    assert (found == 77).all()


def test_light_changes_values_and_leaves_a_grey_image_grey():
    grey = np.repeat(PIXELS[:1], 3, axis=0)
    found = drawn(3, grey, colour=0.5)
    assert not np.array_equal(found, grey)
    assert np.abs(found.astype(int) - found[:1]).max() <= 1
    assert np.array_equal(recoloured(PIXELS, ImageAugmentation(colour=0), np.random.default_rng(0)), PIXELS)


def test_brightness_stays_within_its_bounds():
    flat = np.full((3, 9, 9), 100, np.uint8)
    values = [int(drawn(seed, flat, colour=0.3)[0, 0, 0]) for seed in range(300)]
    assert 70 <= min(values) < 75 and 125 < max(values) <= 130


def test_a_square_of_the_mean_colour_covers_up_to_its_share():
    shares = []
    for seed in range(100):
        changed = (drawn(seed, erase=0.25) != PIXELS).any(0)
        rows, columns = changed.any(1).sum(), changed.any(0).sum()
        assert abs(int(rows) - int(columns)) <= 1
        shares.append(rows * columns / changed.size)
    assert 40 < sum(share == 0 for share in shares) < 65
    assert 0.2 < max(shares) <= 0.3


def test_a_group_that_varies_nothing_is_an_error():
    with pytest.raises(SettingsError, match="nothing is varied"):
        ImageAugmentation.parse(STILL, "task.augmentation")


def test_the_identity_is_the_image_itself():
    place = Placement(20, 30, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    assert placed(PIXELS, place) is PIXELS
