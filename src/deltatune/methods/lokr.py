"""LoKr: the Kronecker product of two small matrices, one of them low-rank.

    y = W x + b + s (W1 (kron) W2) x        s = alpha / r,  W2 whole, or W2a W2b of rank r where that is smaller

Shapes   W [O, I], O = A B, I = C D as evenly as possible, or with A and C of at most `decompose_factor`
         W1 [A, C], or with `decompose_both` W1a [A, R], W1b [R, C]
         W2 [B, D], or W2a [B, R], W2b [R, D]; a convolution has W2 [B, D, *kernel], W2b [R, D k]
Trains   A C + B D, or A C + r (B + D) values per layer
Start    W1 (W1a) = 0, the others uniform in 1 / sqrt(their columns): the output is the base's, exactly
Merge    W + s W1 (kron) W2, exact up to rounding
Note     (W1 (kron) W2) x is W1 X W2^T with x as a matrix X [C, D]: about d^1.5 instead of d^2 multiplications
Paper    Yeh et al. 2023 (LyCORIS), arXiv:2309.14859; Edalati et al. 2022 (KronA), arXiv:2212.10650
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.core.errors import SettingsError
from deltatune.core.method import Can
from deltatune.core.products import ProductAdapter, ProductMethod
from deltatune.core.ranked import kaiming
from deltatune.core.site import Base, LayerSite
from deltatune.ops import kronecker


class LoKr(ProductMethod):
    """Settings of LoKr; names as in peft's `LoKrConfig`."""

    type: ClassVar[str] = "lokr"
    title: ClassVar[str] = "LoKr"
    paper: ClassVar[str] = "Yeh et al. 2023, arXiv:2309.14859"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 5e-3
    peft_type: ClassVar[str | None] = "LOKR"

    decompose_both: bool = False
    """Make W1 low-rank too, where that is smaller."""
    decompose_factor: int = -1
    """Rows and columns of W1, where they divide O and I, or the next smaller divisors; -1: as even as possible."""

    own_fields: ClassVar[tuple[str, ...]] = (*ProductMethod.own_fields, "decompose_both", "decompose_factor")

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for what LoKr is not possible on; a rank may be any, a large one means whole."""
        if self.decompose_factor == 0 or self.decompose_factor < -1:
            raise SettingsError(
                f"decompose_factor={self.decompose_factor} is not allowed for LoKr", hint="-1, 1, 2, ..."
            )
        bounded = self.model_copy(update={"r": 1, "rank_pattern": {}})
        super(LoKr, bounded).check(site)

    def shapes(self, site: LayerSite) -> dict[str, tuple[int, ...]]:
        """Tensors at a site, by peft's names."""
        rank, size = self.rank(site), math.prod(site.kernel)
        (a, b), (c, d) = (kronecker.split(n, self.decompose_factor) for n in (site.out_features, site.in_features))
        if self.decompose_both and rank < max(a, c) / 2:
            left: dict[str, tuple[int, ...]] = {"lokr_w1_a": (a, rank), "lokr_w1_b": (rank, c)}
        else:
            left = {"lokr_w1": (a, c)}
        if rank < max(b, d) / 2:
            return left | {"lokr_w2_a": (b, rank), "lokr_w2_b": (rank, d * size)}
        return left | {"lokr_w2": (b, d, *site.kernel)}

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> "LoKrAdapter":
        """The matrices of one layer."""
        return LoKrAdapter(self, site, rng)

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of the sizes of the small matrices."""
        return sum(math.prod(shape) for site in sites for shape in self.shapes(site).values())


class LoKrAdapter(ProductAdapter):
    """W1 and W2 of one layer, whole or as factors, under peft's names."""

    def __init__(self, method: LoKr, site: LayerSite, rng: torch.Generator) -> None:
        super().__init__(method, site)
        self.kernel = site.kernel
        shapes = method.shapes(site)
        self.left_names = [name for name in shapes if name.startswith("lokr_w1")]
        self.right_names = [name for name in shapes if name.startswith("lokr_w2")]
        for name, shape in shapes.items():
            bound = 0.0 if name == self.left_names[0] else kaiming(*shape)
            self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=rng)))

    def left(self) -> Tensor:
        """s W1 [A, C]."""
        first, *second = (self.get_parameter(name) for name in self.left_names)
        return self.scale * (first @ second[0] if second else first)

    def right(self) -> tuple[Tensor, ...]:
        """W2 [B, D, *kernel], or its factors [B, R] and [R, D, *kernel]."""
        *outer, inner = (self.get_parameter(name) for name in self.right_names)
        return (*outer, inner.view(len(inner), -1, *self.kernel))

    def change(self, x: Tensor, base: Base, dtype: torch.dtype) -> Tensor:
        """W1 X W2^T."""
        left, right = self.left().to(dtype), tuple(factor.to(dtype) for factor in self.right())
        if not self.kernel:
            return kronecker.multiply(x.to(dtype), left, *right)
        rows = x.reshape(len(x) * left.shape[1], -1, *x.shape[2:])  # [N C, D, ...]: W2 on each part of the channels
        h = base.project(rows, right[-1])
        h = base.expand(h, right[0]) if len(right) == 2 else h
        return kronecker.mix(h.view(len(x), -1, *h.shape[1:]), left).flatten(1, 2)

    def matrix(self, shape: torch.Size) -> Tensor:
        """s W1 (kron) W2."""
        *outer, inner = self.right()
        whole = (outer[0] @ inner.flatten(1)).view(-1, *inner.shape[1:]) if outer else inner
        return kronecker.matrix(self.left(), whole).view(shape)
