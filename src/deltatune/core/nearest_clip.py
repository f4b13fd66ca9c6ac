"""Nearest clip: the classical answer to "which of the words I know was that", by the mean spectrum over time.

A clip is cut into equal stretches; of each the mean log-mel energies count, loudness aside. The text of the nearest
training clip is the answer. It can say only what it has heard, and knows no words inside of a sentence.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from transformers.audio_utils import mel_filter_bank

from deltatune.core.audio import read_audio

RATE, WINDOW, HOP, BANDS, STRETCHES = 8000, 256, 80, 32, 8
FILTERS_FB = mel_filter_bank(WINDOW // 2 + 1, BANDS, 50.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")


def nearest_texts(train: Sequence[tuple[str, str]], paths: Sequence[str]) -> list[str]:
    """For every path the text of the nearest of the training clips (path, text)."""
    scaler = StandardScaler()
    known_ND = scaler.fit_transform(np.stack([spectrum(path) for path, _ in train]))
    asked_MD = scaler.transform(np.stack([spectrum(path) for path in paths]))
    nearest_M1 = NearestNeighbors(n_neighbors=1).fit(known_ND).kneighbors(asked_MD, return_distance=False)
    return [train[index][1] for index in nearest_M1[:, 0].tolist()]


def spectrum(path: str) -> np.ndarray:
    """Mean log-mel energies of every stretch, without their mean over all [STRETCHES * BANDS]."""
    samples_T = read_audio(path, RATE)
    samples_T = np.pad(samples_T, (0, max(0, WINDOW + HOP * STRETCHES - len(samples_T))))
    frames_NW = np.lib.stride_tricks.sliding_window_view(samples_T, WINDOW)[::HOP] * np.hanning(WINDOW)
    power_NF = np.abs(np.fft.rfft(frames_NW)) ** 2
    energies_NB = np.log(power_NF @ FILTERS_FB + 1e-8)
    stretches = np.array([part.mean(0) for part in np.array_split(energies_NB, STRETCHES)])
    found: np.ndarray = (stretches - stretches.mean()).ravel()
    return found
