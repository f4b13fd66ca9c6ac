"""LoHa: the Hadamard product of two low-rank matrices.

    y = W x + b + s ((B1 A1) * (B2 A2)) x        s = alpha / r,  * elementwise

Shapes   W [O, I]   A1, A2 [R, I]   B1, B2 [O, R]; a convolution has A [R, I k], k the size of its kernel
Trains   2 r (I + O) values per layer, for a change of rank up to r^2
Start    A1 ~ U(-1/sqrt(I), 1/sqrt(I)), B1, B2 ~ U(-1/sqrt(r), 1/sqrt(r)), A2 = 0: the output is the base's, exactly
Merge    W + s (B1 A1) * (B2 A2), exact up to rounding
Note     the change is a product of rank r^2 (Khatri-Rao factors) and is applied as one; only where that costs more
         than the matrix itself, r^2 (I + O) >= I O, it is written out
Paper    Hyeon-Woo, Ye-Bin, Oh 2021 (FedPara), arXiv:2108.06098; Yeh et al. 2023 (LyCORIS), arXiv:2309.14859
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.core.low_rank import changed
from deltatune.core.method import Can
from deltatune.core.products import ProductAdapter, ProductMethod
from deltatune.core.ranked import kaiming
from deltatune.core.site import Base, LayerSite
from deltatune.ops import hadamard

NOTHING_DROPPED = nn.Identity()


class LoHa(ProductMethod):
    """Settings of LoHa; names as in peft's `LoHaConfig`."""

    type: ClassVar[str] = "loha"
    title: ClassVar[str] = "LoHa"
    paper: ClassVar[str] = "Hyeon-Woo et al. 2021, arXiv:2108.06098"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 2e-3
    peft_type: ClassVar[str | None] = "LOHA"

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> "LoHaAdapter":
        """Both pairs of factors of one layer."""
        return LoHaAdapter(self, site, rng)

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of 2 r (I k + O), k the size of a kernel."""
        return sum(
            2 * self.rank(site) * (site.in_features * math.prod(site.kernel) + site.out_features) for site in sites
        )


class LoHaAdapter(ProductAdapter):
    """B1, A1, B2, A2 of one layer, under peft's names."""

    def __init__(self, method: LoHa, site: LayerSite, rng: torch.Generator) -> None:
        super().__init__(method, site)
        rank, inputs, outputs = method.rank(site), site.in_features * math.prod(site.kernel), site.out_features
        self.kernel = site.kernel
        self.factored = hadamard.factors_are_cheaper(rank, inputs, outputs)
        self.hada_w1_a = nn.Parameter(uniform(outputs, rank, rng))
        self.hada_w1_b = nn.Parameter(uniform(rank, inputs, rng))
        self.hada_w2_a = nn.Parameter(uniform(outputs, rank, rng))
        self.hada_w2_b = nn.Parameter(torch.zeros(rank, inputs))

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """The base's output plus the change; with factors and without gates as one product of low rank."""
        if self.factored and not self.gated:
            return changed(x, base, self.factors, NOTHING_DROPPED)
        return super().forward(x, base)

    def change(self, x: Tensor, base: Base, dtype: torch.dtype) -> Tensor:
        """s times the factors of rank R^2 on x, or the matrix where that costs less."""
        if not self.factored:
            return base.project(x, self.kernels(self.dense()).to(dtype))
        inner, outer = self.factors(dtype)
        return base.expand(base.project(x, inner), outer)

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The factors of rank R^2, the scale in the outer one."""
        inner = self.kernels(hadamard.inner_factor(self.hada_w1_b, self.hada_w2_b))
        return inner.to(dtype), hadamard.outer_factor(self.hada_w1_a * self.scale, self.hada_w2_a).to(dtype)

    def matrix(self, shape: torch.Size) -> Tensor:
        """s (B1 A1) * (B2 A2)."""
        return self.dense().view(shape)

    def dense(self) -> Tensor:
        """s (B1 A1) * (B2 A2) [O, I k]."""
        return hadamard.matrix(self.hada_w1_a * self.scale, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b)

    def kernels(self, matrix: Tensor) -> Tensor:
        """[*, I k] as [*, I, *kernel]."""
        return matrix.view(len(matrix), -1, *self.kernel)


def uniform(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    """A matrix with the usual uniform start."""
    bound = kaiming(rows, columns)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=rng)
