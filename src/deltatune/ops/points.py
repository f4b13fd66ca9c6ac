"""Points: farthest points, nearest neighbours, distance of two clouds.

B clouds, N points of C values (the first three are the place), G centres, K neighbours
"""

import torch
from torch import Tensor


@torch.no_grad()
def farthest(points_BNC: Tensor, count: int) -> Tensor:
    """Indices of points far from each other [B, count]; the first one is farthest from the mean, ties go to the front.

    Every next one is farthest from those before (Qi et al. 2017, arXiv:1706.02413). Once all are taken, the first
    point comes again.

    >>> farthest(torch.tensor([[[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [8, 0, 0]]]), 3)
    tensor([[2, 0, 3]])
    """
    places = points_BNC[..., :3].float()
    chosen = [(places - places.mean(1, keepdim=True)).square().sum(-1).argmax(1)]
    nearest = torch.full_like(places[..., 0], torch.inf)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (places - at(places, chosen[-1][:, None])).square().sum(-1))
        chosen.append(nearest.argmax(1))
    return torch.stack(chosen, 1)


@torch.no_grad()
def neighbours(points_BNC: Tensor, centres_BGC: Tensor, count: int) -> Tensor:
    """Indices of the points nearest to every centre, the nearest first [B, G, count].

    >>> neighbours(torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]]), torch.tensor([[[2.6, 0, 0]]]), 2)
    tensor([[[2, 1]]])
    """
    mode = "donot_use_mm_for_euclid_dist"  # products of matrices lose digits of small distances
    distances = torch.cdist(centres_BGC[..., :3].float(), points_BNC[..., :3].float(), compute_mode=mode)
    return distances.topk(count, largest=False, sorted=True).indices


def at(points_BNC: Tensor, indices_BI: Tensor) -> Tensor:
    """The points of these indices [B, ..., C], for indices [B, ...]."""
    flat = indices_BI.flatten(1)[..., None].expand(-1, -1, points_BNC.shape[-1])
    return points_BNC.gather(1, flat).view(*indices_BI.shape, -1)


def chamfer(one_BNC: Tensor, other_BMC: Tensor) -> Tensor:
    """Mean squared distance of every point to the nearest one of the other cloud, both ways added [B].

    Fan et al. 2017, arXiv:1612.00603.

    >>> chamfer(torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[0.0]]]))
    tensor([2.])
    """
    distances_BNM = (one_BNC[:, :, None] - other_BMC[:, None]).square().sum(-1)
    return distances_BNM.amin(2).mean(1) + distances_BNM.amin(1).mean(1)
