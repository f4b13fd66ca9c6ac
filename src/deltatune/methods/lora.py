"""LoRA: low-rank adaptation.

    y = W x + b + s B A drop(x)        s = alpha / r, or alpha / sqrt(r) with use_rslora

Shapes   W [O, I]   A [R, I]   B [O, R]; a convolution has A [R, I, *kernel], stacked experts [E, R, I] and [E, O, R]
Trains   r (I + O) values per layer
Start    A ~ U(-1/sqrt(I), 1/sqrt(I)), B = 0: the output is the base's, exactly
Merge    W + s B A, exact up to rounding
Paper    Hu et al. 2021, arXiv:2106.09685; scaling by sqrt(r): Kalajdzievski 2023, arXiv:2312.03732
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltatune.core.low_rank import LowRankChange, LowRankMethod, read_lora_config
from deltatune.core.method import Can
from deltatune.core.site import LayerSite


class LoRA(LowRankMethod):
    """Settings of LoRA; names as in peft's `LoraConfig`."""

    type: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 1e-3

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> LowRankChange:
        """A and B for one layer."""
        return LowRankChange(site, self.rank(site), self.scale(site), self.lora_dropout, rng)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "LoRA | None":
        """Settings of a LoRA folder; None for DoRA and other formats."""
        if config.get("peft_type") != cls.peft_type or config.get("use_dora"):
            return None
        settings: LoRA = read_lora_config(cls, config)
        return settings
