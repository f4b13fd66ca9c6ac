"""Mixup: pixels and labels by one share, and the loss of what comes out."""

import numpy as np
import pytest
import torch

from deltatune.core import label_loss
from deltatune.core.mixing import blended, blended_labels


def test_arrays_are_blended_in_their_own_type():
    chance = np.random.default_rng(0)
    one, other = chance.integers(0, 256, (2, 3, 5, 7), dtype=np.uint8)
    found = blended(one, other, 0.3)
    assert found.dtype == np.uint8
    assert np.abs(found - (0.3 * one.astype(float) + 0.7 * other)).max() <= 0.5 + 1e-4
    assert np.array_equal(blended(one, other, 1.0), one) and np.array_equal(blended(one, other, 0.0), other)
    numbers = blended(one / 255, other / 255, 0.3)
    assert numbers.dtype == np.float64 and np.allclose(numbers, 0.3 * one / 255 + 0.7 * other / 255)


def test_labels_are_shares_of_classes_and_what_is_not_known_stays_unknown():
    assert blended_labels(1, 1, 0.3, 3) == [0.0, 1.0, 0.0]
    assert blended_labels(2, 0, 0.25, 3) == [0.75, 0.0, 0.25]
    mixed = blended_labels([1.0, 0.0, float("nan")], [0.0, 0.0, 1.0], 0.25, 3)
    assert mixed[:2] == [0.25, 0.0] and np.isnan(mixed[2])
    assert blended_labels(2.0, 4.0, 0.25, 0) == 3.5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_mixed_labels_is_that_of_both_by_their_shares(smoothing, weighted):
    torch.manual_seed(0)
    logits, one, other = torch.randn(6, 4), torch.randint(4, (6,)), torch.randint(4, (6,))
    weights = torch.tensor([1.0, 2, 0.5, 3]) if weighted else None
    shares = torch.rand(6).tolist()
    mixed = torch.tensor([blended_labels(int(a), int(b), s, 4) for a, b, s in zip(one, other, shares, strict=True)])
    found = label_loss.single(logits, mixed, weights, 0.0, smoothing)
    expected = sum(
        share * label_loss.single(row, a, weights, 0.0, smoothing)
        + (1 - share) * label_loss.single(row, b, weights, 0.0, smoothing)
        for row, a, b, share in zip(logits.split(1), one.split(1), other.split(1), shares, strict=True)
    )
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_as_a_share_of_one_has_the_loss_of_the_class(smoothing):
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    found = label_loss.single(logits, torch.eye(4)[labels], None, 2.0, smoothing)
    assert torch.allclose(found, label_loss.single(logits, labels, None, 2.0, smoothing), atol=1e-6)
