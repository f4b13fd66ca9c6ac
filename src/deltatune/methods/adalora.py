"""AdaLoRA: low-rank adaptation in the form of an SVD, ranks shared out among the layers while training.

    y = W x + b + s P diag(l) Q drop(x)        s = alpha / init_r
    loss + orth_reg_weight * mean(|| P^T P - 1 ||, || Q Q^T - 1 ||)

    importance of triplet k = S(l_k) + mean_o S(P_ok) + mean_i S(Q_ki),   S(w) = sensitivity * uncertainty
    sensitivity <- beta1 sensitivity + (1 - beta1) |w dL/dw|
    uncertainty <- beta2 uncertainty + (1 - beta2) | |w dL/dw| - sensitivity |
    budget       = n target_r + n (init_r - target_r) (1 - (step - tinit) / (total - tfinal - tinit))^3

Shapes   W [O, I]   P [O, R]   l [R, 1]   Q [R, I], peft's lora_B, lora_E, lora_A; a convolution has Q [R, I, *kernel]
Trains   init_r (I + O + 1) values per layer; n target_r triplets are left in n layers at the end
Start    P, Q ~ N(0, 0.02^2), l = 0: the output is the base's, exactly
Merge    W + s P diag(l) Q, exact up to rounding
Note     every `deltaT` steps the l of the least important triplets become zero; until `total - tfinal` they may grow
         again, then they stay. The number of steps must be known. A loaded adapter keeps its ranks
Paper    Zhang et al. 2023, arXiv:2303.10512; s, the mean and the norms without square as in the authors' code
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import SettingsError
from deltatune.core.low_rank import changed
from deltatune.core.method import Can, Placed, Progress, check_rank
from deltatune.core.site import Base, LayerAdapter, LayerSite
from deltatune.core.targeted import TargetedMethod, read_targets
from deltatune.ops import low_rank

TRIPLET = ("lora_A", "lora_E", "lora_B")
"""Q, l and P, in the order of peft's tensors."""


class AdaLoRA(TargetedMethod):
    """Settings of AdaLoRA; names as in peft's `AdaLoraConfig`."""

    type: ClassVar[str] = "adalora"
    title: ClassVar[str] = "AdaLoRA"
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.10512"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 5e-3
    peft_type: ClassVar[str | None] = "ADALORA"
    aliases: ClassVar[Mapping[str, str]] = {
        **TargetedMethod.aliases,
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "delta_t": "deltaT",
    }

    init_r: Annotated[int, Field(ge=1, le=4096)] = 12
    """Rank of every layer at the start."""
    target_r: Annotated[int, Field(ge=0, le=4096)] = 8
    """Mean rank of the layers at the end."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32
    """Numerator of the scale s."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on what Q reads, while training."""
    tinit: Annotated[float, Field(ge=0)] = 0.1
    """Steps at the start with all triplets; below 1 a share of all steps."""
    tfinal: Annotated[float, Field(ge=0)] = 0.3
    """Steps at the end with ranks that stay; below 1 a share of all steps."""
    deltaT: Annotated[int, Field(ge=1)] = 10
    """Steps from one sharing out to the next."""
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Smoothing of the sensitivity."""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Smoothing of the uncertainty."""
    orth_reg_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the term of the loss that keeps P and Q orthogonal."""
    total_step: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps in all; none takes what the training loop says."""

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Ranks in the end, those at the start half as large again as in the paper, the scale kept."""
        return [
            {"init_r": r, "target_r": 2 * r // 3, "lora_alpha": self.lora_alpha * r / self.init_r}
            for r in (3, 6, 12, 24)
        ]

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for what has no matrix of its own, for a rank that does not fit and wrong budgets."""
        super().check(site)
        if site.kind == "embedding" or site.copies:
            raise SettingsError(
                f"AdaLoRA is for linear maps and convolutions, and {site.path} is neither",
                hint="leave it out, or use lora",
            )
        check_rank(self.title, self.init_r, site)
        if self.target_r > self.init_r:
            raise SettingsError(f"target_r={self.target_r} is more than init_r={self.init_r}: AdaLoRA takes ranks away")

    def build(
        self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator
    ) -> "AllocatedTriplets":
        """The triplets of one layer."""
        inner = torch.empty(self.init_r, site.in_features, *site.kernel).normal_(std=0.02, generator=rng)
        outer = torch.empty(site.out_features, self.init_r).normal_(std=0.02, generator=rng)
        return AllocatedTriplets(inner, torch.zeros(self.init_r, 1), outer, self.scale, self.lora_dropout)

    @property
    def scale(self) -> float:
        """s, whatever ranks are left."""
        return self.lora_alpha / self.init_r

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of init_r (I k + O + 1), k the size of a kernel."""
        return sum(self.init_r * (site.in_features * math.prod(site.kernel) + site.out_features + 1) for site in sites)

    # -- training

    def penalty(self, placed: Placed) -> Tensor | None:
        """The mean distance of P^T P and Q Q^T from one, in the Frobenius norm; matrices of a shape at a time."""
        if not self.orth_reg_weight:
            return None
        groups: dict[torch.Size, list[Tensor]] = {}
        for module in triplets(placed):
            for rows in (module.lora_A.flatten(1), module.lora_B.mT):
                groups.setdefault(rows.shape, []).append(rows)
        norms = [_distances(torch.stack(group)) for group in groups.values()]
        return self.orth_reg_weight * torch.cat(norms).mean()

    @torch.no_grad()
    def after_step(self, placed: Placed, progress: Progress) -> None:
        """Follows the importance, shares the ranks out, and at the end keeps them; raises when `total` is unknown."""
        modules = [module for module in triplets(placed) if isinstance(module, AllocatedTriplets)]
        if not modules:
            return  # a loaded adapter
        first, last = self.phases(progress.total)
        if progress.step < last:
            for module in modules:
                module.observe(self.beta1, self.beta2)
        due = progress.step == last or (first < progress.step < last and progress.step % self.deltaT == 0)
        if due:
            keep_most_important(modules, self.budget(progress.step, progress.total, len(modules)))
        if due or progress.step > last:
            for module in modules:
                module.prune()

    def phases(self, total: int | None) -> tuple[int, int]:
        """Last step with all triplets, and first step of ranks that stay; raises `SettingsError` without a total."""
        total = self.total_step or total
        if total is None:
            raise SettingsError(
                "AdaLoRA has to know the number of optimizer steps before the first one",
                hint="call expect_steps(n) of the adapter, or set total_step",
            )
        first, final = (math.ceil(n * total) if n < 1 else int(n) for n in (self.tinit, self.tfinal))
        if first >= total - final:
            raise SettingsError(
                f"tinit={self.tinit:g} and tfinal={self.tfinal:g} leave none of {total} steps to share out ranks",
                hint="make them smaller, or train longer",
            )
        return first, total - final

    def budget(self, step: int, total: int | None, layers: int) -> int:
        """Triplets to keep in all layers together, falling as a cube."""
        first, last = self.phases(total)
        left = 1 - (step - first) / (last - first)
        return int(layers * (self.init_r - self.target_r) * left**3 + layers * self.target_r)

    # -- peft's format

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `AdaLoraConfig`; ranks are told by zeros in `lora_E`."""
        total = self.total_step or 1_000_000
        first, last = self.phases(total)
        plain = ("init_r", "target_r", "lora_alpha", "lora_dropout", "deltaT", "beta1", "beta2", "orth_reg_weight")
        return {
            **{name: getattr(self, name) for name in plain},
            "tinit": first,
            "tfinal": total - last,
            "total_step": total,
            "bias": "none",
            "init_lora_weights": True,
            "fan_in_fan_out": bool(sites) and all(site.kind == "conv1d" for site in sites),
            "target_modules": sorted(site.path for site in sites),
            "rank_pattern": None,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "AdaLoRA | None":
        """Settings of an ADALORA folder; None for others. Ranks come with the tensors."""
        if config.get("peft_type") != cls.peft_type:
            return None
        targets = read_targets({**config, "rank_pattern": None})
        own = {key: config[key] for key in cls.model_fields if key not in targets and config.get(key) is not None}
        return cls.parse(own | targets, "adapter_config.json")

    def to_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours, a kernel flattened."""
        return {**tensors, "lora_A": tensors["lora_A"].flatten(1)}

    def of_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's, which leave out what is pruned when `rank_pattern` says so."""
        inner, values, outer = (tensors[name] for name in TRIPLET)
        missing = max(0, self.init_r - len(values))
        inner = nn.functional.pad(inner, (0, 0, 0, missing)).view(-1, site.in_features, *site.kernel)
        padded = nn.functional.pad(values, (0, 0, 0, missing)), nn.functional.pad(outer, (0, missing))
        return dict(zip(TRIPLET, (inner, *padded), strict=True))


class Triplets(LayerAdapter):
    """P, l and Q of one layer. A triplet with l = 0 and Q = 0 has no gradient: it stays pruned."""

    def __init__(self, inner: Tensor, values: Tensor, outer: Tensor, scale: float, dropout: float) -> None:
        super().__init__()
        self.lora_A, self.lora_E, self.lora_B = (nn.Parameter(tensor) for tensor in (inner, values, outer))
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Q and s P diag(l)."""
        return self.lora_A.to(dtype), (self.lora_B * (self.scale * self.lora_E.mT)).to(dtype)

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """The base's output plus s P diag(l) Q x."""
        return changed(x, base, self.factors, self.dropout)

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """W + s P diag(l) Q."""
        weight = base.weight
        a, b = self.factors(weight.dtype)
        return weight + low_rank.matrix(b, a, weight.shape), base.bias


class AllocatedTriplets(Triplets):
    """Triplets in training: how important each is, and which are kept."""

    def __init__(self, inner: Tensor, values: Tensor, outer: Tensor, scale: float, dropout: float) -> None:
        super().__init__(inner, values, outer, scale, dropout)
        self.register_buffer("kept", torch.ones(len(values), dtype=torch.bool))
        for name in TRIPLET:
            for kind in ("sensitivity", "uncertainty"):
                self.register_buffer(f"{kind}_{name}", torch.zeros_like(self.get_parameter(name)))

    def averages(self, name: str) -> tuple[Tensor, Tensor]:
        """Sensitivity and uncertainty of the values of a tensor."""
        return self.get_buffer(f"sensitivity_{name}"), self.get_buffer(f"uncertainty_{name}")

    def observe(self, beta1: float, beta2: float) -> None:
        """Adds what this step's gradients say; a tensor without one is left as it is."""
        for name in TRIPLET:
            tensor, (sensitivity, uncertainty) = self.get_parameter(name), self.averages(name)
            if tensor.grad is not None:
                now = (tensor * tensor.grad).abs()
                sensitivity.lerp_(now, 1 - beta1)
                uncertainty.lerp_((now - sensitivity).abs(), 1 - beta2)

    def importance(self) -> Tensor:
        """One number per triplet, [R]."""
        inner, values, outer = (torch.mul(*self.averages(name)) for name in TRIPLET)
        return values.flatten() + inner.flatten(1).mean(1) + outer.mean(0)

    def prune(self) -> None:
        """l = 0 for the triplets that are not kept."""
        self.lora_E.masked_fill_(~self.get_buffer("kept").unsqueeze(1), 0.0)

    def folded(self) -> Triplets:
        """The triplets alone; those that are pruned lose Q too, which marks them."""
        gone = ~self.get_buffer("kept").unsqueeze(1) & (self.lora_E == 0)
        inner = self.lora_A.detach().flatten(1).masked_fill(gone, 0.0).view_as(self.lora_A)
        return Triplets(inner, self.lora_E.detach(), self.lora_B.detach(), self.scale, self.dropout.p)


def triplets(placed: Placed) -> Iterator[Triplets]:
    """The modules of an adapter, by their type."""
    for module in placed.modules():
        assert isinstance(module, Triplets)
        yield module


def keep_most_important(modules: Sequence[AllocatedTriplets], budget: int) -> None:
    """Marks this many triplets as kept, whichever layers they are in; among equals the first."""
    scores = torch.cat([module.importance() for module in modules])
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[:budget]] = True
    sizes = [len(module.lora_E) for module in modules]
    for module, own in zip(modules, torch.split(kept, sizes), strict=True):
        module.get_buffer("kept").copy_(own)


def _distances(rows_NRW: Tensor) -> Tensor:
    """|| M M^T - 1 || of each matrix, [N]."""
    gram = rows_NRW @ rows_NRW.mT
    one = torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    norms: Tensor = torch.linalg.vector_norm((gram - one).flatten(1), dim=1)
    return norms
