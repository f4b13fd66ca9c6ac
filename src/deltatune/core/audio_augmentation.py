"""Audio augmentation: speed, noise, and stretches of time and bands of frequency taken out.

    speed            played 1 - speed .. 1 + speed as fast, pitch along with it
    noise            white noise so many dB below the clip
    time masks       stretches of silence
    frequency masks  bands that are missing

What is done is drawn first (`Variation`), with a generator that is given, and done when the clip is read; both masks
are shares, so they fit clips of any length. Of a model that reads log-mel features masks are laid on these, of one
that reads samples on the sound itself. Papers: Ko et al. 2015 (speed); Park et al. 2019, arXiv:1904.08779
(SpecAugment).
"""

from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from deltatune.core.audio import resampled
from deltatune.core.config import Settings

Stretch = tuple[float, float]
"""Begin and end, as shares of the whole."""
PERCENT = 100
"""Steps of the speed: a ratio of small whole numbers makes a short filter."""


class AudioAugmentation(Settings):
    """How training clips are varied; `{}` takes what rarely hurts."""

    speed: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Largest change of the speed."""
    noise: tuple[float, float] | None = (10.0, 40.0)
    """Loudest and softest noise, in dB below the clip; none adds none."""
    time_masks: Annotated[int, Field(ge=0)] = 2
    """Stretches of time that are taken out."""
    time_mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Longest one, as a share of the clip."""
    frequency_masks: Annotated[int, Field(ge=0)] = 2
    """Bands of frequency that are taken out."""
    frequency_mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Widest one, as a share of all bands."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if not (self.speed or self.noise or self.time_masks or self.frequency_masks):
            raise ValueError("nothing is varied: set speed, noise, time_masks or frequency_masks, or take it out")
        if self.noise is not None and self.noise[0] > self.noise[1]:
            raise ValueError("noise is the loudest and the softest, in dB below the clip: [10, 40]")
        return self


@dataclass(frozen=True, slots=True)
class Variation:
    """What is done to one clip at one step."""

    speed: float
    """1.1 is faster."""
    noise: float | None
    """Decibels below the clip."""
    seed: int
    """Of the noise."""
    times: tuple[Stretch, ...]
    frequencies: tuple[Stretch, ...]


def variation(settings: AudioAugmentation, generator: np.random.Generator) -> Variation:
    """Draws one; the generator alone decides, and the same settings always take the same number of draws."""
    speed = round(PERCENT * (1 + settings.speed * generator.uniform(-1, 1))) / PERCENT
    noise = None if settings.noise is None else float(generator.uniform(*settings.noise))
    seed = int(generator.integers(1 << 63))
    times = _stretches(settings.time_masks, settings.time_mask_share, generator)
    return Variation(
        speed, noise, seed, times, _stretches(settings.frequency_masks, settings.frequency_mask_share, generator)
    )


def _stretches(count: int, widest: float, generator: np.random.Generator) -> tuple[Stretch, ...]:
    widths = widest * generator.random(count)
    begins = (1 - widths) * generator.random(count)
    return tuple(zip(begins.tolist(), (begins + widths).tolist(), strict=True))


def varied(samples_T: np.ndarray, made: Variation, longest: int | None = None) -> np.ndarray:
    """Another speed, then noise; a slower clip stays within `longest` samples."""
    speed = made.speed if longest is None else max(made.speed, len(samples_T) / longest)
    return noisy(resampled(samples_T, round(PERCENT * speed), PERCENT), made)


def noisy(samples_T: np.ndarray, made: Variation) -> np.ndarray:
    """The clip with white noise of the drawn loudness; a silent one stays silent."""
    if made.noise is None:
        return samples_T
    power = float(np.square(samples_T, dtype=np.float64).mean()) / 10 ** (made.noise / 10)
    noise = np.random.default_rng(made.seed).standard_normal(len(samples_T), np.float32)
    found: np.ndarray = samples_T + np.float32(np.sqrt(power)) * noise
    return found


def masked_samples(samples_T: np.ndarray, made: Variation) -> np.ndarray:
    """Bands of a clip taken out of its spectrum, then stretches silenced."""
    found = samples_T.copy()
    if made.frequencies:
        spectrum_F = np.fft.rfft(found)
        for begin, end in made.frequencies:
            spectrum_F[_part(len(spectrum_F), begin, end)] = 0
        found = np.fft.irfft(spectrum_F, len(found)).astype(np.float32)
    for begin, end in made.times:
        found[_part(len(found), begin, end)] = 0
    return found


def masked_features(features_FT: Tensor, frames: int, made: Variation) -> Tensor:
    """Bands and stretches of the first `frames` frames at the mean of these, as SpecAugment does."""
    found = features_FT.clone()
    own = found[:, :frames]  # a view: what is written there is written to `found`
    mean = own.mean()
    for begin, end in made.frequencies:
        own[_part(len(own), begin, end)] = mean
    for begin, end in made.times:
        own[:, _part(frames, begin, end)] = mean
    return found


def _part(count: int, begin: float, end: float) -> slice:
    """The places of a stretch.

    >>> _part(100, 0.25, 0.5)
    slice(25, 50, None)
    """
    return slice(round(count * begin), round(count * end))
