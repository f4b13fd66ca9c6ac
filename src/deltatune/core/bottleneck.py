"""What every adapter at a sublayer output shares: places, sizes, what it reads, norms trained along.

Shape legend: B batch, T tokens, D model width, M bottleneck.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import SettingsError
from deltatune.core.method import Method, Sites
from deltatune.core.site import ParameterSite, ReplacedTensor, SiteAdapter, Stream, SublayerAdapter, SublayerSite

Placement = Literal["houlsby", "pfeiffer", "parallel"]
Sublayer = Literal["attention", "cross_attention", "mlp"]

SUBLAYERS: Mapping[Placement, tuple[Sublayer, ...]] = {
    "houlsby": ("attention", "mlp"),
    "pfeiffer": ("mlp",),
    "parallel": ("mlp",),
}

NonLinearity = Literal["relu", "gelu", "gelu_new", "silu", "swish", "tanh", "leakyrelu", "linear"]

NON_LINEARITIES: Mapping[NonLinearity, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda u: F.gelu(u, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "leakyrelu": F.leaky_relu,
    "linear": lambda u: u,
}


class BottleneckMethod(Method, ABC):
    """Settings of a method that adds a bottleneck to sublayer outputs; names as in AdapterHub's `BnConfig`."""

    aliases: ClassVar[Mapping[str, str]] = {
        **Method.aliases,
        "adapter_size": "bottleneck_size",
        "bottleneck_dim": "bottleneck_size",
        "activation": "non_linearity",
    }

    placement: Placement = "houlsby"
    """What is read: `houlsby` the sublayer's output, `pfeiffer` the normed sum of output and residual, `parallel` the
    sublayer's own input."""
    sublayers: tuple[Sublayer, ...] | None = None
    """Where; none means the placement's own: attention and feed-forward for `houlsby`, feed-forward for the others."""
    reduction_factor: Annotated[float, Field(gt=0)] = 16
    """D / M, when `bottleneck_size` is not given."""
    bottleneck_size: Annotated[int, Field(ge=1)] | None = None
    """M."""
    non_linearity: NonLinearity = "gelu"
    """f."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on what the adapter adds, while training."""
    train_layernorm: bool = False
    """Train the norms of the base along, as Houlsby et al. and the Compacter paper do."""
    leave_out: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Blocks without an adapter (AdapterDrop), from 0; the decoder's follow the encoder's."""

    def sites(self, model: Sites) -> Sequence[SublayerSite | ParameterSite]:
        """The sublayers, and the norms when they are trained; raises `SettingsError` when nothing is left."""
        found = model.sublayers(self.sublayers or SUBLAYERS[self.placement])
        every = model.sublayers(("attention", "mlp")) if self.leave_out else ()  # not every model has both places
        blocks = list(dict.fromkeys((site.stack, site.block) for site in every))
        if wrong := [index for index in self.leave_out if index >= len(blocks)]:
            raise SettingsError(
                f"leave_out names block {wrong[0]} and this model has {len(blocks)} (0..{len(blocks) - 1})"
            )
        left_out = {blocks[index] for index in self.leave_out}
        kept = [site for site in found if (site.stack, site.block) not in left_out]
        if not kept:
            raise SettingsError(f"leave_out={list(self.leave_out)} leaves no block for {self.type}")
        for site in kept:
            self.size(site)
        return [*kept, *(model.parameters(roles=["norm"]) if self.train_layernorm else ())]

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Reduction factors."""
        return [{"reduction_factor": factor, "bottleneck_size": None} for factor in (4.0, 8.0, 16.0, 32.0, 64.0)]

    def size(self, site: SublayerSite) -> int:
        """M at a sublayer; raises `SettingsError` when it is not in 1..D."""
        size = self.bottleneck_size or int(site.width / self.reduction_factor)
        if not 1 <= size <= site.width:
            raise SettingsError(
                f"{self.type}: a bottleneck of {size} is not possible at {site.path} (1..{site.width})",
                hint=f"try bottleneck_size={max(1, site.width // 16)}",
            )
        return size

    def count(self, sites: Sequence[Any]) -> int:
        """The sum over the sublayers and over the norms trained along, and what is shared."""
        norms = sum(math.prod(site.shape) for site in sites if isinstance(site, ParameterSite))
        return norms + self.count_sublayers([site for site in sites if isinstance(site, SublayerSite)])

    @abstractmethod
    def count_sublayers(self, sites: Sequence[SublayerSite]) -> int:
        """Trained parameters of the adapters themselves."""

    def build(
        self, site: SublayerSite | ParameterSite, origin: Callable[[], Tensor], shared: Any, rng: torch.Generator
    ) -> SiteAdapter:
        """The module of one sublayer, or a trained copy of one tensor of a norm."""
        if isinstance(site, ParameterSite):
            return ReplacedTensor(origin())
        return self.build_sublayer(site, shared, rng)

    @abstractmethod
    def build_sublayer(self, site: SublayerSite, shared: Any, rng: torch.Generator) -> "ResidualAdapter":
        """The module of one sublayer."""


class ResidualAdapter(SublayerAdapter, ABC):
    """h' = h + change, where the change is computed from one of three inputs."""

    def __init__(self, method: BottleneckMethod) -> None:
        super().__init__()
        self.placement = method.placement
        self.activation = NON_LINEARITIES[method.non_linearity]
        self.dropout = nn.Dropout(method.dropout) if method.dropout else None

    def forward(self, h: Tensor, stream: Stream) -> Tensor:
        """The sublayer's output with the adapter's change."""
        change = self.change(self.read(h, stream), stream)
        return h + (change if self.dropout is None else self.dropout(change))

    def read(self, h: Tensor, stream: Stream) -> Tensor:
        """The adapter's input, [B, T, D]."""
        if self.placement == "houlsby":
            return h
        return stream.normed(h) if self.placement == "pfeiffer" else stream.entry

    @abstractmethod
    def change(self, x: Tensor, stream: Stream) -> Tensor:
        """What is added to h, [B, T, D], for the input x; without the residual."""


def kaiming(*shape: int, rng: torch.Generator) -> nn.Parameter:
    """Uniform values in +-1 / sqrt(columns), torch's own choice for a linear layer.

    >>> widest = kaiming(100, 16, rng=torch.Generator().manual_seed(0)).abs().max()
    >>> bool(0.24 < widest <= 0.25)
    True
    """
    bound = 1 / math.sqrt(shape[-1])
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=rng))
