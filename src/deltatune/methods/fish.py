"""FISH mask: train the entries of the base's weights that carry most Fisher information.

    F_i = sum over rows of (d loss of the row / d W_i)^2        gathered in the first steps, at W
    y = x (W + S)^T + b        S zero but at the K entries of largest F, over all layers

Trains   K = density O I values, summed over the layers; the layers share them out by F
Start    S = 0: the output is the base's, exactly, and stays so until the mask is chosen
Merge    W + S, exact
Note     F takes a float per entry of the targeted weights for the first `fisher_steps` steps, then it is gone. A row is
         an entry of the first dimension of a layer's input
Paper    Sung et al. 2021, arXiv:2111.09839
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import SettingsError
from deltatune.core.method import Placed, Progress
from deltatune.core.site import Base, LayerAdapter, LayerSite, Shared
from deltatune.core.sparse import SparseChange, SparseMethod, alone, flat_dtype
from deltatune.ops import sampled


class FISH(SparseMethod):
    """Settings of the FISH mask."""

    type: ClassVar[str] = "fish"
    title: ClassVar[str] = "FISH mask"
    paper: ClassVar[str] = "Sung et al. 2021, arXiv:2111.09839"
    learning_rate: ClassVar[float] = 2e-3

    density: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Share of the entries of all targeted weights."""
    fisher_steps: Annotated[int, Field(ge=1)] = 32
    """Steps in which F is gathered and nothing is changed; the paper's 1,024 rows at 32 a step."""

    def share(self, sites: Sequence[Any], rng: torch.Generator) -> "Chosen":
        """Random entries of all weights, until F is known."""
        sizes = [site.in_features * site.out_features for site in sites]
        return Chosen(sizes, torch.randperm(sum(sizes), generator=rng)[: self.count(sites)].sort().values)

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: "Chosen", rng: torch.Generator) -> "Weighed":
        """The next of the weights."""
        return Weighed(shared, (site.out_features, site.in_features))

    def ready(self, progress: Progress) -> bool:
        """Before the mask there is nothing to keep."""
        return progress.step > self.fisher_steps

    def after_step(self, placed: Placed, progress: Progress) -> None:
        """Undoes the first steps and chooses the mask after the last of them.

        Raises `SettingsError` for a training that ends before, and with several processes, whose gradients differ.
        """
        if progress.step > self.fisher_steps:
            return
        if progress.total is not None and progress.total <= self.fisher_steps:
            raise SettingsError(
                f"fisher_steps={self.fisher_steps} leaves no step of {progress.total} to train in",
                hint="set fisher_steps lower, or train longer",
            )
        alone(self.type)
        chosen = placed.shared
        if not isinstance(chosen, Chosen):  # loaded from a file: the mask is known
            return
        chosen.values.data.zero_()
        if progress.step == self.fisher_steps:
            choose(chosen, [module for module in placed.modules() if isinstance(module, Weighed)])
            if progress.optimizer is not None:
                progress.optimizer.state.pop(chosen.values, None)


@torch.no_grad()
def choose(chosen: "Chosen", modules: Sequence["Weighed"]) -> None:
    """Gives the entries to where F is largest, over all layers; F is gone then."""
    fisher = torch.cat([module.get_buffer("fisher").flatten() for module in modules])
    indices = chosen.get_buffer("indices")
    indices.copy_(fisher.topk(len(indices)).indices.sort().values)
    for module in modules:
        module.register_buffer("fisher", fisher.new_zeros(0))
        module.restored()


class Chosen(Shared):
    """Values [K] at rising positions [K] in all weights, laid end to end."""

    def __init__(self, sizes: Sequence[int], indices: Tensor) -> None:
        super().__init__()
        self.starts = [0, *accumulate(sizes)]
        self.taken = 0
        self.register_buffer("indices", indices)
        self.values = nn.Parameter(torch.zeros(len(indices)))

    def take(self) -> tuple[int, int]:
        """Where the next weight begins and ends."""
        self.taken += 1
        return self.starts[self.taken - 1], self.starts[self.taken]

    def folded(self) -> None:
        """Nothing: every layer is saved with its own entries."""
        return None


class Weighed(LayerAdapter):
    """The entries of one weight, and the Fisher information [O, I] of all it has, until some are chosen; then [0]."""

    def __init__(self, shared: Chosen, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shared = shared
        self.shape, self.place, self.part = shape, shared.take(), slice(0)
        self.register_buffer("fisher", torch.zeros(shape))
        self.restored()

    def restored(self) -> None:
        """Looks up which of the chosen entries are here."""
        indices = self.shared.get_buffer("indices")
        first, last = torch.searchsorted(indices, torch.tensor(self.place, device=indices.device)).tolist()
        self.part = slice(first, last)

    def sized(self, tensors: Mapping[str, Tensor]) -> None:
        """As much of F as another training still has."""
        whole = tensors.get("fisher", self.get_buffer("fisher")).numel() > 0
        self.register_buffer("fisher", self.get_buffer("fisher").new_zeros(self.shape if whole else 0))

    def entries(self) -> tuple[Tensor, Tensor]:
        """Flat positions in this weight, and values."""
        return self.shared.get_buffer("indices")[self.part] - self.place[0], self.shared.values[self.part]

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """x (W + S)^T + b."""
        y = sampled.linear(x, base.weight, *self.entries())
        if self.get_buffer("fisher").numel() and y.requires_grad:
            y.register_hook(partial(self.weigh, x.detach()))  # type: ignore[no-untyped-call]
        return y if base.bias is None else y + base.bias

    def weigh(self, x: Tensor, g: Tensor | None) -> None:
        """Adds the squared gradient of every row; for inputs without tokens [B, I] in closed form."""
        fisher = self.get_buffer("fisher")
        if g is None:
            return
        if x.dim() == 2:
            fisher.add_(g.detach().float().square().mT @ x.float().square())
            return
        for g_TO, x_TI in zip(g.detach().flatten(1, -2), x.to(g.dtype).flatten(1, -2), strict=True):
            fisher.add_((g_TO.mT @ x_TI).float().square())

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """W + S."""
        return sampled.composed(base.weight, *self.entries()), base.bias

    def folded(self) -> SparseChange:
        """The entries alone."""
        indices, values = self.entries()
        return SparseChange(indices.to(flat_dtype(math.prod(self.shape))), values.detach().clone())

    def opened(self, tensors: Mapping[str, Tensor]) -> SparseChange:
        """Room for as many entries as the file has."""
        empty = self.folded()
        number = len(tensors["indices"]) if tensors.keys() == {"indices", "values"} and tensors["indices"].dim() else 0
        return SparseChange(empty.get_buffer("indices").new_zeros(number), empty.values.data.new_zeros(number))
