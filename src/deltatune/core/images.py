"""Images: a file as RGB pixels of 8 bits, or the reason why not.

Whatever a file holds (grey, palette, transparency, CMYK, 16 bits, a rotation told by its EXIF tag), a model is shown
red, green and blue from 0 to 255, upright. Transparent pixels are shown on white. Files come from anywhere: only kinds
that Pillow decodes by itself are opened, and no image of more pixels than `MOST_PIXELS` is decoded.
"""

import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os.path import exists
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltatune.core.errors import DataError
from deltatune.core.extras import extra

KINDS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Of Pillow's formats those that start no other program (EPS does) and are no film."""
MOST_PIXELS = 89_478_485
"""Where Pillow begins to suspect a decompression bomb: 268 MB of RGB."""
LEAST_SIDE = 8
LONGEST_RATIO = 100
"""Longer side over the shorter one: resized by its shorter side, a longer strip would be huge."""

Window = tuple[float, float]
"""The values that are shown black and white, for images of more than 8 bits; a radiologist's window."""
SIXTEEN_BITS: Window = (0, 65535)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Brightness of red, green and blue (ITU-R BT.601)."""
IN_MEMORY = 2 << 30
"""Bytes of decoded images that are kept in memory; more are kept in a file."""


def read_image(path: str | Path, window: Window | None = None) -> np.ndarray:
    """The pixels of an image file, [height, width, 3] in uint8.

    `window` are the values that become 0 and 255 in images of more than 8 bits (12-bit X-rays: 0 and 4095); none takes
    the whole range of 16 bits. Raises `DataError` with a reason that begins alike for files that fail alike.
    """
    with _hushed():
        return _rgb(_opened(path), path, window)


def each_image(paths: Sequence[str | Path], window: Window | None, do: Callable[[int, np.ndarray], None]) -> None:
    """Calls `do(number, pixels)` for every image, from as many threads as torch uses; decoding leaves Python free.

    Raises `DataError` for the first one that cannot be read.
    """
    with _hushed(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(
            lambda number: do(number, _rgb(_opened(paths[number]), paths[number], window)), range(len(paths))
        ):
            pass


def room(count: int, *shape: int) -> np.ndarray:
    """Space for `count` images in uint8: in memory, or in a temporary file that goes when nothing needs it.

    >>> room(2, 3, 8, 8).shape
    (2, 3, 8, 8)
    """
    size = (count, *shape)
    if int(np.prod(size)) <= IN_MEMORY:
        return np.empty(size, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=size)


def _opened(path: str | Path) -> Any:
    """A Pillow image, decoded and upright; raises `DataError` for what is missing, broken, animated, tiny or huge."""
    image_module, ops = extra("PIL.Image", "vision"), extra("PIL.ImageOps", "vision")
    _check_file(Path(path))
    try:
        image_module.init()
        with image_module.open(path, formats=[kind for kind in KINDS if kind in image_module.OPEN]) as image:
            _check_shape(image, path)
            image.load()
            return ops.exif_transpose(image)
    except image_module.UnidentifiedImageError:
        raise DataError(f"image is of no known kind ({path}){_hint(Path(path))}") from None
    except image_module.DecompressionBombError:
        raise DataError(f"image has more than {MOST_PIXELS:,} pixels ({path})") from None
    except DataError:
        raise
    except Exception as error:  # decoders raise dozens of kinds; to the user they are one
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"image cannot be decoded ({path}): {reason}") from None


def _rgb(image: Any, path: str | Path, window: Window | None) -> np.ndarray:
    """The pixels of a Pillow image, [height, width, 3] in uint8; `path` names it in errors."""
    if image.mode[:1] in ("I", "F"):
        grey = _eight_bits(np.asarray(image), image.mode, path, window)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        backdrop = extra("PIL.Image", "vision").new("RGBA", image.size, "white")
        backdrop.alpha_composite(image.convert("RGBA"))
        image = backdrop
    return np.array(image.convert("RGB"))


def resized(pixels_HWC: np.ndarray, height: int, width: int, resample: int = 3) -> np.ndarray:
    """Pixels in another size, by Pillow, so with antialiasing; `resample` is Pillow's number (2 bilinear, 3 bicubic).

    >>> resized(np.full((8, 6, 3), 7, np.uint8), 4, 5).shape
    (4, 5, 3)
    """
    image = extra("PIL.Image", "vision").fromarray(pixels_HWC)
    return np.array(image.resize((width, height), resample=resample))


def _check_file(path: Path) -> None:
    if not exists(path):  # that of Path raises for a name no file can have
        raise DataError(f"image is missing ({path})")
    if not path.is_file():
        raise DataError(f"image is a folder ({path})" if path.is_dir() else f"image is no regular file ({path})")
    if path.stat().st_size == 0:
        raise DataError(f"image file is empty ({path})")


def _check_shape(image: Any, path: str | Path) -> None:
    """Raises `DataError` from the header alone."""
    width, height = image.size
    shown = f"({path}): {width} x {height} pixels"
    if width * height > MOST_PIXELS:
        raise DataError(f"image is too large {shown}, {MOST_PIXELS:,} are the most; cut it into tiles")
    if min(width, height) < LEAST_SIDE:
        raise DataError(f"image is too small {shown}, {LEAST_SIDE} a side are the least")
    if max(width, height) > LONGEST_RATIO * min(width, height):
        raise DataError(f"image is too long {shown}, 1:{LONGEST_RATIO} is the most")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone keeps a preview behind its photo
        raise DataError(f"image has {frames} frames ({path}); save one of them as a file of its own")


def _eight_bits(values_HW: np.ndarray, mode: str, path: str | Path, window: Window | None) -> np.ndarray:
    """Values of more than 8 bits, from black to white."""
    if not np.isfinite(values_HW).all():
        raise DataError(f"image has values that are not finite ({path})")
    lowest, highest = float(values_HW.min()), float(values_HW.max())
    if window is None and (mode == "F" or lowest < 0 or highest > SIXTEEN_BITS[1]):
        raise DataError(f"image has values of unknown range ({path}): {lowest:g} to {highest:g}; set task.window")
    black, white = window or SIXTEEN_BITS
    shares = (values_HW.astype(np.float64) - black) / (white - black)
    grey_HW: np.ndarray = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return grey_HW


MAGIC: Mapping[str, tuple[int, bytes]] = {"DICOM": (128, b"DICM"), "PDF": (0, b"%PDF"), "NIfTI": (344, b"n+1")}


def _hint(path: Path) -> str:
    """The kind of a file that is no image but is often taken for one."""
    with path.open("rb") as file:
        head = file.read(512)
    kind = next((kind for kind, (at, word) in MAGIC.items() if head[at : at + len(word)] == word), None)
    return f": it is {kind}; save its images as PNG, 16 bits where it has more than 8" if kind else ""


_hush = threading.Lock()
_hushing: list[Any] = []
"""One entry for everyone who reads at the moment; the first one is what puts the filters of warnings back."""


@contextmanager
def _hushed() -> Iterator[None]:
    """Keeps Pillow's warnings (sizes, odd tags) off the screen: sizes are checked here, odd tags do not matter.

    Filters of warnings belong to the process: whoever comes first sets them and whoever leaves last puts them back.
    """
    with _hush:
        caught = _hushing[0] if _hushing else warnings.catch_warnings()
        if not _hushing:
            caught.__enter__()
            warnings.simplefilter("ignore")
        _hushing.append(caught)
    try:
        yield
    finally:
        with _hush:
            _hushing.pop()
            if not _hushing:
                caught.__exit__(None, None, None)
