"""AdapterFusion: learn, token by token, which of several trained adapters to listen to.

    u_i = what adapter i adds to h        a = softmax_i((W_q x + b_q) . (W_k u_i))        h' = h + W_v sum_i a_i u_i

Shapes   W_q, W_k, W_v [D, D]   b_q [D]   a [B, T, N]
Trains   3 D^2 + D values per sublayer, whatever the number of adapters; the adapters stay as they are
Start    W_v = I: fusing copies of one adapter gives that adapter
Merge    no
Loss     + regularization * sum |I - W_v|^2
Note     the scores are (W_k^T q) . u_i and W_v acts on the sum: the cost of the matrices does not grow with N. A bias
         on W_k, which AdapterHub has, cannot change a softmax over i: it is kept for its files and not trained
Paper    Pfeiffer et al. 2020, arXiv:2005.00247
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.bottleneck import ResidualAdapter, Sublayer
from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.method import Can, Method, Placed, Sites
from deltatune.core.site import Stream, SublayerAdapter, SublayerSite


class AdapterFusion(Method):
    """Settings of AdapterFusion."""

    type: ClassVar[str] = "adapter-fusion"
    title: ClassVar[str] = "AdapterFusion"
    paper: ClassVar[str] = "Pfeiffer et al. 2020, arXiv:2005.00247"
    can: ClassVar[Can] = Can(identity=None)
    learning_rate: ClassVar[float] = 5e-5

    adapters: tuple[str, ...] = ()
    """Trained bottleneck or Compacter adapters: names on the model, or folders."""
    sublayers: tuple[Sublayer, ...] = ("mlp",)
    """Where they are fused; all of them must act there, and elsewhere they do not act."""
    value: bool = True
    """Transform the mixture by W_v; without it, only the mixing is learned."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the attention over adapters, while training."""
    regularization: Annotated[float, Field(ge=0)] = 0.01
    """Weight of |I - W_v|^2 in the loss."""

    def reads(self) -> Sequence[str]:
        """The adapters; raises `SettingsError` for fewer than two."""
        if len(set(self.adapters)) < 2:
            raise SettingsError(
                "adapter-fusion needs two adapters or more",
                hint="method: {type: adapter-fusion, adapters: [runs/a/adapter, runs/b/adapter]}",
            )
        return self.adapters

    def reading(self, names: Sequence[str]) -> "AdapterFusion":
        """The settings with other names for the adapters."""
        return self.model_copy(update={"adapters": tuple(names)})

    def sites(self, model: Sites) -> Sequence[SublayerSite]:
        """The sublayers."""
        self.reads()
        return model.sublayers(self.sublayers)

    def build(
        self, site: SublayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator
    ) -> "FusionAdapter":
        """The attention over the adapters of one sublayer."""
        return FusionAdapter(self, site.width, rng)

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of 3 D^2 + D, or 2 D^2 + D without W_v."""
        return sum((3 if self.value else 2) * site.width**2 + site.width for site in sites)

    def penalty(self, placed: Placed) -> Tensor | None:
        """regularization * sum |I - W_v|^2, over all sublayers."""
        values = [module.value_weight for module in placed.modules() if isinstance(module, FusionAdapter)]
        terms = [(torch.eye(w.shape[0], device=w.device) - w).square().sum() for w in values if w is not None]
        return self.regularization * torch.stack(terms).sum() if terms and self.regularization else None


class FusionAdapter(SublayerAdapter):
    """Attention of the hidden state over what the adapters would add."""

    def __init__(self, method: AdapterFusion, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.names = method.adapters
        self.query_weight = nn.Parameter(torch.empty(width, width).normal_(0, 0.02, generator=rng))
        self.query_bias = nn.Parameter(torch.zeros(width))
        self.key_weight = nn.Parameter(torch.empty(width, width).normal_(0, 0.02, generator=rng))
        self.register_buffer("key_bias", torch.zeros(width))
        self.value_weight = nn.Parameter(torch.eye(width)) if method.value else None
        self.dropout = nn.Dropout(method.dropout)

    def forward(self, h: Tensor, stream: Stream) -> Tensor:
        """h + W_v sum_i a_i u_i."""
        adapters = [_additive(stream.adapter(name), name) for name in self.names]
        x = adapters[0].read(h, stream)
        u_NBTD = torch.stack([adapter.change(adapter.read(h, stream), stream) for adapter in adapters])
        query = F.linear(x, self.query_weight.to(x.dtype), self.query_bias.to(x.dtype))
        scores = (u_NBTD * (query @ self.key_weight.to(x.dtype))).sum(-1)
        attention = self.dropout(scores.float().softmax(0)).to(x.dtype)
        mixture = (attention.unsqueeze(-1) * u_NBTD).sum(0)
        return h + (mixture if self.value_weight is None else F.linear(mixture, self.value_weight.to(x.dtype)))


def _additive(adapter: SublayerAdapter, name: str) -> ResidualAdapter:
    if not isinstance(adapter, ResidualAdapter):
        raise AdapterError(f"adapter {name!r} cannot be fused: it is no bottleneck adapter")
    return adapter
