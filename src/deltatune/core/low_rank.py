"""What every low-rank method shares: settings, initial values, parameter count, peft's names.

Shape legend: O out, I in, R rank, E stacked experts, N adapters.
"""

import math
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.core.method import Method, Pace
from deltatune.core.ranked import RankedMethod, kaiming, read_ranked
from deltatune.core.site import Base, LayerAdapter, LayerSite
from deltatune.ops import low_rank


class LowRankMethod(RankedMethod, ABC):
    """Settings of a method whose change of a layer is s B A; names as in peft's `LoraConfig`."""

    aliases: ClassVar[Mapping[str, str]] = {
        **Method.aliases,
        "rank": "r",
        "lora_r": "r",
        "lora_rank": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
    }
    peft_type: ClassVar[str | None] = "LORA"

    lora_alpha: Annotated[float, Field(gt=0)] = 16
    """Numerator of the scale s."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on what A reads, while training."""
    use_rslora: bool = False
    """s = alpha / sqrt(r) instead of alpha / r."""

    @property
    def numerator(self) -> float:
        """`lora_alpha`."""
        return self.lora_alpha

    def scale(self, site: LayerSite) -> float:
        """s at a site."""
        return self.alpha_at(site) / (math.sqrt(self.rank(site)) if self.use_rslora else self.rank(site))

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Ranks, the scale kept."""
        return self.ranks("lora_alpha", 0.5 if self.use_rslora else 1.0)

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of r (I k + O) over the layers, k the size of a kernel, once per stacked expert."""
        return sum(
            self.rank(site) * (site.in_features * math.prod(site.kernel) + site.out_features) * max(1, site.copies)
            for site in sites
        )

    def pace(self, name: str) -> Pace:
        """B is the factor that LoRA+ trains faster."""
        return Pace(outer=name == "lora_B")

    # -- peft's format

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `LoraConfig` that say something here."""
        layers = [site for site in sites if site.kind != "tensor"]
        return {
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "use_rslora": self.use_rslora,
            "use_dora": False,
            "bias": "none",
            "init_lora_weights": True,
            "fan_in_fan_out": bool(layers) and all(site.kind == "conv1d" for site in layers),
            "target_modules": sorted(site.path for site in layers),
            "target_parameters": sorted(site.path for site in sites if site.kind == "tensor") or None,
            **self.pattern_config(sites),
        }

    def to_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`lora_A.weight`, `lora_B.weight` in peft's shapes."""
        a, b = tensors["lora_A"], tensors["lora_B"]
        if site.kind == "embedding":
            return {"lora_embedding_A": a, "lora_embedding_B": b}
        if site.kind == "conv":
            b = b.view(*b.shape, *(1 for _ in site.kernel))
        if site.copies:  # experts: [E R, I], and [O, R E] with the expert running fastest
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        return {"lora_A.weight": a, "lora_B.weight": b}

    def of_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's."""
        if site.kind == "embedding":
            return {"lora_A": tensors["lora_embedding_A"], "lora_B": tensors["lora_embedding_B"]}
        a, b = tensors["lora_A.weight"], tensors["lora_B.weight"]
        if site.kind == "conv":
            b = b.flatten(1)
        if site.copies:
            rank = self.rank(site)
            a = a.view(site.copies, rank, -1)
            b = b.view(-1, rank, site.copies).permute(2, 0, 1)
        return {"lora_A": a, "lora_B": b}


def changed(
    x: Tensor, base: Base, factors: Callable[[torch.dtype], tuple[Tensor, Tensor]], dropout: nn.Module
) -> Tensor:
    """W x + b + B A drop(x), computed in the base's dtype; `factors` gives A and B, the scale in B.

    In one operation where the layer is a plain linear map and nothing is dropped.
    """
    plain = None if _dropping(dropout) else base.plain(x)
    if plain is not None:
        return low_rank.linear(x, *plain, *factors(plain[0].dtype))
    y = base(x)
    a, b = factors(y.dtype)
    return y + base.expand(base.project(dropout(x), a), b)


def _dropping(dropout: nn.Module) -> bool:
    return dropout.training and isinstance(dropout, nn.Dropout) and dropout.p > 0


class LowRankAdapter(LayerAdapter, ABC):
    """A and B of one layer, with their initial values."""

    def __init__(self, site: LayerSite, rank: int, scale: float, dropout: float, rng: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = nn.Identity() if site.kind == "embedding" else nn.Dropout(dropout)  # token ids are not dropped
        copies = (site.copies,) if site.copies else ()
        a = torch.empty(*copies, rank, site.in_features, *site.kernel)
        if site.kind == "embedding":  # the paper's choice: A = 0, B normal; the start is the base all the same
            self.lora_A = nn.Parameter(a.zero_())
            self.lora_B = nn.Parameter(torch.empty(site.out_features, rank).normal_(generator=rng))
        else:
            bound = kaiming(*a.shape[-2 - len(site.kernel) :])
            self.lora_A = nn.Parameter(a.uniform_(-bound, bound, generator=rng))
            self.lora_B = nn.Parameter(torch.zeros(*copies, site.out_features, rank))

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and s B."""
        return self.lora_A.to(dtype), (self.lora_B * self.scale).to(dtype)


class LowRankChange(LowRankAdapter):
    """y + s B A drop(x) at one layer."""

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """The base's output plus the low-rank term."""
        return changed(x, base, self.factors, self.dropout)

    @classmethod
    def side_by_side(cls, adapters: Sequence[Any], x: Tensor, base: Base) -> Tensor | None:
        """The same for several adapters by batched products; smaller ranks are filled up with zeros."""
        own = cls.forward is not LowRankChange.forward
        plain = None if own or any(_dropping(adapter.dropout) for adapter in adapters) else base.plain(x)
        if plain is None:
            return None
        factors = [adapter.factors(plain[0].dtype) for adapter in adapters]
        rank = max(len(a) for a, _ in factors)
        a_NRI = torch.stack([F.pad(a, (0, 0, 0, rank - len(a))) for a, _ in factors])
        b_NOR = torch.stack([F.pad(b, (0, rank - b.shape[1])) for _, b in factors])
        return low_rank.side_by_side(x, *plain, a_NRI, b_NOR)

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """W + s B A."""
        weight = base.weight
        a, b = self.factors(weight.dtype)
        return weight + low_rank.matrix(b, a, weight.shape), base.bias


LORA_PLAIN: Mapping[str, Callable[[Any], bool]] = {
    "bias": lambda value: value in (None, "none"),
    "lora_bias": lambda value: not value,
    "trainable_token_indices": lambda value: value is None,
    "layer_replication": lambda value: value is None,
    "use_qalora": lambda value: not value,
    "use_bdlora": lambda value: not value,
    "arrow_config": lambda value: value is None,
    "kasa_config": lambda value: value is None,
    "monteclora_config": lambda value: value is None,
    "alora_invocation_tokens": lambda value: value is None,
    "velora_config": lambda value: value is None,
    "init_lora_weights": lambda value: value in (True, False, "gaussian", "eva", "orthogonal", None),
}
"""Fields of `LoraConfig` that select another algorithm, and the values that do not."""


def read_lora_config(cls: type[LowRankMethod], config: Mapping[str, Any]) -> Any:
    """Settings of a LoRA-format file; raises `AdapterError` for variants that need another algorithm."""
    for key, plain in LORA_PLAIN.items():
        if key in config and not plain(config[key]):
            raise AdapterError(f"adapter_config.json: {key}={config[key]!r} is a variant of LoRA that is not supported")
    return cls.parse(read_ranked(config, ("lora_alpha", "lora_dropout", "use_rslora")), "adapter_config.json")
