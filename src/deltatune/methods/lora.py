"""LoRA: low-rank adaptation.

    y = W x + b + s B A drop(x)        s = alpha / r, or alpha / sqrt(r) with use_rslora

Shapes   W [O, I]   A [R, I]   B [O, R]; a convolution has A [R, I, *kernel], stacked experts [E, R, I] and [E, O, R]
Trains   r (I + O) values per layer
Start    A ~ U(-1/sqrt(I), 1/sqrt(I)), B = 0: the output is the base's, exactly
Merge    W + s B A, exact up to rounding
Gate     with use_gating the term is scaled by sigmoid(w x), per token; it cannot be merged then
Paper    Hu et al. 2021, arXiv:2106.09685; scaling by sqrt(r): Kalajdzievski 2023, arXiv:2312.03732; gate: UniPELT,
         Mao et al. 2021, arXiv:2110.07577
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.low_rank import LowRankChange, LowRankMethod, read_lora_config
from deltatune.core.method import Can
from deltatune.core.site import Base, LayerSite


class LoRA(LowRankMethod):
    """Settings of LoRA; names as in peft's `LoraConfig`."""

    type: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 1e-3

    use_gating: bool = False
    """Scale the term of every token by sigmoid(w x), so that it can be switched off."""

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for a rank that does not fit, and for a gate on what is no linear layer."""
        super().check(site)
        if self.use_gating and site.kind not in ("linear", "conv1d"):
            raise SettingsError(f"use_gating is for linear layers, and {site.path} is none", hint="leave it out")

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> LowRankChange:
        """A and B for one layer."""
        kind = GatedChange if self.use_gating else LowRankChange
        return kind(site, self.rank(site), self.scale(site), self.lora_dropout, rng)

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of r (I + O), and of I for the gates."""
        return super().count(sites) + (sum(site.in_features for site in sites) if self.use_gating else 0)

    def for_peft(self, sites: Sequence[Any]) -> bool:
        """Without a gate, which peft has not."""
        return not self.use_gating

    def to_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`lora_A.weight`, `lora_B.weight` in peft's shapes."""
        return dict(tensors) if self.use_gating else super().to_peft(site, tensors)

    def of_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's."""
        return dict(tensors) if self.use_gating else super().of_peft(site, tensors)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "LoRA | None":
        """Settings of a LoRA folder; None for DoRA and other formats."""
        if config.get("peft_type") != cls.peft_type or config.get("use_dora"):
            return None
        settings: LoRA = read_lora_config(cls, config)
        return settings


class GatedChange(LowRankChange):
    """y + sigmoid(w x) s B A drop(x) at one layer."""

    def __init__(self, site: LayerSite, rank: int, scale: float, dropout: float, rng: torch.Generator) -> None:
        super().__init__(site, rank, scale, dropout, rng)
        self.gate = nn.Parameter(torch.zeros(site.in_features))

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """The base's output plus the gated term."""
        y = base(x)
        a, b = self.factors(y.dtype)
        gate = torch.sigmoid(x @ self.gate.to(x.dtype)).unsqueeze(-1)
        return y + gate * base.expand(base.project(self.dropout(x), a), b)

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """Not possible: the gate depends on the input."""
        raise AdapterError("a LoRA with gates cannot be merged into the base", hint="serve it as an adapter")
