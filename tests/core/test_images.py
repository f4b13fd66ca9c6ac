"""Image files of every kind as RGB, and files that are none, with their reason."""

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from deltatune.core import images
from deltatune.core.errors import DataError
from deltatune.core.image_glance import why_not
from deltatune.core.images import each_image, read_image, resized, room

COLOURS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp", "gif", "ppm"])
def test_every_lossless_kind_gives_back_its_colours(kind, tmp_path):
    few = COLOURS // 64 * 64  # a palette holds 256 colours
    options = {"lossless": True} if kind == "webp" else {}
    image = Image.fromarray(few)
    image = image.quantize(256) if kind == "gif" else image
    found = read_image(saved(tmp_path / f"a.{kind}", image, **options))
    assert found.dtype == np.uint8
    assert np.array_equal(found, few)


def test_grey_bilevel_and_grey_with_alpha_are_three_equal_channels(tmp_path):
    grey = COLOURS[:, :, 0]
    assert np.array_equal(read_image(saved(tmp_path / "l.png", Image.fromarray(grey))), np.stack([grey] * 3, 2))
    found = read_image(saved(tmp_path / "1.png", Image.fromarray(grey > 128)))
    assert np.array_equal(found, np.stack([np.where(grey > 128, 255, 0)] * 3, 2))
    half = Image.merge("LA", [Image.fromarray(grey), Image.new("L", (16, 12), 0)])
    assert (read_image(saved(tmp_path / "la.png", half)) == 255).all()


def test_what_is_transparent_is_white_whatever_colour_it_hides(tmp_path):
    alpha = np.full((12, 16, 1), 255, np.uint8)
    alpha[:, 8:] = 0
    found = read_image(saved(tmp_path / "a.png", Image.fromarray(np.concatenate([COLOURS, alpha], 2))))
    assert np.array_equal(found[:, :8], COLOURS[:, :8])
    assert (found[:, 8:] == 255).all()


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    found = read_image(saved(tmp_path / "p.png", image, transparency=0))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[5, 5].tolist() == [10, 20, 30]


def test_cmyk_is_what_pillow_makes_of_it(tmp_path):
    image = Image.fromarray(COLOURS).convert("CMYK")
    assert np.array_equal(read_image(saved(tmp_path / "c.tiff", image)), np.array(image.convert("RGB")))


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_rotation_in_the_exif_tag_is_carried_out(tag, tmp_path):
    turned = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS, -1),
        7: np.rot90(COLOURS, 2).transpose(1, 0, 2),
        8: np.rot90(COLOURS),
    }[tag]
    exif = Image.Exif()
    exif[0x0112] = tag
    assert np.array_equal(read_image(saved(tmp_path / "a.png", Image.fromarray(COLOURS), exif=exif)), turned)


def sixteen(tmp_path, values):
    return saved(tmp_path / "deep.png", Image.fromarray(np.asarray(values, np.uint16)))


def test_sixteen_bits_are_scaled_as_a_whole_and_not_cut(tmp_path):
    values = np.tile(np.array([0, 257, 4095, 65535], np.uint16), (8, 2))
    found = read_image(sixteen(tmp_path, values))
    assert found[0, :4, 0].tolist() == [0, 1, 16, 255]
    assert (found == found[:, :, :1]).all()


def test_the_range_of_twelve_bits_can_be_named(tmp_path):
    values = np.tile(np.array([0, 2047, 4095, 65535], np.uint16), (8, 2))
    assert read_image(sixteen(tmp_path, values), (0, 4095))[0, :4, 0].tolist() == [0, 127, 255, 255]


def test_numbers_without_a_range_are_refused_until_one_is_named(tmp_path):
    values = np.linspace(-1000, 1000, 64, dtype=np.float32).reshape(8, 8)
    path = saved(tmp_path / "f.tiff", Image.fromarray(values))
    with pytest.raises(DataError, match="unknown range .*-1000 to 1000"):
        read_image(path)
    found = read_image(path, (-1000, 1000))
    assert (found[0, 0, 0], found[-1, -1, 0]) == (0, 255)
    values[0, 0] = np.nan
    assert "not finite" in why_not(saved(path, Image.fromarray(values)), (-1000, 1000))


def test_small_ints_of_32_bits_are_taken_as_sixteen_bits(tmp_path):
    values = np.tile(np.array([0, 65535], np.int32), (8, 4))
    assert read_image(saved(tmp_path / "i.tiff", Image.fromarray(values)))[0, :2, 0].tolist() == [0, 255]


# -- what is no image


def broken(tmp_path):
    """File name -> content, and a part of the reason."""
    whole = io.BytesIO()
    Image.fromarray(COLOURS).resize((64, 64)).save(whole, "png")
    jpeg = io.BytesIO()
    Image.fromarray(COLOURS).resize((64, 64)).save(jpeg, "jpeg")
    return {
        "empty.png": (b"", "image file is empty"),
        "text.png": (b"not an image at all", "of no known kind"),
        "page.png": (b"%PDF-1.7 ...", "it is PDF"),
        "scan.png": (b"\0" * 128 + b"DICM" + b"\0" * 99, "it is DICOM"),
        "print.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "of no known kind"),
        "half.png": (whole.getvalue()[:600], "cannot be decoded"),
        "half.jpg": (jpeg.getvalue()[:700], "cannot be decoded"),
        "noise.png": (whole.getvalue()[:60] + b"\xff" * 200 + whole.getvalue()[260:], "cannot be decoded"),
    }


@pytest.mark.parametrize("name", list(broken(None)))
def test_broken_files_are_named_with_their_reason(name, tmp_path):
    content, reason = broken(tmp_path)[name]
    (tmp_path / name).write_bytes(content)
    found = why_not(str(tmp_path / name))
    assert reason in found and str(tmp_path / name) in found


def test_missing_files_folders_and_other_values_are_named(tmp_path):
    assert "is missing" in why_not(str(tmp_path / "none.png"))
    assert "is a folder" in why_not(str(tmp_path))
    assert why_not("") == why_not("  ") == "path is empty"
    assert why_not(3) == "path is not text (int)"


def test_animations_and_pages_are_refused_and_previews_of_phones_are_not(tmp_path):
    frames = [Image.fromarray(COLOURS + shift) for shift in range(3)]
    more = {"save_all": True, "append_images": frames[1:]}
    assert "has 3 frames" in why_not(str(saved(tmp_path / "a.gif", frames[0], **more)))
    assert "has 3 frames" in why_not(str(saved(tmp_path / "a.tiff", frames[0], **more)))
    assert why_not(str(saved(tmp_path / "a.jpg", frames[0], format="MPO", **more))) is None


def test_the_sizes_have_bounds(tmp_path):
    assert "8 a side are the least" in why_not(str(saved(tmp_path / "s.png", Image.new("RGB", (7, 50)))))
    assert "1:100 is the most" in why_not(str(saved(tmp_path / "l.png", Image.new("L", (8, 801)))))
    assert why_not(str(saved(tmp_path / "o.png", Image.new("L", (8, 800))))) is None


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    """A PNG of a few bytes that says it is 20,000 pixels wide and high, and one that is within Pillow's warning."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for side in (9_500, 20_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path = tmp_path / "bomb.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)))
        assert f"{images.MOST_PIXELS:,}" in why_not(str(path))


def test_resizing_is_pillows(tmp_path):
    expected = np.array(Image.fromarray(COLOURS).resize((5, 7), Image.Resampling.BICUBIC))
    assert np.array_equal(resized(COLOURS, 7, 5), expected)


def test_many_images_are_read_with_their_numbers_and_a_broken_one_is_named(tmp_path):
    paths = [saved(tmp_path / f"{n}.png", Image.fromarray(COLOURS + n)) for n in range(20)]
    kept = room(20, *COLOURS.shape)
    each_image(paths, None, kept.__setitem__)
    assert all(np.array_equal(kept[n], COLOURS + n) for n in range(20))
    paths[7].write_bytes(b"")
    with pytest.raises(DataError, match="7.png"):
        each_image(paths, None, kept.__setitem__)


def test_what_does_not_fit_into_memory_lies_in_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "IN_MEMORY", 3 * 8 * 8)
    assert type(room(1, 3, 8, 8)) is np.ndarray
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = room(2, 3, 8, 8)
    kept[1] = 7
    assert isinstance(kept, np.memmap) and (kept[1] == 7).all()
    assert list(tmp_path.iterdir()) == []


def test_odd_tags_and_sizes_warn_nobody_and_the_filters_of_warnings_are_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns above, and refuses twice as many
    path = saved(tmp_path / "a.png", Image.fromarray(COLOURS))
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    before = list(warnings.filters)
    threads = [threading.Thread(target=each_image, args=([path] * 50, None, lambda *_: None)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_without_pillow_the_extra_is_named_and_everything_else_works(tmp_path):
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "import deltatune.core.image_glance, deltatune.core.image_processor, deltatune.core.image_augmentation\n"
        "from deltatune.core.errors import SettingsError\n"
        "try: deltatune.core.images.read_image('a.png')\n"
        "except SettingsError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PIL is not installed; pip install 'deltatune[vision]'" in done.stdout, done.stderr
