"""Losses of labels: cross entropy with class weights, label smoothing and the focal factor.

    single       -w_y (1 - p_y)^gamma log p_y                                  [smoothed: y spread over all classes]
    several      sum over labels of the same with a sigmoid each, averaged; NaN is a label that is not known
    numbers      (value - label)^2

Paper: Lin et al. 2017 (arXiv 1708.02002, eq. 5); Szegedy et al. 2016 (arXiv 1512.00567, section 7).
"""

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Label of what counts nothing."""


def single(
    logits_BC: Tensor,
    labels_B: Tensor,
    weights_C: Tensor | None,
    gamma: float,
    smoothing: float,
    ignored: int = IGNORED,
) -> Tensor:
    """Sum over the rows; rows labelled `ignored` count nothing. Labels are classes [B], or shares of them [B, C]."""
    losses = F.cross_entropy(
        logits_BC, labels_B, weights_C, reduction="none", label_smoothing=smoothing, ignore_index=ignored
    )
    if gamma == 0:
        return losses.sum()
    chances = logits_BC.softmax(-1)
    if labels_B.is_floating_point():
        chances = (chances * labels_B).sum(-1)
    else:
        chances = chances.gather(-1, labels_B.clamp_min(0)[:, None])[:, 0]
    return ((1 - chances) ** gamma * losses).sum()


def several(logits_BC: Tensor, labels_BC: Tensor, weights_C: Tensor | None, gamma: float, smoothing: float) -> Tensor:
    """Sum over the rows of the mean over the labels; `weights` are those of a label that is there.

    A label that is not known (NaN) adds nothing: every known one counts the same, whatever its row.
    """
    known_BC = ~labels_BC.isnan()
    labels_BC = labels_BC.nan_to_num()
    wanted = labels_BC * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits_BC, wanted, pos_weight=weights_C, reduction="none")
    if gamma:
        chances = logits_BC.sigmoid()
        losses = (1 - (labels_BC * chances + (1 - labels_BC) * (1 - chances))) ** gamma * losses
    return (losses * known_BC).mean(-1).sum()
