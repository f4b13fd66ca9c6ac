"""Set loss: what a detector answers against the boxes that are there, each with the one answer that fits it best.

    cost(q, b)   c_class class(q, b) + c_box |box_q - box_b|_1 - c_giou GIoU(box_q, box_b)
    match        the assignment of boxes to answers with the least sum of costs (Hungarian method)
    loss         w_class classes + w_box sum |box_q - box_b|_1 + w_giou sum (1 - GIoU(box_q, box_b))   [sums over pairs]

How classes are learned is the family's, and shows in its output:

    softmax      C + 1 classes, the last is "nothing": cross entropy, weight 0.1 where nothing is        DETR, YOLOS
    focal        C times yes or no: focal loss                                       Deformable and Conditional DETR
    varifocal    the same, but yes means the IoU of the pair: scores order boxes by how well they fit  RT-DETR, D-FINE

An image counts as many times as it has boxes, at least once, so that a batch is the mean over its boxes whatever the
batches are; an image's own loss is the one that `transformers` computes for it alone. Answers of lower layers, where
the output has them, are matched and added alike.

Shapes   B images, Q answers, M boxes at most, C classes; boxes are centre and size in shares of the image
Papers   Carion et al. 2020, arXiv:2005.12872; Zhu et al. 2021, arXiv:2010.04159; Zhang et al. 2021, arXiv:2008.13367
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from deltatune.ops.boxes import corners, overlap

Kind = Literal["softmax", "focal", "varifocal"]
NOTHING = -1
"""Class of the places of a batch where an image has no more boxes."""
NOTHING_WEIGHT = 0.1
ALPHA, VARIFOCAL_ALPHA, GAMMA = 0.25, 0.75, 2.0
"""Of the two focal losses; the cost has alpha 0.25 with both."""
BOX, GIOU = 5.0, 2.0
"""Weights and costs of the two distances, the same in all families."""
CLASS = 2.0
"""Cost of a class told by yes or no, as in the papers; of softmax 1."""
WORST = 1e8
"""Cost of what is not finite: it is matched last."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The boxes of a batch."""

    classes_BM: Tensor
    """Class of every box; `NOTHING` behind the last one."""
    boxes_BM4: Tensor

    @property
    def counts(self) -> list[int]:
        """Boxes of every image."""
        found: list[int] = (self.classes_BM != NOTHING).sum(1).tolist()
        return found

    @property
    def weight(self) -> int:
        """What the batch counts: its boxes, and one for every image without."""
        return sum(max(1, count) for count in self.counts)


def kind_of(output: Mapping[str, Any], classes: int) -> Kind:
    """How a detector's output tells classes, for a task of C classes."""
    if output["logits"].shape[-1] == classes + 1:
        return "softmax"
    return "varifocal" if output.get("enc_topk_logits") is not None else "focal"


def layers(output: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [B, Q, C] and boxes [B, Q, 4] of every layer that answers, the last layer first."""
    yield output["logits"], output["pred_boxes"]
    if output.get("intermediate_logits") is not None:
        lower = zip(
            output["intermediate_logits"].unbind(1), output["intermediate_reference_points"].unbind(1), strict=True
        )
        yield from list(lower)[:-1]
    if output.get("enc_topk_logits") is not None:
        yield output["enc_topk_logits"], output["enc_topk_bboxes"]


def set_loss(output: Mapping[str, Any], wanted: Wanted, classes: int) -> Tensor:
    """Sum over the images, each times its number of boxes: a scalar in float32."""
    kind = kind_of(output, classes)
    losses = [layer_loss(logits.float(), boxes.float(), wanted, kind) for logits, boxes in layers(output)]
    return torch.stack(losses).sum()


def layer_loss(logits_BQC: Tensor, boxes_BQ4: Tensor, wanted: Wanted, kind: Kind) -> Tensor:
    """The loss of one layer's answers, summed as `set_loss` says."""
    image, query, box = matched(logits_BQC, boxes_BQ4, wanted, kind)
    classes_N = wanted.classes_BM[image, box]
    found_N4, wanted_N4 = boxes_BQ4[image, query], wanted.boxes_BM4[image, box]
    iou_N, giou_N = overlap(corners(found_N4), corners(wanted_N4))
    distances = BOX * (found_N4 - wanted_N4).abs().sum() + GIOU * (1 - giou_N).sum()
    if kind == "softmax":
        return distances + _cross_entropy(logits_BQC, image, query, classes_N, wanted.counts)
    yes_BQC = torch.zeros_like(logits_BQC)
    yes_BQC[image, query, classes_N] = 1.0
    if kind == "focal":
        return distances + _focal(logits_BQC, yes_BQC)
    iou_BQC = yes_BQC.index_put((image, query, classes_N), iou_N.detach())
    return distances + _varifocal(logits_BQC, yes_BQC, iou_BQC)


@torch.no_grad()
def matched(logits_BQC: Tensor, boxes_BQ4: Tensor, wanted: Wanted, kind: Kind) -> tuple[Tensor, Tensor, Tensor]:
    """Image, answer and box of every pair [N]; where there are fewer answers than boxes some boxes have none."""
    costs_BQM = costs(logits_BQC, boxes_BQ4, wanted, kind).nan_to_num(nan=WORST, posinf=WORST, neginf=WORST)
    pairs = [
        (image, query, box)
        for image, (cost_QM, count) in enumerate(zip(costs_BQM.cpu().numpy(), wanted.counts, strict=True))
        for query, box in zip(*linear_sum_assignment(cost_QM[:, :count]), strict=True)
    ]
    found_N3 = torch.tensor(pairs, dtype=torch.long, device=logits_BQC.device).reshape(-1, 3)
    return found_N3[:, 0], found_N3[:, 1], found_N3[:, 2]


def costs(logits_BQC: Tensor, boxes_BQ4: Tensor, wanted: Wanted, kind: Kind) -> Tensor:
    """What it costs to give a box to an answer [B, Q, M]."""
    index_BQM = wanted.classes_BM.clamp_min(0)[:, None].expand(-1, logits_BQC.shape[1], -1)
    classes_BQM = _class_costs(logits_BQC, kind).gather(2, index_BQM)
    _, giou_BQM = overlap(corners(boxes_BQ4)[:, :, None], corners(wanted.boxes_BM4)[:, None])
    return classes_BQM + BOX * torch.cdist(boxes_BQ4, wanted.boxes_BM4, p=1) - GIOU * giou_BQM


def _class_costs(logits_BQC: Tensor, kind: Kind) -> Tensor:
    if kind == "softmax":
        return -logits_BQC.softmax(-1)
    yes, no = F.logsigmoid(logits_BQC), F.logsigmoid(-logits_BQC)
    return CLASS * ((1 - ALPHA) * yes.exp() ** GAMMA * no - ALPHA * no.exp() ** GAMMA * yes)


def _cross_entropy(logits_BQC: Tensor, image: Tensor, query: Tensor, classes_N: Tensor, counts: list[int]) -> Tensor:
    """Weighted mean over the answers of an image, times its number of boxes, summed over the images."""
    targets_BQ = logits_BQC.new_full(logits_BQC.shape[:2], logits_BQC.shape[-1] - 1, dtype=torch.long)
    targets_BQ[image, query] = classes_N
    weights_BQ = torch.where(targets_BQ == logits_BQC.shape[-1] - 1, NOTHING_WEIGHT, 1.0)
    losses_BQ = weights_BQ * F.cross_entropy(logits_BQC.transpose(1, 2), targets_BQ, reduction="none")
    times_B = logits_BQC.new_tensor([max(1, count) for count in counts])
    return (losses_BQ.sum(1) / weights_BQ.sum(1) * times_B).sum()


def _focal(logits_BQC: Tensor, yes_BQC: Tensor) -> Tensor:
    missed = (logits_BQC.sigmoid() - yes_BQC).abs()
    weights = torch.where(yes_BQC == 1, ALPHA, 1 - ALPHA) * missed**GAMMA
    return (weights * F.binary_cross_entropy_with_logits(logits_BQC, yes_BQC, reduction="none")).sum()


def _varifocal(logits_BQC: Tensor, yes_BQC: Tensor, iou_BQC: Tensor) -> Tensor:
    """A pair weighs its IoU, everything else alpha p^gamma."""
    weights = torch.where(yes_BQC == 1, iou_BQC, VARIFOCAL_ALPHA * logits_BQC.detach().sigmoid() ** GAMMA)
    return F.binary_cross_entropy_with_logits(logits_BQC, iou_BQC, weights, reduction="sum")
