"""Audio augmentation: what is drawn, and that each change does what it says and nothing else."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from deltatune.core.audio_augmentation import (
    AudioAugmentation,
    Variation,
    masked_features,
    masked_samples,
    noisy,
    variation,
    varied,
)

PLAIN = Variation(1.0, None, 0, (), ())


def noise(count=16000, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype(np.float32) * 0.1


def test_what_is_drawn_follows_from_the_generator_and_stays_in_its_ranges():
    settings = AudioAugmentation(speed=0.2, noise=(5, 15), time_masks=3, time_mask_share=0.2)
    drawn = [variation(settings, np.random.default_rng((1, step))) for step in range(200)]
    assert drawn == [variation(settings, np.random.default_rng((1, step))) for step in range(200)]
    assert 0.8 <= min(v.speed for v in drawn) < 0.85 and 1.15 < max(v.speed for v in drawn) <= 1.2
    assert all(5 <= v.noise <= 15 and len(v.times) == 3 and len(v.frequencies) == 2 for v in drawn)
    assert all(0 <= begin <= end <= 1 and end - begin <= 0.2 + 1e-9 for v in drawn for begin, end in v.times)


def test_nothing_to_vary_and_a_wrong_order_are_errors():
    with pytest.raises(ValidationError, match="nothing is varied"):
        AudioAugmentation(speed=0, noise=None, time_masks=0, frequency_masks=0)
    with pytest.raises(ValidationError, match="loudest and the softest"):
        AudioAugmentation(noise=(40, 10))


@pytest.mark.parametrize("decibels", [0.0, 10.0, 30.0])
def test_noise_is_as_loud_as_it_says(decibels):
    clip = noise()
    added = noisy(clip, Variation(1.0, decibels, 3, (), ())) - clip
    found = 10 * np.log10(np.square(clip).mean() / np.square(added).mean())
    assert found == pytest.approx(decibels, abs=0.2)
    assert not noisy(np.zeros(100, np.float32), Variation(1.0, decibels, 3, (), ())).any()


def test_a_faster_clip_is_shorter_and_higher():
    time = np.arange(16000) / 16000
    clip = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    found = varied(clip, Variation(1.25, None, 0, (), ()))
    assert len(found) == 12800
    peak = np.abs(np.fft.rfft(found)).argmax() * 16000 / len(found)
    assert peak == pytest.approx(1250, abs=2)


def test_a_slower_clip_stays_within_the_longest():
    slow = Variation(0.5, None, 0, (), ())
    assert len(varied(noise(8000), slow)) == 16000
    assert len(varied(noise(8000), slow, longest=10000)) <= 10000
    assert np.array_equal(varied(noise(8000), slow, longest=8000), noise(8000))


def test_masks_of_sound_silence_stretches_and_take_bands_out():
    clip = noise()
    found = masked_samples(clip, Variation(1.0, None, 0, ((0.25, 0.5),), ()))
    assert not found[4000:8000].any() and np.array_equal(found[:4000], clip[:4000])
    found = masked_samples(clip, Variation(1.0, None, 0, (), ((0.5, 0.75),)))
    before, after = (np.abs(np.fft.rfft(samples)) for samples in (clip, found))
    assert after[4100:5900].max() < 1e-3 * before.max()
    assert np.allclose(after[:3900], before[:3900], rtol=1e-3, atol=1e-3)
    assert np.array_equal(masked_samples(clip, PLAIN), clip)


def test_masks_of_features_have_their_mean_and_leave_padding_alone():
    features = torch.randn(20, 50)
    made = Variation(1.0, None, 0, ((0.0, 0.1),), ((0.5, 0.6),))
    found = masked_features(features, 40, made)
    changed = torch.zeros(20, 50, dtype=torch.bool)
    changed[10:12, :40] = True
    changed[:, :4] = True
    assert torch.equal(found[~changed], features[~changed])
    assert torch.allclose(found[changed], features[:, :40].mean())
    assert not torch.equal(features, found)
