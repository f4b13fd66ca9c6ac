"""Linear probe: train the head on the features of the frozen base. The baseline every method has to beat.

    logits = V h(x) + c        h frozen

Trains   the head only: classes (D + 1) values for a linear one
Start    a copy of the head: the output is the base's, exactly
Merge    the copy takes the original's place
Paper    Alain and Bengio 2016, arXiv:1610.01644
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltatune.core.errors import SettingsError
from deltatune.core.method import Can, Method, Sites
from deltatune.core.site import ParameterSite, ReplacedTensor


class LinearProbe(Method):
    """Settings of a linear probe."""

    type: ClassVar[str] = "linear-probe"
    title: ClassVar[str] = "Linear probe"
    paper: ClassVar[str] = "Alain and Bengio 2016, arXiv:1610.01644"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 2e-2

    def sites(self, model: Sites) -> Sequence[ParameterSite]:
        """The tensors of the head; raises `SettingsError` for a model without one."""
        found = model.parameters(roles=["head"])
        if not found:
            raise SettingsError("a linear probe trains the head and this model has none", hint="load it with its head")
        return found

    def build(
        self, site: ParameterSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator
    ) -> ReplacedTensor:
        """A copy of one tensor of the head."""
        return ReplacedTensor(origin())

    def count(self, sites: Sequence[Any]) -> int:
        """All values of the head."""
        return sum(math.prod(site.shape) for site in sites)
