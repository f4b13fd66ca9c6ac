"""BitFit: train the biases, and nothing else.

    b' = b + d        for every bias vector of the base, those of the norms included

Trains   the number of bias values: 102,912 for BERT-base, 0.09 % of it
Start    d = 0: the output is the base's, exactly
Merge    b + d, exact
Use      as the cheapest method that reaches every block: no input of a matrix is kept for backward
Paper    Ben Zaken et al. 2021, arXiv:2106.10199
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltatune.core.errors import SettingsError
from deltatune.core.method import Can, Method, Sites
from deltatune.core.site import ParameterAdapter, ParameterSite


class BitFit(Method):
    """Settings of BitFit."""

    type: ClassVar[str] = "bitfit"
    title: ClassVar[str] = "BitFit"
    paper: ClassVar[str] = "Ben Zaken et al. 2021, arXiv:2106.10199"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 2e-3

    target_modules: str | tuple[str, ...] | None = None
    """Modules whose biases are trained: roles, globs, names or paths; none means all."""

    def sites(self, model: Sites) -> Sequence[ParameterSite]:
        """Every bias outside the head; raises `SettingsError` for a model without biases (T5, Llama)."""
        biases = [one for one in model.parameters(targets=self.target_modules) if one.path.rpartition(".")[2] == "bias"]
        found = [bias for bias in biases if not bias.in_head]
        if not found:
            raise SettingsError("BitFit trains biases and this model has none", hint="use lora, or layernorm tuning")
        return found

    def build(self, site: ParameterSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> "Shift":
        """A zero shift of one bias."""
        return Shift(site.shape)

    def count(self, sites: Sequence[Any]) -> int:
        """The number of bias values."""
        return sum(torch.Size(site.shape).numel() for site in sites)


class Shift(ParameterAdapter):
    """b + d."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, tensor: Tensor) -> Tensor:
        """The shifted bias, in the base's dtype."""
        return tensor + self.shift.to(tensor.dtype)
