"""Glances: equal pixels have equal digests, nearly equal pixels nearly equal sketches, files that change new ones."""

import os

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from deltatune.core import image_glance
from deltatune.core.image_glance import edges, glance


def scene(seed, side=96):
    """A smooth picture with structure at several scales."""
    generator = np.random.default_rng(seed)
    layers = [
        np.array(Image.fromarray(generator.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((side, side), 3))
        for n in (3, 5, 9)
    ]
    return Image.fromarray(np.mean(layers, 0).astype(np.uint8))


def seen(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return glance(tmp_path / name)


def overlap(one, other):
    a, b = one.sketch(), other.sketch()
    return len(a & b) / len(a | b)


def test_the_digest_is_that_of_the_pixels_whatever_the_file(tmp_path):
    image = scene(0)
    first = seen(tmp_path, image)
    assert first.wrong is None and (first.height, first.width) == (96, 96)
    assert seen(tmp_path, image, "b.bmp").digest == first.digest
    assert seen(tmp_path, image.transpose(Image.Transpose.ROTATE_90), "c.png").digest != first.digest
    flat, upright = Image.new("RGB", (8, 16)), Image.new("RGB", (16, 8))
    assert seen(tmp_path, flat, "d.png").digest != seen(tmp_path, upright, "e.png").digest


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("a.jpg", lambda image: image),
        ("a.png", lambda image: image.resize((150, 150), 3)),
        ("a.png", lambda image: image.resize((60, 80), 3)),
        ("a.png", lambda image: ImageEnhance.Brightness(image).enhance(0.85)),
        ("a.png", lambda image: image.filter(ImageFilter.GaussianBlur(1))),
        ("a.png", lambda image: image.convert("L")),
    ],
)
def test_compressed_resized_and_darker_copies_are_near(kind, change, tmp_path):
    for seed in range(5):
        image = scene(seed)
        assert overlap(seen(tmp_path, image), seen(tmp_path, change(image), f"copy_{seed}_{kind}")) > 0.8


def test_other_pictures_are_not_near(tmp_path):
    found = [seen(tmp_path, scene(seed), f"{seed}.png") for seed in range(12)]
    assert max(overlap(a, b) for a in found for b in found if a is not b) < 0.6


def test_edges_are_those_of_a_plain_ramp():
    ramp = np.repeat(np.linspace(0, 255, 130).astype(np.uint8)[None, :, None], 120, 0).repeat(3, 2)
    signs = edges(ramp)
    assert (signs[:144] == 1).all() and (signs[144:] == 0).all()
    signs = edges(ramp[:, ::-1].transpose(1, 0, 2))
    assert (signs[:144] == 0).all() and (signs[144:] == -1).all()


def test_noise_on_a_flat_picture_is_no_edge(tmp_path):
    generator = np.random.default_rng(0)
    image = Image.fromarray((128 + generator.integers(-3, 4, (96, 96, 3))).astype(np.uint8))
    assert len(seen(tmp_path, image).sketch()) < 5


def test_the_small_picture_is_pillows(tmp_path):
    image = scene(3)
    expected = np.array(image.resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(seen(tmp_path, image).thumbnail(), expected)


def test_a_file_is_decoded_once_until_it_changes(tmp_path, monkeypatch):
    first = seen(tmp_path, scene(0))
    path = tmp_path / "a.png"
    with monkeypatch.context() as patch:
        patch.setattr(image_glance, "read_image", lambda *_: pytest.fail("decoded again"))
        assert glance(path) is glance(str(path)) is first
    scene(1).save(path)
    os.utime(path, ns=(1, 1))
    assert glance(path).digest != first.digest
    path.unlink()
    assert "is missing" in glance(path).wrong


def test_what_is_wrong_is_remembered_too(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    assert "of no known kind" in glance(tmp_path / "a.png").wrong
