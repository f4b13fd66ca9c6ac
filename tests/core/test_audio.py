"""Audio: files of every kind as samples at one rate, and the reasons of those that cannot be used."""

import re

import numpy as np
import pytest
import soundfile

from deltatune.core import audio
from deltatune.core.errors import DataError

RATE = 16000


def wave(hz, seconds=0.5, rate=RATE):
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def written(path, samples, rate=RATE, **how):
    soundfile.write(path, samples, rate, **how)
    return path


@pytest.mark.parametrize(
    ("name", "how", "error"),
    [
        ("a.wav", {"subtype": "FLOAT"}, 0),
        ("a.wav", {"subtype": "PCM_16"}, 2**-15),
        ("a.wav", {"subtype": "PCM_24"}, 2**-23),
        ("a.wav", {"subtype": "PCM_U8"}, 2**-7),
        ("a.flac", {}, 2**-15),
        ("a.aiff", {}, 2**-15),
        ("a.ogg", {}, 0.05),
    ],
)
def test_every_kind_of_file_gives_its_samples(tmp_path, name, how, error):
    found = audio.read_audio(written(tmp_path / name, wave(440), **how), RATE)
    assert found.dtype == np.float32
    assert np.abs(found - wave(440)).max() <= error


def test_channels_are_averaged(tmp_path):
    both = np.stack([wave(440), np.zeros(8000, np.float32)], 1)
    found = audio.read_audio(written(tmp_path / "a.wav", both, subtype="FLOAT"), RATE)
    assert np.allclose(found, wave(440) / 2, atol=1e-7)


@pytest.mark.parametrize("own", [8000, 11025, 22050, 44100, 48000])
def test_a_tone_is_the_same_tone_at_another_rate(tmp_path, own):
    found = audio.read_audio(written(tmp_path / "a.wav", wave(440, rate=own), own, subtype="FLOAT"), RATE)
    assert len(found) == -(-round(0.5 * own) * RATE // own)
    inside = slice(800, len(found) - 800)
    assert np.abs(found[inside] - wave(440, 0.6)[: len(found)][inside]).max() < 5e-3


def test_what_the_new_rate_cannot_hold_is_gone_and_does_not_fold_back():
    high = audio.resampled(wave(6000), RATE, 8000)  # would fold to 2000 Hz
    assert np.abs(high[200:-200]).max() < 5e-3
    kept = audio.resampled(wave(2000), RATE, 8000)
    assert np.abs(kept[200:-200]).max() == pytest.approx(0.5, abs=0.01)


def test_silence_is_a_good_clip(tmp_path):
    path = written(tmp_path / "a.wav", np.zeros(1600, np.float32))
    assert audio.why_not(str(path), 1.0) is None
    assert not audio.read_audio(path, RATE).any()


def broken(folder, kind):
    """A file that cannot be used."""
    path = folder / ("a.flac" if kind == "cut flac" else "a.wav")
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
        return path
    samples = {"loud": wave(440) * 32768, "short": wave(440, 0.01), "no samples": wave(440, 0), "long": wave(440, 2)}
    samples = samples.get(kind, wave(440))
    if kind == "not finite":
        samples[7] = np.nan
    written(path, samples, **({} if path.suffix == ".flac" else {"subtype": "FLOAT"}))
    content = path.read_bytes()
    new = {"empty": b"", "text": b"path,text\n", "cut": content[:3000], "cut flac": content[: len(content) // 2]}
    path.write_bytes(new.get(kind, content))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "audio is missing"),
        ("folder", "audio is a folder"),
        ("empty", "audio file is empty"),
        ("text", "audio cannot be read"),
        ("no samples", "audio has no samples"),
        ("short", "audio is too short"),
        ("long", r"audio is too long .*: 2.0 s, 1.5 are the most \(task.max_seconds\)"),
        ("not finite", "audio has samples that are not finite"),
        ("loud", r"audio has samples up to 163\d\d.*; floats from -1 to 1 are expected"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, kind, reason):
    path = broken(tmp_path, kind)
    found = audio.why_not(str(path), 1.5)
    assert found is not None and re.match(reason, found) and str(path) in found


@pytest.mark.parametrize("kind", ["cut", "cut flac"])
def test_files_that_end_too_early_are_no_clips(tmp_path, kind):
    found = audio.why_not(str(broken(tmp_path, kind)), 10)
    assert found is not None and found.startswith(("audio is cut off", "audio cannot be"))


@pytest.mark.parametrize(
    ("value", "reason"), [(3, "path is not text (int)"), (None, "path is not text"), (" ", "empty")]
)
def test_a_path_that_is_none_says_so(value, reason):
    assert reason in audio.why_not(value, 1)


def test_reading_a_broken_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="audio cannot be read"):
        audio.read_audio(broken(tmp_path, "text"), RATE)


def test_a_file_that_changes_is_looked_at_again(tmp_path):
    path = broken(tmp_path, "text")
    assert audio.why_not(str(path), 10) is not None
    first = audio.content_of(path)
    written(path, wave(440))
    assert audio.why_not(str(path), 10) is None
    assert audio.content_of(path) != first


def test_the_same_recording_has_the_same_content(tmp_path):
    one, two = (written(tmp_path / name, wave(440)) for name in ("a.wav", "b.wav"))
    other = written(tmp_path / "c.wav", wave(441))
    assert audio.content_of(one) == audio.content_of(two) != audio.content_of(other)
    assert audio.seconds_of(one) == 0.5
