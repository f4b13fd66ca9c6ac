"""DoRA: weight-decomposed low-rank adaptation.

    W' = m * (W + s B A) / ||W + s B A||        one norm per output
    y  = m / ||W + s B A|| * (W x + s B A drop(x)) + b

Shapes   W [O, I]   A [R, I]   B [O, R]   m [O]
Trains   r (I + O) + O values per layer
Start    A uniform, B = 0, m = ||W||: the output is the base's up to rounding
Merge    W', exact up to rounding
Note     the norm is not differentiated (paper, section 4.3); it is computed from products of size r, W + s B A is
         never built while training
Paper    Liu et al. 2024, arXiv:2402.09353
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.core.low_rank import LowRankAdapter, LowRankMethod, changed, read_lora_config
from deltatune.core.method import Can
from deltatune.core.site import Base, LayerSite
from deltatune.ops import low_rank
from deltatune.ops.rescaled import rescaled


class DoRA(LowRankMethod):
    """Settings of DoRA; names as in peft's `LoraConfig`."""

    type: ClassVar[str] = "dora"
    title: ClassVar[str] = "DoRA"
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    can: ClassVar[Can] = Can(merge=True, identity=1e-5)
    learning_rate: ClassVar[float] = 1e-3

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> "DoRAAdapter":
        """A, B and the magnitudes of one layer."""
        return DoRAAdapter(site, self.rank(site), self.scale(site), self.lora_dropout, rng, origin())

    def count(self, sites: Sequence[Any]) -> int:
        """LoRA's count plus one magnitude per output."""
        magnitudes: int = sum(site.out_features * max(1, site.copies) for site in sites)
        return super().count(sites) + magnitudes

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "DoRA | None":
        """Settings of a LoRA folder with `use_dora`; None for others."""
        if config.get("peft_type") != cls.peft_type or not config.get("use_dora"):
            return None
        settings: DoRA = read_lora_config(cls, config)
        return settings

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """LoRA's keys with `use_dora`."""
        return {**super().peft_config(sites), "use_dora": True}

    def to_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """LoRA's names and `lora_magnitude_vector`."""
        m = tensors["magnitude"]
        if site.kind == "conv":
            m = m.view(1, -1, *(1 for _ in site.kernel))
        return {**super().to_peft(site, tensors), "lora_magnitude_vector": m}

    def of_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's."""
        return {**super().of_peft(site, tensors), "magnitude": tensors["lora_magnitude_vector"].flatten()}


class DoRAAdapter(LowRankAdapter):
    """Magnitude times direction at one layer."""

    def __init__(
        self, site: LayerSite, rank: int, scale: float, dropout: float, rng: torch.Generator, weight: Tensor
    ) -> None:
        super().__init__(site, rank, scale, dropout, rng)
        flat = weight if site.copies else weight.flatten(1)
        self.magnitude = nn.Parameter(flat.detach().float().norm(dim=-1).to(self.lora_A.device))

    def ratio(self, weight: Tensor) -> Tensor:
        """m / ||W + s B A||, [O] or [E, O], in float32; only m takes a gradient."""
        with torch.no_grad():
            norm = low_rank.row_norm(weight.float(), self.lora_B.float(), self.lora_A.float(), self.scale)
        return self.magnitude / norm

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """ratio * (W x + s B A x) + b."""
        y = changed(x, base, self.factors, self.dropout)
        channels = (-1, *(1 for _ in range(self.lora_A.dim() - 2)))  # [O] for a matrix, [O, 1, 1] for a convolution
        ratio = self.ratio(base.weight).to(y.dtype).view(channels)
        return rescaled(y, ratio, None if base.bias is None else base.bias.view(channels).to(y.dtype))

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """m * (W + s B A) / ||W + s B A||, with the bias as it is."""
        weight = base.weight
        a, b = self.factors(weight.dtype)
        ratio = self.ratio(weight).to(weight.dtype)
        ratio = ratio.view(*ratio.shape, *(1 for _ in range(weight.dim() - ratio.dim())))
        return ratio * (weight + low_rank.matrix(b, a, weight.shape)), base.bias
