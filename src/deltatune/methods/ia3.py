"""(IA)3: scale keys, values and the inside of the feed-forward by learned vectors.

    keys and values   y = l * (W x + b)
    feed-forward      y = W (l * x) + b        x = f(W1 h), or f(W1 h) * (W2 h) in a gated one

Shapes   l [O] at keys and values, [I] at the feed-forward's last matrix
Trains   L (2 D + D_ff) values: 55,296 for BERT-base, 0.05 % of it
Start    l = 1: the output is the base's, exactly
Merge    rows of W and b times l, or columns of W times l: exact up to rounding
Note     weight decay would pull l to zero, where nothing passes: there is none. A fused projection is scaled whole; a
         scale on the queries does what one on the keys does
Paper    Liu et al. 2022, arXiv:2205.05638
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.core.errors import SettingsError
from deltatune.core.method import Can, Pace
from deltatune.core.site import Base, LayerAdapter, LayerSite
from deltatune.core.targeted import TargetedMethod, listed, matches


class IA3(TargetedMethod):
    """Settings of (IA)3; names as in peft's `IA3Config`."""

    type: ClassVar[str] = "ia3"
    title: ClassVar[str] = "(IA)3"
    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 1e-2
    peft_type: ClassVar[str | None] = "IA3"

    target_modules: str | tuple[str, ...] = ("*attention.key", "*attention.value", "mlp.down")
    """Layers to scale; the paper's by default."""
    feedforward_modules: str | tuple[str, ...] = ("mlp.down",)
    """Those of them whose input is scaled instead of their output."""

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for embeddings and convolutions."""
        if site.kind in ("embedding", "conv"):
            raise SettingsError(f"(IA)3 scales linear layers, and {site.path} is none", hint="name others, or use lora")

    def inward(self, site: LayerSite) -> bool:
        """Whether the input of a layer is scaled."""
        return any(site.role == name or matches(site.path, name) for name in listed(self.feedforward_modules))

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> "IA3Adapter":
        """The vector of one layer."""
        return IA3Adapter(site, self.inward(site))

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of O, or I where the input is scaled, once per stacked expert."""
        return sum((s.in_features if self.inward(s) else s.out_features) * max(1, s.copies) for s in sites)

    def pace(self, name: str) -> Pace:
        """No decay."""
        return Pace(decay=False)

    # -- peft's format

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `IA3Config`."""
        return {
            "target_modules": sorted(site.path for site in sites),
            "feedforward_modules": sorted(site.path for site in sites if self.inward(site)),
            "fan_in_fan_out": any(site.kind == "conv1d" for site in sites),
            "init_ia3_weights": True,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "IA3 | None":
        """Settings of an IA3 folder; None for other formats."""
        if config.get("peft_type") != cls.peft_type:
            return None
        fields = {
            key: tuple(listed(config[key]))
            for key in ("target_modules", "feedforward_modules", "exclude_modules", "modules_to_save")
            if config.get(key)
        }
        return cls.parse({"feedforward_modules": (), **fields}, "adapter_config.json")

    def to_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`ia3_l`, a row or a column."""
        scale = tensors["scale"]
        return {"ia3_l": scale.unsqueeze(0) if self.inward(site) else scale.unsqueeze(1)}

    def of_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's."""
        return {"scale": tensors["ia3_l"].flatten()}


class IA3Adapter(LayerAdapter):
    """l at one layer."""

    def __init__(self, site: LayerSite, inward: bool) -> None:
        super().__init__()
        self.inward = inward
        copies = (site.copies,) if site.copies else ()
        self.scale = nn.Parameter(torch.ones(*copies, site.in_features if inward else site.out_features))

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """W (l * x) + b, or l * (W x + b)."""
        if self.inward:
            return base(x * self.scale.to(x.dtype))
        y = base(x)
        return y * self.scale.to(y.dtype)

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """Columns, or rows and bias, times l."""
        weight, bias = base.weight, base.bias
        scale = self.scale.to(weight.dtype)
        if self.inward:
            return weight * scale.unsqueeze(-2), bias
        return weight * scale.unsqueeze(-1), None if bias is None else bias * scale
