"""Audio: a file as one channel of samples at the rate a model listens at, or the reason why not.

Whatever libsndfile reads (WAV, FLAC, OGG, MP3, ...), at any rate and with any number of channels: channels are
averaged, rates are changed by a polyphase filter that lets nothing alias. A quiet or silent clip is a good one.
"""

import hashlib
import math
import struct
from functools import lru_cache
from os.path import exists
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import resample_poly

from deltatune.core.errors import DataError
from deltatune.core.extras import extra

LEAST_SECONDS = 0.025
"""Window of one frame of nearly every recogniser; a shorter clip holds none."""
LOUDEST = 16.0
"""Samples of floats are within -1 and 1, a bit more where a mix was not limited; far more are integers unscaled."""
REMEMBERED = 1 << 20
"""Files whose check is remembered, for as long as they do not change."""


def read_audio(path: str | Path, rate: int) -> np.ndarray:
    """The samples of a file in float32, [time] at `rate` Hz.

    Raises `DataError` with a reason that begins alike for files that fail alike.
    """
    samples, own = _decoded(Path(path))
    return resampled(samples, own, rate)


def envelope(samples_T: np.ndarray, rate: int, stretches: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds, lowest and highest value of at most so many equal stretches of a clip.

    >>> [found.tolist() for found in envelope(np.array([0, 1, -1, 0.5]), 2, 2)]
    [[0.0, 1.0], [0.0, -1.0], [1.0, 0.5]]
    """
    starts = np.unique(np.linspace(0, len(samples_T), stretches, endpoint=False).astype(int))
    return starts / rate, np.minimum.reduceat(samples_T, starts), np.maximum.reduceat(samples_T, starts)


def resampled(samples_T: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The same sound at another rate; frequencies that the new rate cannot hold are gone.

    >>> resampled(np.ones(800, np.float32), 8000, 16000).shape
    (1600,)
    """
    if rate == wanted:
        return samples_T
    common = math.gcd(rate, wanted)
    found: np.ndarray = resample_poly(samples_T, wanted // common, rate // common).astype(np.float32)
    return found


def why_not(path: Any, longest_s: float) -> str | None:
    """What is wrong with the value of a column that should be the path of an audio file, or None; decodes it.

    Clips of more than `longest_s` seconds are told by their header and not decoded.
    """
    if not isinstance(path, str | Path):
        return f"path is not text ({type(path).__name__})"
    if not str(path).strip():
        return "path is empty"
    file = Path(path)
    if not exists(file):  # that of Path raises for a name no file can have
        return f"audio is missing ({path})"
    if not file.is_file():
        return f"audio is a folder ({path})" if file.is_dir() else f"audio is no regular file ({path})"
    told = file.stat()
    return _why_not(file, longest_s, told.st_size, told.st_mtime_ns)


@lru_cache(REMEMBERED)
def _why_not(path: Path, longest_s: float, size: int, changed_ns: int) -> str | None:
    if size == 0:
        return f"audio file is empty ({path})"
    try:
        header = _header(path)
        seconds = header.frames / header.samplerate
        if seconds > longest_s:
            return f"audio is too long ({path}): {seconds:.1f} s, {longest_s:g} are the most (task.max_seconds)"
        _decoded(path)
    except DataError as error:
        return error.what
    return None


def seconds_of(path: str | Path) -> float:
    """Length of a clip by its header."""
    header = _header(Path(path))
    return float(header.frames / header.samplerate)


def content_of(path: str | Path) -> str:
    """A hash of a file's bytes: the same recording under two names is one."""
    told = Path(path).stat()
    return _content(Path(path), told.st_size, told.st_mtime_ns)


@lru_cache(REMEMBERED)
def _content(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(path: Path) -> Any:
    """What libsndfile tells about a file, without decoding it."""
    soundfile = extra("soundfile", "audio")
    _check_riff(path)
    try:
        header = soundfile.info(str(path))
    except soundfile.SoundFileError as error:
        raise DataError(f"audio cannot be read ({path}): {_reason(error)}") from None
    if header.frames <= 0:
        raise DataError(f"audio has no samples ({path})")
    return header


def _decoded(path: Path) -> tuple[np.ndarray, int]:
    """Samples [time] in float32, channels averaged, and their rate."""
    header = _header(path)
    soundfile = extra("soundfile", "audio")
    try:
        samples_TC, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise DataError(f"audio cannot be decoded ({path}): {_reason(error)}") from None
    if len(samples_TC) < header.frames:
        raise DataError(f"audio is cut off ({path}): {len(samples_TC)} of {header.frames} samples are there")
    seconds = len(samples_TC) / rate
    if seconds < LEAST_SECONDS:
        raise DataError(f"audio is too short ({path}): {1000 * seconds:.1f} ms, {1000 * LEAST_SECONDS:g} are the least")
    loudest = float(np.abs(samples_TC).max())
    if not math.isfinite(loudest):
        raise DataError(f"audio has samples that are not finite ({path})")
    if loudest > LOUDEST:
        raise DataError(f"audio has samples up to {loudest:g} ({path}); floats from -1 to 1 are expected")
    return samples_TC.mean(1), rate


def _check_riff(path: Path) -> None:
    """Raises `DataError` for a WAV file that ends before its header says; libsndfile reads what is there."""
    with path.open("rb") as file:
        head = file.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    (told,) = struct.unpack("<I", head[4:8])
    there = path.stat().st_size - 8
    if there < told < 0xFFFFFF00:  # a stream of unknown length says all ones or nearly so
        raise DataError(f"audio is cut off ({path}): {there} of {told} bytes are there")


def _reason(error: Exception) -> str:
    """libsndfile's own words, without the path it repeats."""
    text = str(error).strip().splitlines()[0]
    return text.rpartition(": ")[2].rstrip(".") or type(error).__name__
