"""What sparse changes of weights share: which layers, how many entries, the module, the file.

Shape legend: O out, I in, K changed entries.
"""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import SettingsError
from deltatune.core.method import Can, Pace
from deltatune.core.site import Base, LayerAdapter, LayerSite
from deltatune.core.targeted import TargetedMethod
from deltatune.ops import sampled


class SparseMethod(TargetedMethod, ABC):
    """Settings of a method that changes a few entries of each weight."""

    can: ClassVar[Can] = Can(merge=True)

    density: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the entries of each weight."""
    r: Annotated[int, Field(ge=1)] | None = None
    """As many entries as LoRA of this rank would train, r (I + O); instead of `density`."""

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Shares of the entries."""
        return [{"density": density, "r": None} for density in (0.001, 0.003, 0.01, 0.03)]

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for what is no matrix of its own, or has fewer entries than asked for."""
        if site.kind not in ("linear", "conv1d"):
            raise SettingsError(
                f"{self.type} is for linear layers, and {site.path} is none", hint="name others, or use lora"
            )
        if not 1 <= self.number(site) <= site.in_features * site.out_features:
            raise SettingsError(
                f"{self.type}: {self.number(site)} entries of {site.path}, which has "
                f"{site.in_features * site.out_features}",
                hint="change density",
            )

    def number(self, site: LayerSite) -> int:
        """K at a layer."""
        if self.r is not None:
            return self.r * (site.in_features + site.out_features)
        return max(1, round(self.density * site.in_features * site.out_features))

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of K."""
        return sum(self.number(site) for site in sites)

    def pace(self, name: str) -> Pace:
        """A vector: no decay."""
        return Pace(decay=False)


class SparseChange(LayerAdapter):
    """Values [K] at flat positions [K], in rising order, of one weight [O, I]."""

    def __init__(self, indices: Tensor, values: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("indices", indices)
        self.values = nn.Parameter(torch.zeros(len(indices)) if values is None else values)

    def positions(self) -> Tensor:
        """The flat positions, as torch indexes with them."""
        return self.get_buffer("indices").long()

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """x (W + S)^T + b."""
        y = sampled.linear(x, base.weight, self.positions(), self.values, self.watcher())
        return y if base.bias is None else y + base.bias

    def watcher(self) -> Any:
        """Who wants to see the dense gradient in backward; nobody."""
        return None

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """W + S."""
        return sampled.composed(base.weight, self.positions(), self.values), base.bias


def alone(method: str) -> None:
    """Raises `SettingsError` with several processes, for a method whose choice depends on what one process sees."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise SettingsError(f"{method} chooses entries in one process", hint="train on one device, or use sparse")


def flat_dtype(entries: int) -> torch.dtype:
    """The integer type that holds positions in a weight of so many entries."""
    return torch.int32 if entries < 2**31 else torch.int64


def drawn(entries: int, number: int, rng: torch.Generator) -> Tensor:
    """Distinct positions in rising order, by a generator."""
    return torch.randperm(entries, generator=rng)[:number].sort().values.to(flat_dtype(entries))
