"""PiSSA: LoRA that starts from the principal singular vectors of each weight.

    W = U S V^T        B0 = U_r sqrt(S_r / s), A0 = sqrt(S_r / s) V_r^T
    y = W x + b + s (B A - B0 A0) drop(x)        A, B start at A0, B0

Shapes   W [O, I]   A, A0 [R, I]   B, B0 [O, R]
Trains   r (I + O) values per layer
Start    B A = B0 A0: the output is the base's up to rounding
Merge    W + s (B A - B0 A0), exact up to rounding
Note     the paper takes s B0 A0 out of W and trains it; here W stays, and what is taken out travels with the adapter:
         a file is a LoRA of rank 2 r, with factors [B, -B0] and [A; A0]
Paper    Meng et al. 2024, arXiv:2404.02948
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from deltatune.core.errors import SettingsError
from deltatune.core.low_rank import LowRankAdapter, LowRankMethod, changed
from deltatune.core.method import Can
from deltatune.core.site import Base, LayerSite
from deltatune.ops import low_rank


class PiSSA(LowRankMethod):
    """Settings of PiSSA; names as in peft's `LoraConfig`."""

    type: ClassVar[str] = "pissa"
    title: ClassVar[str] = "PiSSA"
    paper: ClassVar[str] = "Meng et al. 2024, arXiv:2404.02948"
    can: ClassVar[Can] = Can(merge=True, identity=1e-4)
    learning_rate: ClassVar[float] = 5e-4

    niter: Annotated[int, Field(ge=0, le=64)] | None = None
    """Power iterations of a randomised SVD, for large models; none means an exact one."""

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for embeddings and convolutions besides what LoRA refuses."""
        super().check(site)
        if site.kind in ("embedding", "conv"):
            raise SettingsError(
                f"PiSSA starts from matrices, and {site.path} is none", hint="leave it out, or use lora"
            )

    def build(
        self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator
    ) -> "PrincipalAdapter":
        """The factors of one layer."""
        adapter = PrincipalAdapter(site, self.rank(site), self.scale(site), self.lora_dropout, rng)
        if not origin().is_meta:
            adapter.start(origin().detach().float().cpu(), self.niter)
        return adapter

    # -- peft's format: a LoRA of twice the rank

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """LoRA's keys for rank 2 r at the same scale."""
        growth = 2**0.5 if self.use_rslora else 2
        plain = super().peft_config(sites)
        return {
            **plain,
            "r": 2 * self.r,
            "lora_alpha": growth * self.lora_alpha,
            "rank_pattern": {path: 2 * rank for path, rank in plain["rank_pattern"].items()},
            "alpha_pattern": {path: growth * alpha for path, alpha in plain["alpha_pattern"].items()},
        }

    def to_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[A; A0] and [B, -B0]."""
        a = torch.cat([tensors["lora_A"], tensors["start_A"]], -2)
        b = torch.cat([tensors["lora_B"], -tensors["start_B"]], -1)
        return super().to_peft(site, {"lora_A": a, "lora_B": b})

    def of_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The halves."""
        twice = self.model_copy(update={"rank_pattern": {site.path: 2 * self.rank(site)}})
        both = super(PiSSA, twice).of_peft(site, tensors)
        (a, start_a), (b, start_b) = both["lora_A"].chunk(2, -2), both["lora_B"].chunk(2, -1)
        return {"lora_A": a, "lora_B": b, "start_A": start_a, "start_B": -start_b}


class PrincipalAdapter(LowRankAdapter):
    """A and B with where they started."""

    def __init__(self, site: LayerSite, rank: int, scale: float, dropout: float, rng: torch.Generator) -> None:
        super().__init__(site, rank, scale, dropout, rng)
        self.register_buffer("start_A", self.lora_A.detach().clone())
        self.register_buffer("start_B", self.lora_B.detach().clone())

    def start(self, weight: Tensor, niter: int | None) -> None:
        """A0 and B0 from the weight [O, I] or [E, O, I]."""
        rank = self.lora_A.shape[-2]
        if niter is None:
            u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        else:
            with torch.random.fork_rng(devices=[]):  # the randomised SVD draws from the global generator
                torch.manual_seed(0)
                u, s, v = torch.svd_lowrank(weight, q=min(2 * rank, min(weight.shape[-2:])), niter=niter)
            vt = v.mT
        root = (s[..., :rank] / self.scale).sqrt()
        a, b = root.unsqueeze(-1) * vt[..., :rank, :], u[..., :rank] * root.unsqueeze(-2)
        with torch.no_grad():
            for tensor in (self.lora_A, self.get_buffer("start_A")):
                tensor.copy_(a)
            for tensor in (self.lora_B, self.get_buffer("start_B")):
                tensor.copy_(b)

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """s [B, -B0] and [A; A0]."""
        a = torch.cat([self.lora_A, self.get_buffer("start_A")], -2)
        b = torch.cat([self.lora_B, -self.get_buffer("start_B")], -1)
        return a.to(dtype), (b * self.scale).to(dtype)

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """The base's output plus s (B A - B0 A0) x, as one product of rank 2 R."""
        return changed(x, base, self.factors, self.dropout)

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """W + s (B A - B0 A0)."""
        weight = base.weight
        a, b = self.factors(weight.dtype)
        return weight + low_rank.matrix(b, a, weight.shape), base.bias
