"""One change of a weight from several: sums, with conflicts and redundancy taken out first or not.

linear        sum_i w_i d_i
ties          d_i trimmed to its largest entries; per entry the sign of sum_i w_i d_i is elected, and the w_i d_i of
              that sign are averaged                                          (Yadav et al. 2023, arXiv:2306.01708)
dare_linear   entries of d_i dropped at random, the others divided by the density; then the sum
                                                                                (Yu et al. 2023, arXiv:2311.03099)
dare_ties     the same dropping, then elected and averaged
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def linear(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum."""
    return torch.stack([delta * weight for delta, weight in zip(deltas, weights, strict=True)]).sum(0)


def elected(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of the weighted entries that have the sign of their sum; zeros have no vote."""
    weighted = torch.stack([delta * weight for delta, weight in zip(deltas, weights, strict=True)])
    agree = weighted.sign() == torch.where(weighted.sum(0) >= 0, 1, -1)
    return (weighted * agree).sum(0) / agree.sum(0).clamp_min(1)


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The largest entries in size, a share `density` of them; the others zero."""
    keep = delta.abs().flatten().topk(int(density * delta.numel())).indices
    mask = torch.zeros(delta.numel(), dtype=torch.bool, device=delta.device)
    mask[keep] = True
    return delta * mask.view(delta.shape)


def dropped(delta: Tensor, density: float, rng: torch.Generator) -> Tensor:
    """Each entry kept with probability `density` and divided by it; `rng` is a generator of the CPU."""
    mask = torch.empty(delta.shape).bernoulli_(density, generator=rng)
    return delta * mask.to(delta) / density
