"""SpIEL: sparse fine-tuning whose entries move to where the gradient is.

    y = x (W + S)^T + b        S zero but at K entries of W, some of which are exchanged every `reselect_every` steps:
    drop   the share p(t) = p_0 (1 - t / T) of the K with the smallest |S|; the first time, when they are random, all
    grow   as many of the others with the largest |sum of gradients| over the `watch` steps before

Trains   K = density O I values per layer
Start    random entries, S = 0: the output is the base's, exactly
Merge    W + S, exact
Note     the dense gradient exists for one layer at a time, in the few steps before an exchange; a new entry starts at
         zero with Adam's averages at the mean of what was seen
Paper    Ansell et al. 2024, arXiv:2401.16405 (SpIEL-AG)
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from deltatune.core.errors import SettingsError
from deltatune.core.method import Placed, Progress
from deltatune.core.site import LayerSite
from deltatune.core.sparse import SparseChange, SparseMethod, alone, drawn


class SpIEL(SparseMethod):
    """Settings of SpIEL."""

    type: ClassVar[str] = "spiel"
    title: ClassVar[str] = "SpIEL"
    paper: ClassVar[str] = "Ansell et al. 2024, arXiv:2401.16405"
    learning_rate: ClassVar[float] = 2e-3

    reselect_every: Annotated[int, Field(ge=2)] = 20
    """Steps from one exchange to the next."""
    watch: Annotated[int, Field(ge=1)] = 5
    """Steps before an exchange in which gradients are gathered."""
    replaced: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """p_0, the share that is exchanged after the first time; it falls to zero at the end."""

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> "Growing":
        """The first entries of one weight."""
        if self.watch >= self.reselect_every:
            raise SettingsError(f"watch={self.watch} must be less than reselect_every={self.reselect_every}")
        entries, number = site.in_features * site.out_features, self.number(site)
        return Growing(drawn(entries, number, rng), min(number, entries - number))

    def after_step(self, placed: Placed, progress: Progress) -> None:
        """Exchanges entries when it is time, and says whether the next step is watched.

        Raises `SettingsError` with several processes, whose gradients differ.
        """
        alone(self.type)
        place = progress.step % self.reselect_every
        left = 1.0 if progress.total is None else max(0.0, 1 - progress.step / progress.total)
        share = 1.0 if progress.step == self.reselect_every and left else self.replaced * left
        for module in placed.modules():
            if not isinstance(module, Growing):  # loaded from a file: its entries stay
                continue
            if place == 0:
                module.exchange(round(share * len(module.values)), progress.optimizer)
            module.watched(place >= self.reselect_every - self.watch)


class Growing(SparseChange):
    """Entries of one weight, and what is known of those that may replace some."""

    def __init__(self, indices: Tensor, candidates: int) -> None:
        super().__init__(indices)
        self.register_buffer("watch", torch.zeros((), dtype=torch.bool))
        self.watching = False
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("candidates", torch.zeros(candidates, dtype=indices.dtype))
        self.register_buffer("sums", torch.zeros(candidates))
        self.register_buffer("squares", torch.zeros(candidates))

    def watcher(self) -> Any:
        """Notes gradients, in the watched steps of a training."""
        return self.note if self.training and self.watching else None

    def watched(self, on: bool) -> None:
        """Whether the next step is watched."""
        self.get_buffer("watch").fill_(on)
        self.watching = on

    def restored(self) -> None:
        """Whether the next step is watched."""
        self.watching = bool(self.get_buffer("watch"))

    def note(self, gradient_OI: Tensor) -> None:
        """The first gradient names the candidates, all of them are summed up."""
        flat, seen = gradient_OI.detach().float().flatten(), self.get_buffer("seen")
        candidates = self.get_buffer("candidates")
        if not len(candidates):
            return
        if int(seen) == 0:
            candidates.copy_(flat.abs().index_fill(0, self.positions(), -1.0).topk(len(candidates)).indices)
        found = flat[candidates.long()]
        self.get_buffer("sums").add_(found)
        self.get_buffer("squares").add_(found.square())
        seen.add_(1)

    @torch.no_grad()
    def exchange(self, number: int, optimizer: torch.optim.Optimizer | None) -> None:
        """The smallest entries make place for the best candidates."""
        seen, sums, squares = int(self.get_buffer("seen")), self.get_buffer("sums"), self.get_buffer("squares")
        number = min(number, len(sums)) if seen else 0
        if number:
            dropped = self.values.abs().topk(number, largest=False).indices
            best = sums.abs().topk(number).indices
            indices = self.get_buffer("indices")
            indices[dropped] = self.get_buffer("candidates")[best]
            self.values[dropped] = 0.0
            order = indices.long().argsort()
            start = {"exp_avg": sums[best] / seen, "exp_avg_sq": squares[best] / seen}
            for tensor, fresh in self._states(optimizer, start):
                tensor[dropped] = fresh
                tensor.copy_(tensor[order])
            indices.copy_(indices[order])
            self.values.copy_(self.values[order])
        for buffer in (self.get_buffer("seen"), sums, squares):
            buffer.zero_()

    def _states(
        self, optimizer: torch.optim.Optimizer | None, start: dict[str, Tensor]
    ) -> list[tuple[Tensor, Tensor | float]]:
        """State of the optimizer per entry, with what a new one begins with: as if it had seen its mean all along."""
        state = {} if optimizer is None else optimizer.state.get(self.values, {})
        steps = float(state.get("step", 1))
        groups = [] if optimizer is None else optimizer.param_groups
        betas: tuple[float, float] = next((group["betas"] for group in groups if "betas" in group), (0.9, 0.999))
        found: list[tuple[Tensor, Tensor | float]] = []
        for name, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.shape == self.values.shape:
                beta = betas[0] if name == "exp_avg" else betas[1]
                fresh = start[name] * (1 - beta**steps) if name in start else 0.0
                found.append((tensor, fresh))
        return found

    def folded(self) -> SparseChange:
        """The entries alone."""
        return SparseChange(self.get_buffer("indices").clone(), self.values.detach().clone())
