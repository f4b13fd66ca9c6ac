"""Compacter: bottleneck adapters whose matrices are sums of Kronecker products with shared rules.

    h' = h + (f(x W_down + b_down) W_up + b_up)        W = sum_i A_i (kron) (s_i t_i),  i = 1..n

Shapes   A [n, n, n], one for the whole model   s [n, I/n, r]   t [n, r, O/n]; I, O are D and M or M and D
Trains   2 r (D + M) + D + M values per place and n^3 once; with `train_layernorm` the norms too, as in the paper
Start    s, t Glorot uniform, A ~ N(0, 1e-4) downwards; the upward rule of every product is the same small A: the output
         is the base's up to about 1e-6
Merge    no: f stands between the matrices
Note     x W is three products with the factors; W is never built. Compacter++ is `sublayers: [mlp]`
Paper    Karimi Mahabadi et al. 2021, arXiv:2106.04647
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.bottleneck import BottleneckMethod, NonLinearity, ResidualAdapter
from deltatune.core.errors import SettingsError
from deltatune.core.method import Can
from deltatune.core.site import Shared, Stream, SublayerSite
from deltatune.ops import hypercomplex


class Compacter(BottleneckMethod):
    """Settings of Compacter; names as in AdapterHub's `CompacterConfig`."""

    type: ClassVar[str] = "compacter"
    title: ClassVar[str] = "Compacter"
    paper: ClassVar[str] = "Karimi Mahabadi et al. 2021, arXiv:2106.04647"
    can: ClassVar[Can] = Can(identity=1e-5)
    learning_rate: ClassVar[float] = 1e-2

    reduction_factor: Annotated[float, Field(gt=0)] = 32
    """D / M, when `bottleneck_size` is not given; M is rounded up to a multiple of `phm_dim`."""
    non_linearity: NonLinearity = "gelu_new"
    """f."""
    phm_dim: Annotated[int, Field(ge=1, le=64)] = 4
    """n."""
    phm_rank: Annotated[int, Field(ge=1)] = 1
    """r."""
    phm_init_range: Annotated[float, Field(gt=0)] = 1e-4
    """Standard deviation of A at the start."""

    def size(self, site: SublayerSite) -> int:
        """M, a multiple of n; raises `SettingsError` when n does not divide the width."""
        if site.width % self.phm_dim:
            fitting = [n for n in (2, 3, 4, 8) if site.width % n == 0]
            raise SettingsError(
                f"phm_dim={self.phm_dim} does not divide the width {site.width} of {site.path}",
                hint=f"try phm_dim={fitting[-1] if fitting else 1}",
            )
        if self.bottleneck_size is not None and self.bottleneck_size % self.phm_dim:
            raise SettingsError(f"phm_dim={self.phm_dim} does not divide bottleneck_size={self.bottleneck_size}")
        wanted = self.bottleneck_size or int(site.width / self.reduction_factor)
        return max(1, math.ceil(wanted / self.phm_dim)) * self.phm_dim

    def share(self, sites: Sequence[Any], rng: torch.Generator) -> "Rule":
        """The rules A of all places."""
        return Rule(self.phm_dim, self.phm_init_range, rng)

    def build_sublayer(self, site: SublayerSite, shared: "Rule", rng: torch.Generator) -> "CompacterAdapter":
        """The two products of one sublayer."""
        return CompacterAdapter(self, site.width, self.size(site), shared, rng)

    def count_sublayers(self, sites: Sequence[SublayerSite]) -> int:
        """n^3, and (2 r + 1) (D + M) per place."""
        return self.phm_dim**3 + sum((2 * self.phm_rank + 1) * (site.width + self.size(site)) for site in sites)


class Rule(Shared):
    """A [n, n, n]."""

    def __init__(self, terms: int, spread: float, rng: torch.Generator) -> None:
        super().__init__()
        self.phm_rule = nn.Parameter(torch.empty(terms, terms, terms).normal_(0, spread, generator=rng))


class CompacterAdapter(ResidualAdapter):
    """Down, non-linearity, up, both maps hypercomplex."""

    def __init__(self, method: Compacter, width: int, size: int, shared: Rule, rng: torch.Generator) -> None:
        super().__init__(method)
        n, r = method.phm_dim, method.phm_rank
        self.shared = shared
        self.down_left, self.down_right = _glorot(n, width // n, r, rng=rng), _glorot(n, r, size // n, rng=rng)
        self.up_left, self.up_right = _glorot(n, size // n, r, rng=rng), _glorot(n, r, width // n, rng=rng)
        self.down_bias, self.up_bias = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(width))

    def change(self, x: Tensor, stream: Stream) -> Tensor:
        """f(x W_down + b_down) W_up + b_up, in the dtype of x."""
        rule = self.shared.phm_rule.to(x.dtype)
        u = hypercomplex.multiply(x, rule, self.down_left.to(x.dtype), self.down_right.to(x.dtype))
        u = self.activation(u + self.down_bias.to(x.dtype))
        y = hypercomplex.multiply(u, rule, self.up_left.to(x.dtype), self.up_right.to(x.dtype))
        return y + self.up_bias.to(x.dtype)


def _glorot(terms: int, rows: int, columns: int, *, rng: torch.Generator) -> nn.Parameter:
    """Glorot uniform values for each of the n matrices."""
    bound = math.sqrt(6 / (rows + columns))
    return nn.Parameter(torch.empty(terms, rows, columns).uniform_(-bound, bound, generator=rng))
