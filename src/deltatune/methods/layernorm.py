"""LayerNorm tuning: train the gains and biases of the norms.

    y = g' * norm(x) + b'        g', b' trained copies of g, b

Trains   the values of all norms: 38,400 for BERT-base, 0.035 % of it
Start    copies: the output is the base's, exactly
Merge    the copies take the originals' places
Paper    Zhao et al. 2023, arXiv:2312.11420
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from deltatune.core.errors import SettingsError
from deltatune.core.method import Can, Method, Sites
from deltatune.core.site import ParameterSite, ReplacedTensor
from deltatune.core.targeted import listed


class LayerNormTuning(Method):
    """Settings of LayerNorm tuning."""

    type: ClassVar[str] = "layernorm"
    title: ClassVar[str] = "LayerNorm tuning"
    paper: ClassVar[str] = "Zhao et al. 2023, arXiv:2312.11420"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 1e-2
    peft_type: ClassVar[str | None] = "LN_TUNING"

    target_modules: str | tuple[str, ...] | None = None
    """Norms to train: globs, names or paths; none means all."""

    def sites(self, model: Sites) -> Sequence[ParameterSite]:
        """Gains and biases; raises `SettingsError` for a model without norms."""
        found = model.parameters(roles=["norm"], targets=self.target_modules)
        if not found:
            raise SettingsError("layernorm trains norms, and there are none here", hint="use lora or bitfit")
        return found

    def build(
        self, site: ParameterSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator
    ) -> ReplacedTensor:
        """A copy of one gain or bias."""
        return ReplacedTensor(origin())

    def count(self, sites: Sequence[Any]) -> int:
        """The number of values of the norms."""
        return sum(math.prod(site.shape) for site in sites)

    # -- peft's format

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The key of `LNTuningConfig`."""
        return {"target_modules": sorted({site.path.rpartition(".")[0] for site in sites})}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "LayerNormTuning | None":
        """Settings of an LN_TUNING folder; None for other formats."""
        if config.get("peft_type") != cls.peft_type:
            return None
        keys = ("target_modules", "modules_to_save")
        return cls.parse({key: tuple(listed(config[key])) for key in keys if config.get(key)}, "adapter_config.json")

    def to_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every gain and bias under the name of its norm."""
        return {_key(site): tensors[f"{site.path}.value"] for site in sites}

    def of_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's."""
        return {f"{site.path}.value": tensors[_key(site)] for site in sites}


def _key(site: ParameterSite) -> str:
    norm, _, name = site.path.rpartition(".")
    return f"base_model.model.{norm}.ln_tuning_layers.{name}"
