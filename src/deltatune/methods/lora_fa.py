"""LoRA-FA: LoRA with A frozen.

    y = W x + b + s B A drop(x)        only B is trained

Shapes   A [R, I], random and frozen   B [O, R]
Trains   r O values per layer
Start    A ~ U(-1/sqrt(I), 1/sqrt(I)), B = 0: the output is the base's, exactly
Merge    W + s B A, exact up to rounding
Note     backward keeps A x, of size R, where LoRA keeps x, of size I
Paper    Zhang et al. 2023, arXiv:2308.03303
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltatune.core.low_rank import LowRankChange, LowRankMethod
from deltatune.core.method import Can
from deltatune.core.site import LayerSite


class LoRAFA(LowRankMethod):
    """Settings of LoRA-FA; names as in peft's `LoraConfig`. Its files are LoRA's."""

    type: ClassVar[str] = "lora-fa"
    title: ClassVar[str] = "LoRA-FA"
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2308.03303"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 2e-3

    def build(
        self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator
    ) -> "FrozenProjection":
        """A, frozen, and B of one layer."""
        return FrozenProjection(site, self.rank(site), self.scale(site), self.lora_dropout, rng)

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of r O over the layers; at an embedding, where B is the random one, of r I."""
        return sum(
            self.rank(site)
            * (site.in_features if site.kind == "embedding" else site.out_features)
            * max(1, site.copies)
            for site in sites
        )


class FrozenProjection(LowRankChange):
    """The factor that starts at random is a buffer."""

    def __init__(self, site: LayerSite, rank: int, scale: float, dropout: float, rng: torch.Generator) -> None:
        super().__init__(site, rank, scale, dropout, rng)
        name = "lora_B" if site.kind == "embedding" else "lora_A"
        frozen = self.get_parameter(name).data
        delattr(self, name)
        self.register_buffer(name, frozen)
