"""What methods share whose change of a layer is a product of small matrices: settings of LyCORIS, and its dropouts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.ranked import RankedMethod, read_ranked
from deltatune.core.site import Base, LayerAdapter, LayerSite
from deltatune.core.targeted import TargetedMethod


class ProductMethod(RankedMethod, ABC):
    """Settings that LoHa and LoKr share; names as in peft."""

    aliases: ClassVar[Mapping[str, str]] = {**TargetedMethod.aliases, "rank": "r"}

    alpha: Annotated[float, Field(gt=0)] = 8
    """Numerator of the scale s = alpha / r."""
    rank_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the change's outputs that are dropped while training, the same for all tokens of a step."""
    module_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps that pass a layer's change by, while training."""

    @property
    def numerator(self) -> float:
        """`alpha`."""
        return self.alpha

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for what has no matrix of its own, besides what every method of a rank refuses."""
        if site.kind == "embedding" or site.copies:
            raise SettingsError(
                f"{self.title} is for linear maps and convolutions, and {site.path} is neither",
                hint="leave it out, or use lora",
            )
        super().check(site)

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Ranks, the scale kept."""
        return self.ranks("alpha")

    # -- peft's format

    own_fields: ClassVar[tuple[str, ...]] = ("alpha", "rank_dropout", "module_dropout")
    """Fields besides rank and targets, in peft's words too."""

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `LoHaConfig` and `LoKrConfig`."""
        return {
            "r": self.r,
            "target_modules": sorted(site.path for site in sites),
            "init_weights": True,
            "use_effective_conv2d": False,
            **{name: getattr(self, name) for name in self.own_fields},
            **self.pattern_config(sites),
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> Self | None:
        """Settings of a folder of this format; raises `AdapterError` for factored kernels, None for other formats."""
        if config.get("peft_type") != cls.peft_type:
            return None
        if config.get("use_effective_conv2d"):
            raise AdapterError("adapter_config.json: use_effective_conv2d=true is a factored kernel, not supported")
        return cls.parse(read_ranked(config, cls.own_fields), "adapter_config.json")


class ProductAdapter(LayerAdapter, ABC):
    """y + s dW x at one layer, with the dropouts of LyCORIS."""

    def __init__(self, method: ProductMethod, site: LayerSite) -> None:
        super().__init__()
        self.scale = method.scale(site)
        self.rank_dropout, self.module_dropout = method.rank_dropout, method.module_dropout
        self.channels = (-1, *(1 for _ in site.kernel))  # [O] for a matrix, [O, 1, 1] for a convolution

    @abstractmethod
    def change(self, x: Tensor, base: Base, dtype: torch.dtype) -> Tensor:
        """s dW x, computed in this dtype."""

    @abstractmethod
    def matrix(self, shape: torch.Size) -> Tensor:
        """s dW in the shape of the weight, in float32."""

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """The base's output plus the change, in the base's dtype."""
        y = base(x)
        low = self.change(x, base, y.dtype)
        return y + (low * self.gates(low) if self.gated else low)

    @property
    def gated(self) -> bool:
        """Whether something is dropped in this pass."""
        return self.training and bool(self.rank_dropout or self.module_dropout)

    def gates(self, like: Tensor) -> Tensor:
        """Zero for dropped outputs, and for all of them where the layer is passed by; [O] or [O, 1, 1]."""
        outputs = like.shape[-len(self.channels)]
        kept = F.dropout(like.new_ones(outputs), self.rank_dropout).view(self.channels)
        return kept * (torch.rand((), device=like.device) >= self.module_dropout)

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """W + s dW."""
        weight = base.weight
        return weight + self.matrix(weight.shape).to(weight.dtype), base.bias
