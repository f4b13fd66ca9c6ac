"""Bottleneck adapters at the Houlsby, Pfeiffer and parallel places.

    h' = h + s (W_up f(W_down x + b_down) + b_up)

    houlsby    x = h, the output of the sublayer, behind attention and behind the feed-forward
    pfeiffer   x = norm(h + residual), behind the feed-forward; the block's norm follows once more
    parallel   x = the input of the sublayer, beside the feed-forward

Shapes   W_down [M, D]   W_up [D, M]   M = D / reduction_factor
Trains   2 M D + M + D values per place; with `train_layernorm` the norms too
Start    W_down uniform, W_up = 0, b = 0: the output is the base's, exactly
Merge    no: f stands between the matrices
Paper    Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247; parallel: He et al. 2021,
         arXiv:2110.04366; leave_out: Rueckle et al. 2020, arXiv:2010.11918
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltatune.core.bottleneck import BottleneckMethod, ResidualAdapter, kaiming
from deltatune.core.method import Can
from deltatune.core.site import Stream, SublayerSite


class BottleneckAdapter(BottleneckMethod):
    """Settings of bottleneck adapters; names as in AdapterHub's `BnConfig`."""

    type: ClassVar[str] = "adapter"
    title: ClassVar[str] = "Bottleneck adapters"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    can: ClassVar[Can] = Can()
    learning_rate: ClassVar[float] = 1e-3

    scaling: float | Literal["learned"] = 1.0
    """s; `learned` starts at 1. He et al. take 4 for the parallel place (2 for classification)."""
    use_gating: bool = False
    """Scale the change of every token by sigmoid(w x), so that it can be switched off (UniPELT)."""
    ln_after: bool = False
    """A norm of the adapter's own on its change."""

    def build_sublayer(self, site: SublayerSite, shared: None, rng: torch.Generator) -> "Bottleneck":
        """The bottleneck of one sublayer."""
        return Bottleneck(self, site.width, self.size(site), rng)

    def count_sublayers(self, sites: Sequence[SublayerSite]) -> int:
        """The sum of 2 M D + M + D, and of the scale, the gate and the norm where they are used."""
        return sum(
            2 * self.size(site) * site.width
            + self.size(site)
            + site.width
            + (self.scaling == "learned")
            + (site.width if self.use_gating else 0)
            + (2 * site.width if self.ln_after else 0)
            for site in sites
        )


class Bottleneck(ResidualAdapter):
    """Down, non-linearity, up, at one sublayer."""

    def __init__(self, method: BottleneckAdapter, width: int, size: int, rng: torch.Generator) -> None:
        super().__init__(method)
        self.down_weight, self.down_bias = kaiming(size, width, rng=rng), nn.Parameter(torch.zeros(size))
        self.up_weight, self.up_bias = nn.Parameter(torch.zeros(width, size)), nn.Parameter(torch.zeros(width))
        self.scaling = nn.Parameter(torch.ones(1)) if method.scaling == "learned" else method.scaling
        self.gate = nn.Parameter(torch.zeros(width)) if method.use_gating else None
        self.norm = nn.LayerNorm(width) if method.ln_after else None

    def change(self, x: Tensor, stream: Stream) -> Tensor:
        """s (W_up f(W_down x + b_down) + b_up), in the dtype of x."""
        u = self.activation(F.linear(x, self.down_weight.to(x.dtype), self.down_bias.to(x.dtype)))
        change = F.linear(u, self.up_weight.to(x.dtype), self.up_bias.to(x.dtype))
        if self.norm is not None:
            change = F.layer_norm(change, change.shape[-1:], self.norm.weight.to(x.dtype), self.norm.bias.to(x.dtype))
        if self.gate is not None:
            change = change * torch.sigmoid(x @ self.gate.to(x.dtype)).unsqueeze(-1)
        return change if self.scaling == 1.0 else change * self.scaling
