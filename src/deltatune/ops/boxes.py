"""Boxes: corners and centres, overlap of pairs, the best of those that overlap.

    IoU(a, b)    |a & b| / |a | b|
    GIoU(a, b)   IoU - (|hull| - |a | b|) / |hull|            in (-1, 1]; the hull is the smallest box around both

Shapes   corners [..., 4] are x0, y0, x1, y1; centres [..., 4] are centre x, centre y, width, height
Paper    Rezatofighi et al. 2019, arXiv:1902.09630
"""

import torch
from torch import Tensor


def corners(centres: Tensor) -> Tensor:
    """Corners of boxes that are given by centre and size.

    >>> corners(torch.tensor([0.5, 0.5, 0.2, 1.0])).tolist()
    [0.4000000059604645, 0.0, 0.6000000238418579, 1.0]
    """
    centre, size = centres[..., :2], centres[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def centres(corners: Tensor) -> Tensor:
    """Centre and size of boxes that are given by their corners.

    >>> centres(torch.tensor([0.0, 2.0, 4.0, 4.0])).tolist()
    [2.0, 3.0, 4.0, 2.0]
    """
    low, high = corners[..., :2], corners[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def area(corners: Tensor) -> Tensor:
    """Areas [...]; 0 for a box whose corners are swapped."""
    return (corners[..., 2:] - corners[..., :2]).clamp_min(0).prod(-1)


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of corners that broadcast; 0 and GIoU's own value where both are empty.

    >>> iou, giou = overlap(torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 0, 3, 2]))
    >>> round(iou.item(), 4), round(giou.item(), 4)
    (0.3333, 0.3333)
    """
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    union = area(a) + area(b) - shared
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    tiny = torch.finfo(union.dtype).tiny
    iou = shared / union.clamp_min(tiny)
    return iou, iou - (hull - union) / hull.clamp_min(tiny)


def surest(corners_N4: Tensor, groups_N: Tensor, most: float) -> Tensor:
    """Which boxes stay when each takes away the less sure ones of its group that overlap it by an IoU above `most`.

    Corners [N, 4] with the surest box first; truth values [N]. A box that was taken away takes none away (greedy
    non-maximum suppression).

    >>> boxes = torch.tensor([[0.0, 0, 4, 4], [1, 0, 5, 4], [2, 0, 6, 4], [0, 0, 4, 4]])
    >>> surest(boxes, torch.tensor([0, 0, 0, 1]), most=0.5).tolist()
    [True, False, True, True]
    """
    iou_NN, _ = overlap(corners_N4[:, None], corners_N4[None])
    rivals_NN = ((iou_NN > most) & (groups_N[:, None] == groups_N)).triu(1)
    kept_N = torch.ones(len(corners_N4), dtype=torch.bool, device=corners_N4.device)
    for place, rivals_N in enumerate(rivals_NN):
        kept_N &= ~(rivals_N & kept_N[place])
    return kept_N
