"""Losses of labels against sums that are written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from deltatune.core.label_loss import IGNORED, several, single

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -3.0]])


def chance(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_several_labels_are_so_many_yes_or_no_questions(gamma, smoothing):
    labels = torch.tensor([[1.0, 0.0, float("nan")], [0.0, 1.0, 1.0]])
    weights = torch.tensor([1.0, 3.0, 0.5])
    wanted = 0.0
    for row in range(2):
        for column in range(3):
            label, p = float(labels[row, column]), chance(float(LOGITS[row, column]))
            if math.isnan(label):
                continue
            target = label * (1 - smoothing) + smoothing / 2
            loss = -(float(weights[column]) * target * math.log(p) + (1 - target) * math.log(1 - p))
            wanted += (1 - (p if label else 1 - p)) ** gamma * loss / 3
    assert float(several(LOGITS, labels, weights, gamma, smoothing)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_one_label_of_several_is_its_cross_entropy_and_hard_rows_weigh_more(gamma):
    labels = torch.tensor([0, IGNORED])
    p = float(LOGITS.softmax(-1)[0, 0])
    wanted = (1 - p) ** gamma * -math.log(p)
    assert float(single(LOGITS, labels, None, gamma, 0.0)) == pytest.approx(wanted, rel=1e-5)
    shares = F.one_hot(torch.tensor([0, 1]), 3).float()
    whole = single(LOGITS, torch.tensor([0, 1]), None, gamma, 0.0)
    assert torch.allclose(single(LOGITS, shares, None, gamma, 0.0), whole)
