"""Full fine-tuning: train a copy of every tensor of the base. The yardstick, not an economy.

    W' = any tensor of W's shape

Trains   as many values as the base has
Start    a copy: the output is the base's, exactly
Merge    the copy takes the original's place
Note     the base stays in memory beside the copy, so that it can be shown to be unchanged and to be compared with
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltatune.core.method import Can, Method, Sites
from deltatune.core.site import ParameterSite, ReplacedTensor


class Full(Method):
    """Settings of full fine-tuning."""

    type: ClassVar[str] = "full"
    title: ClassVar[str] = "Full fine-tuning"
    paper: ClassVar[str] = "Devlin et al. 2018, arXiv:1810.04805"
    can: ClassVar[Can] = Can(merge=True, rows=False, quantised_base=False)
    learning_rate: ClassVar[float] = 5e-5

    def sites(self, model: Sites) -> Sequence[ParameterSite]:
        """Every tensor; tied ones once."""
        return model.parameters()

    def build(
        self, site: ParameterSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator
    ) -> ReplacedTensor:
        """A copy of one tensor."""
        return ReplacedTensor(origin())

    def count(self, sites: Sequence[Any]) -> int:
        """All values of the base."""
        return sum(math.prod(site.shape) for site in sites)
