"""Ladder side tuning: a small transformer beside the base reads its hidden states and has the last word.

    s_0 = D_0 h_0        s_i = Block_i(g_i s_{i-1} + (1 - g_i) D_i h_i)        g_i = sigmoid(a_i / T)
    y = h + U norm(s_L)

h_0 are the embedded tokens, h_i the output of block i of the base, h what the base's last norm returns. Block_i is a
pre-norm transformer block of width M with attention over the tokens the base attends over. The base runs without
gradient and keeps no activation; only the h_i are kept, for the gradients of the D_i.

Shapes   D_i [M, D] with a bias   block: query, key, value, output [M, M], up [4 M, M], down [M, 4 M], two norms
         U [D, M]   M = D / reduction_factor, a multiple of num_heads
Trains   (L + 1) (M D + M) + L (12 M^2 + 4 M + 1) + 2 M + M D values, L the blocks that are not left out
Start    U = 0 and a_i = 0: the output is the base's, exactly. The paper starts from the base's pruned weights instead
         and leaves the base's own last state out, so that it needs the pruning to start from something useful
Merge    no: it is a network of its own
Note     attention has no positions of its own: the hidden states carry them. In an encoder-decoder it stands beside
         the decoder; behind a changed encoder the decoder would need a gradient
Paper    Sung et al. 2022, arXiv:2206.06522
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import SettingsError
from deltatune.core.method import Can, Method, Sites
from deltatune.core.site import Beside, SideAdapter, SideSite

INNER = 4
"""Width of a feed-forward in multiples of M."""


class Ladder(Method):
    """Settings of ladder side tuning."""

    type: ClassVar[str] = "ladder"
    title: ClassVar[str] = "Ladder side tuning"
    paper: ClassVar[str] = "Sung et al. 2022, arXiv:2206.06522"
    can: ClassVar[Can] = Can(rows=False, mix=False)
    learning_rate: ClassVar[float] = 3e-3

    reduction_factor: Annotated[float, Field(ge=1)] = 8
    """D / M."""
    num_heads: Annotated[int, Field(ge=1)] = 4
    """Heads of the side network's attention; M is rounded down to a multiple of it."""
    gate_temperature: Annotated[float, Field(gt=0)] = 0.1
    """T: the smaller, the faster a gate decides for the side network or the base."""
    leave_out: tuple[int, ...] = ()
    """Blocks of the base that have no side block, from 0; the paper leaves 0, 4 and 8 of 12 out."""

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Widths of the side network."""
        return [{"reduction_factor": factor} for factor in (2.0, 4.0, 8.0, 16.0)]

    def sites(self, model: Sites) -> Sequence[SideSite]:
        """The stack nearest to the answer; raises `SettingsError` for blocks it does not have."""
        site = model.side()
        wrong = next((block for block in self.leave_out if not 0 <= block < site.depth), None)
        if wrong is not None:
            raise SettingsError(f"leave_out names block {wrong} and this model has {site.depth} (0..{site.depth - 1})")
        if not self._blocks(site):
            raise SettingsError("leave_out leaves no block for ladder")
        if self._width(site) < self.num_heads:
            raise SettingsError(
                f"reduction_factor={self.reduction_factor:g} leaves less than {self.num_heads} values for "
                f"{self.num_heads} heads at width {site.width}",
                hint=f"try reduction_factor={max(1, site.width // (2 * self.num_heads))}",
            )
        return [site]

    def build(
        self, site: SideSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator
    ) -> "LadderAdapter":
        """The whole side network."""
        return LadderAdapter(self, site, self._width(site), self._blocks(site), rng)

    def count(self, sites: Sequence[SideSite]) -> int:
        """(L + 1) (M D + M) + L (12 M^2 + 4 M + 1) + 2 M + M D."""
        (site,) = sites
        m, d, blocks = self._width(site), site.width, len(self._blocks(site))
        return (blocks + 1) * (m * d + m) + blocks * ((4 + 2 * INNER) * m**2 + 4 * m + 1) + 2 * m + m * d

    def _width(self, site: SideSite) -> int:
        """M."""
        return int(site.width / self.reduction_factor) // self.num_heads * self.num_heads

    def _blocks(self, site: SideSite) -> tuple[int, ...]:
        return tuple(block for block in range(site.depth) if block not in self.leave_out)


class LadderAdapter(SideAdapter):
    """The side network."""

    def __init__(self, method: Ladder, site: SideSite, width: int, blocks: Sequence[int], rng: torch.Generator) -> None:
        super().__init__()
        self.temperature, self.kept = method.gate_temperature, tuple(blocks)
        self.down_weight = _uniform(len(blocks) + 1, width, site.width, rng=rng)
        self.down_bias = nn.Parameter(torch.zeros(len(blocks) + 1, width))
        self.gates = nn.Parameter(torch.zeros(len(blocks)))
        self.blocks = nn.ModuleList(SideBlock(width, method.num_heads, rng) for _ in blocks)
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.up_weight = nn.Parameter(torch.zeros(site.width, width))

    def forward(self, hidden: Sequence[Tensor], last: Tensor, beside: Beside) -> Tensor:
        """h + U norm(s_L), in the base's dtype."""
        g = torch.sigmoid(self.gates / self.temperature).to(last.dtype)
        s = self._down(0, hidden[0])
        for index, (number, block) in enumerate(zip(self.kept, self.blocks, strict=True)):
            mixed = g[index] * s + (1 - g[index]) * self._down(index + 1, hidden[number + 1])
            s = block(mixed, index, beside)
        return last + F.linear(_norm(s, self.norm_weight, self.norm_bias), self.up_weight.to(last.dtype))

    def _down(self, index: int, h: Tensor) -> Tensor:
        return F.linear(h, self.down_weight[index].to(h.dtype), self.down_bias[index].to(h.dtype))


class SideBlock(nn.Module):
    """A pre-norm transformer block of width M without biases."""

    def __init__(self, width: int, heads: int, rng: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.attention = _uniform(3, width, width, rng=rng)
        """Query, key and value."""
        self.output = _uniform(width, width, rng=rng)
        self.inner, self.outer = _uniform(INNER * width, width, rng=rng), _uniform(width, INNER * width, rng=rng)
        self.gains, self.biases = nn.Parameter(torch.ones(2, width)), nn.Parameter(torch.zeros(2, width))

    def forward(self, s: Tensor, index: int, beside: Beside) -> Tensor:
        """s [B, T, M] with attention and feed-forward added."""
        s = s + self._attend(_norm(s, self.gains[0], self.biases[0]), index, beside)
        x = _norm(s, self.gains[1], self.biases[1])
        return s + F.linear(F.gelu(F.linear(x, self.inner.to(x.dtype))), self.outer.to(x.dtype))

    def _attend(self, x: Tensor, index: int, beside: Beside) -> Tensor:
        queries, keys, values = (
            F.linear(x, weight).view(*x.shape[:-1], self.heads, -1).transpose(1, 2)
            for weight in self.attention.to(x.dtype).unbind()
        )
        keys, values = beside.remember(index, keys, values)
        mixed = F.scaled_dot_product_attention(queries, keys, values, beside.mask)
        return F.linear(mixed.transpose(1, 2).flatten(2), self.output.to(x.dtype))


def _norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], gain.to(x.dtype), bias.to(x.dtype))


def _uniform(*shape: int, rng: torch.Generator) -> nn.Parameter:
    """Uniform in +-1/sqrt(inputs), as torch starts linear maps."""
    bound = 1 / math.sqrt(shape[-1])
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=rng))
