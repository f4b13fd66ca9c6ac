"""Diff pruning: learn which few entries of the whole model to change, then train these.

    theta = theta_0 + z * z_g * w        z, z_g in [0, 1] for every entry and for every tensor (group)
    s = sigmoid(log u - log(1 - u) + alpha), u ~ U(0, 1)        z = clamp(s (r - l) + l, 0, 1),  l = -1.5, r = 1.5
    E|z|_0 = sigmoid(alpha - log(-l / r))

    1 train     w, alpha, alpha_g        loss + lambda sum_g sum_i E|z_i|_0 E|z_g|_0
    2 project   draw z once, keep the `density` of all entries with the largest |z z_g w|, for the whole model
    3 refit     w of the kept entries, `refit_rate` times as fast

Trains   two values per entry and one per tensor; what is kept and saved is `density` of the entries (0.5 %)
Start    w = 0, alpha = 5: the output is the base's, exactly
Merge    theta_0 + delta, exact
Note     the groups are the tensors of the model. Without `elementwise` only the groups have gates: half the memory
Paper    Guo et al. 2020, arXiv:2012.07463
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.method import Can, Method, Pace, Placed, Progress, Sites
from deltatune.core.site import ParameterAdapter, ParameterSite
from deltatune.core.sparse import alone

LOW, HIGH = -1.5, 1.5
"""l and r."""
SHIFT = math.log(-LOW / HIGH)


class DiffPruning(Method):
    """Settings of diff pruning."""

    type: ClassVar[str] = "diff-pruning"
    title: ClassVar[str] = "Diff pruning"
    paper: ClassVar[str] = "Guo et al. 2020, arXiv:2012.07463"
    unsaid: ClassVar[Mapping[str, Any]] = {"tied_embedding": True}
    can: ClassVar[Can] = Can(merge=True, rows=False, quantised_base=False)
    learning_rate: ClassVar[float] = 5e-4

    density: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Share of all entries that may differ in the end."""
    elementwise: bool = True
    """A gate for every entry besides those of the tensors."""
    sparsity_weight: Annotated[float, Field(ge=0)] = 1.25e-7
    """lambda, per entry."""
    alpha_init: float = 5.0
    """alpha at the start: nearly all gates open."""
    alpha_rate: Annotated[float, Field(gt=0)] = 500.0
    """Learning rate of the gates against that of w; the paper's is 0.1."""
    tied_embedding: bool = False
    """Also an embedding that is the head too. The gradient of a token that does not occur never turns there, so that
    Adam makes of its row the largest changes and the projection keeps these, 99 % of all on SmolLM2."""
    train_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the steps before the projection."""
    refit_rate: Annotated[float, Field(gt=0)] = 10.0
    """Learning rate of w after the projection against that before it: 0.5 % of the entries have to go farther."""

    def sites(self, model: Sites) -> Sequence[ParameterSite]:
        """Every tensor outside the head."""
        return [
            site
            for site in model.parameters()
            if not site.in_head or (self.tied_embedding and site.role == "embedding")
        ]

    def build(self, site: ParameterSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> "Gated":
        """w and the gates of one tensor."""
        return Gated(self, site.shape)

    def count(self, sites: Sequence[Any]) -> int:
        """w, alpha and the groups' alpha."""
        entries: int = sum(math.prod(site.shape) for site in sites)
        return entries * (2 if self.elementwise else 1) + len(sites)

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Shares of the entries."""
        return [{"density": density} for density in (0.001, 0.005, 0.02)]

    def pace(self, name: str) -> Pace:
        """The gates move fast; nothing decays."""
        return Pace(rate=self.alpha_rate if "alpha" in name else 1.0, decay=False)

    def penalty(self, placed: Placed) -> Tensor | None:
        """lambda times the expected number of changed entries, before the projection."""
        gated = [module for module in placed.modules() if isinstance(module, Gated) and not module.projected]
        return self.sparsity_weight * torch.stack([module.expected() for module in gated]).sum() if gated else None

    def ready(self, progress: Progress) -> bool:
        """Only a projected adapter is within its budget."""
        return progress.total is None or progress.step >= self._projection(progress.total)

    def after_step(self, placed: Placed, progress: Progress) -> None:
        """Projects when it is time.

        Raises `SettingsError` when nobody has said how many steps there will be, and with several processes, whose
        draws differ.
        """
        if not any(isinstance(module, Gated) for module in placed.modules()):  # loaded from a file: projected already
            return
        alone(self.type)
        if progress.total is None:
            raise SettingsError(
                "diff-pruning has phases and must know the number of steps", hint="adapter.expect_steps(n)"
            )
        if progress.step == self._projection(progress.total):
            self.project(placed)
            self._forget(placed, progress.optimizer)

    def _projection(self, total: int) -> int:
        return max(1, round(self.train_share * total))

    @torch.no_grad()
    def project(self, placed: Placed) -> None:
        """Keeps the largest changes of the whole model, exactly `density` of all entries."""
        modules = [module for module in placed.modules() if isinstance(module, Gated)]
        changes = [module.change(drawn=True) for module in modules]
        sizes = torch.cat([change.abs().flatten().cpu() for change in changes])
        kept = torch.zeros(len(sizes), dtype=torch.bool)
        kept[sizes.argsort(descending=True, stable=True)[: round(self.density * len(sizes))]] = True
        masks = torch.split(kept, [change.numel() for change in changes])
        for module, change, mask in zip(modules, changes, masks, strict=True):
            module.fix(change, mask.view(change.shape).to(change.device))

    @staticmethod
    def _forget(placed: Placed, optimizer: torch.optim.Optimizer | None) -> None:
        """The refit begins without the momentum of the first phase."""
        if optimizer is not None:
            for module in placed.modules():
                for parameter in module.parameters():
                    optimizer.state.pop(parameter, None)


class Gated(ParameterAdapter):
    """z * z_g * w for one tensor; after the projection mask * refit_rate * w.

    Adam's steps do not depend on the scale of a gradient: what w is multiplied by, it moves faster by.
    """

    def __init__(self, method: DiffPruning, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape))
        self.refit_rate = method.refit_rate
        start = torch.full(shape, method.alpha_init)
        self.alpha = nn.Parameter(start) if method.elementwise else None
        self.group_alpha = nn.Parameter(torch.full((1,), method.alpha_init))
        self.register_buffer("mask", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("phase", torch.zeros((), dtype=torch.int32))
        self.projected = False

    def restored(self) -> None:
        """Whether the mask is fixed."""
        self.projected = bool(self.get_buffer("phase"))

    def forward(self, tensor: Tensor) -> Tensor:
        """theta."""
        return tensor + self.change(drawn=self.training).to(tensor.dtype)

    def change(self, drawn: bool) -> Tensor:
        """What is added to the base; `drawn` gates are random, others at the middle of their distribution."""
        if self.projected:
            return self.w * self.get_buffer("mask") * self.refit_rate
        change = self.w * gate(self.group_alpha, drawn).view(*(1 for _ in self.w.shape))
        return change if self.alpha is None else change * gate(self.alpha, drawn)

    def expected(self) -> Tensor:
        """E|z_g|_0 sum_i E|z_i|_0."""
        inside = torch.sigmoid(self.alpha - SHIFT).sum() if self.alpha is not None else float(self.w.numel())
        return (torch.sigmoid(self.group_alpha - SHIFT) * inside).squeeze()

    def fix(self, change: Tensor, mask: Tensor) -> None:
        """Ends the first phase."""
        self.get_buffer("mask").copy_(mask)
        self.w.copy_(change * mask / self.refit_rate)
        self.get_buffer("phase").fill_(1)
        self.projected = True

    @torch.no_grad()
    def folded(self) -> "SparseTensor":
        """The changed entries alone."""
        change = self.change(drawn=False).flatten()
        indices = change.nonzero().squeeze(1)
        return SparseTensor(tuple(self.w.shape), indices.int() if change.numel() < 2**31 else indices, change[indices])

    def opened(self, tensors: Mapping[str, Tensor]) -> "SparseTensor":
        """Room for as many entries as the file has."""
        indices, values = tensors.get("indices"), tensors.get("values")
        if indices is None or values is None:
            return self.folded()
        size = self.w.numel()
        if indices.dim() != 1 or indices.shape != values.shape or not bool(((indices >= 0) & (indices < size)).all()):
            raise AdapterError(f"sparse values of shape {list(values.shape)} do not fit their positions")
        return SparseTensor(tuple(self.w.shape), torch.zeros_like(indices), torch.zeros_like(values))


class SparseTensor(ParameterAdapter):
    """Values at flat positions, added to one tensor."""

    def __init__(self, shape: tuple[int, ...], indices: Tensor, values: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("indices", indices)
        self.values = nn.Parameter(values)

    def forward(self, tensor: Tensor) -> Tensor:
        """theta."""
        whole = tensor.clone(memory_format=torch.contiguous_format)
        positions = self.get_buffer("indices").long()
        whole.view(-1).index_add_(0, positions, self.values.to(tensor.dtype))
        return whole


def gate(alpha: Tensor, drawn: bool) -> Tensor:
    """z: a draw of the hard concrete distribution, or the value at its median."""
    noise = torch.rand_like(alpha).clamp(1e-6, 1 - 1e-6) if drawn else None
    s = torch.sigmoid(alpha if noise is None else noise.log() - (-noise).log1p() + alpha)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)
