"""VeRA: vectors on random matrices that all layers share.

    y = W x + b + diag(l_b) B diag(l_d) A drop(x)        only l_b, l_d are trained

Shapes   A [R, max I], B [max O, R], one pair for all layers, each layer taking its first columns and rows
         l_d [R]   l_b [O]
Trains   O + R values per layer
Start    A, B Kaiming uniform from a seed, l_d = 0.1, l_b = 0: the output is the base's, exactly
Merge    W + diag(l_b) B diag(l_d) A, exact up to rounding
Note     the vectors scale B, of size O x R, never what passes through it: a step keeps A x, of size R, for backward
Paper    Kopiczko et al. 2023, arXiv:2310.11454
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import SettingsError
from deltatune.core.low_rank import changed
from deltatune.core.method import Can, Pace
from deltatune.core.site import Base, LayerAdapter, LayerSite, Shared
from deltatune.core.targeted import TargetedMethod, listed

ROOT = "base_model."


class VeRA(TargetedMethod):
    """Settings of VeRA; names as in peft's `VeraConfig`."""

    aliases: ClassVar[Mapping[str, str]] = {**TargetedMethod.aliases, "rank": "r", "dropout": "vera_dropout"}

    type: ClassVar[str] = "vera"
    title: ClassVar[str] = "VeRA"
    paper: ClassVar[str] = "Kopiczko et al. 2023, arXiv:2310.11454"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 2e-2
    peft_type: ClassVar[str | None] = "VERA"

    r: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Rank; it costs one trained value per layer and may exceed the width."""
    projection_prng_key: int = 0
    """Seed of A and B."""
    save_projection: bool = True
    """Keep A and B in the file; without them they are drawn again from the seed."""
    vera_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on what A reads, while training."""
    d_initial: float = 0.1
    """l_d at the start."""

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Ranks."""
        return [{"r": r} for r in (64, 128, 256, 512, 1024)]

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for what is no matrix of its own."""
        if site.kind not in ("linear", "conv1d"):
            raise SettingsError(f"VeRA is for linear layers, and {site.path} is none", hint="name others, or use lora")

    def share(self, sites: Sequence[Any], rng: torch.Generator) -> "Projection":
        """A and B for the largest layer."""
        return Projection(self, max(s.in_features for s in sites), max(s.out_features for s in sites))

    def build(
        self, site: LayerSite, origin: Callable[[], Tensor], shared: "Projection", rng: torch.Generator
    ) -> "VeRAAdapter":
        """The vectors of one layer."""
        return VeRAAdapter(self, site, shared)

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of O + r."""
        return sum(site.out_features + self.r for site in sites)

    def pace(self, name: str) -> Pace:
        """No decay: l_d has no reason to be zero."""
        return Pace(decay=False)

    # -- peft's format

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `VeraConfig`."""
        return {
            "r": self.r,
            "target_modules": sorted(site.path for site in sites),
            "projection_prng_key": self.projection_prng_key,
            "save_projection": self.save_projection,
            "vera_dropout": self.vera_dropout,
            "d_initial": self.d_initial,
            "fan_in_fan_out": any(site.kind == "conv1d" for site in sites),
            "bias": "none",
            "init_weights": True,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "VeRA | None":
        """Settings of a VERA folder; None for other formats."""
        if config.get("peft_type") != cls.peft_type:
            return None
        plain = ("r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial")
        fields = {key: config[key] for key in plain if config.get(key) is not None}
        lists = {
            key: tuple(listed(config[key]))
            for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform")
            if config.get(key)
        }
        return cls.parse({**fields, **lists}, "adapter_config.json")

    def to_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The vectors by layer, the projection once."""
        found = {
            f"{ROOT}model.{site.path}.vera_{name}": tensors[f"{site.path}.{name}"]
            for site in sites
            for name in ("lambda_b", "lambda_d")
        }
        return found | {f"{ROOT}{name}": tensors[f"shared.{name}"] for name in self._kept()}

    def of_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's."""
        found = {
            f"{site.path}.{name}": tensors[f"{ROOT}model.{site.path}.vera_{name}"]
            for site in sites
            for name in ("lambda_b", "lambda_d")
        }
        return found | {f"shared.{name}": tensors[f"{ROOT}{name}"] for name in self._kept()}

    def _kept(self) -> tuple[str, ...]:
        return ("vera_A", "vera_B") if self.save_projection else ()


class Projection(Shared):
    """A and B."""

    def __init__(self, method: VeRA, inputs: int, outputs: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(method.projection_prng_key)  # A, then B, as peft draws them
        for name, shape in (("vera_A", (method.r, inputs)), ("vera_B", (outputs, method.r))):
            bound = math.sqrt(6 / shape[1])
            drawn = torch.empty(shape).uniform_(-bound, bound, generator=rng)
            self.register_buffer(name, drawn, persistent=method.save_projection)


class VeRAAdapter(LayerAdapter):
    """l_b and l_d of one layer."""

    def __init__(self, method: VeRA, site: LayerSite, shared: Projection) -> None:
        super().__init__()
        self.shared = shared
        self.inputs, self.outputs = site.in_features, site.out_features
        self.lambda_d = nn.Parameter(torch.full((method.r,), method.d_initial))
        self.lambda_b = nn.Parameter(torch.zeros(site.out_features))
        self.dropout = nn.Dropout(method.vera_dropout)

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A [R, I] and diag(l_b) B diag(l_d) [O, R]."""
        a_RI = self.shared.get_buffer("vera_A")[:, : self.inputs]
        b_OR = self.shared.get_buffer("vera_B")[: self.outputs]
        return a_RI.to(dtype), (self.lambda_b.unsqueeze(1) * b_OR * self.lambda_d).to(dtype)

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """The base's output plus the scaled random product."""
        return changed(x, base, self.factors, self.dropout)

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """W + diag(l_b) B diag(l_d) A."""
        weight = base.weight
        a, b = self.factors(weight.dtype)
        return weight + b @ a, base.bias
