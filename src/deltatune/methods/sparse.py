"""Sparse fine-tuning: train a fixed, small set of entries of each weight.

    y = x (W + S)^T + b        S zero but at K chosen entries of W

Trains   K values per layer: `density` O I, or r (I + O) as SHiRA counts
Start    S = 0: the output is the base's, exactly
Masks    random (SHiRA), or the entries of W of largest magnitude
Merge    W + S, exact
Note     the gradient of the K values is a sampled product, W + S is made for the call: no dense gradient, no dense
         optimizer state. With `keep_zeros` entries that a pruned base has at zero stay zero
Paper    Bhardwaj et al. 2024, arXiv:2406.13175; after pruning: Zimmer et al. 2023, arXiv:2312.15230
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from deltatune.core.errors import SettingsError
from deltatune.core.site import LayerSite
from deltatune.core.sparse import SparseChange, SparseMethod, drawn, flat_dtype
from deltatune.core.targeted import listed


class Sparse(SparseMethod):
    """Settings of sparse fine-tuning with a fixed mask; names as in peft's `ShiraConfig`."""

    type: ClassVar[str] = "sparse"
    title: ClassVar[str] = "Sparse fine-tuning"
    paper: ClassVar[str] = "Bhardwaj et al. 2024, arXiv:2406.13175"
    learning_rate: ClassVar[float] = 2e-3
    peft_type: ClassVar[str | None] = "SHIRA"

    mask_type: Literal["random", "magnitude"] = "random"
    """How the entries are chosen."""
    keep_zeros: bool = False
    """Choose among the entries that are not zero, so that a pruned base keeps its zeros."""

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> SparseChange:
        """The entries of one weight."""
        entries, number = site.in_features * site.out_features, self.number(site)
        if self.mask_type == "random" and not self.keep_zeros:
            return SparseChange(drawn(entries, number, rng))
        size = origin().detach().float().cpu().abs().flatten()
        score = size if self.mask_type == "magnitude" else torch.rand(entries, generator=rng)
        if self.keep_zeros:
            alive = int((size > 0).sum())
            if alive < number:
                raise SettingsError(f"{site.path} has {alive} entries that are not zero, {number} are wanted")
            score = score.masked_fill(size == 0, -1.0)
        return SparseChange(score.topk(number).indices.sort().values.to(flat_dtype(entries)))

    # -- peft's format

    def for_peft(self, sites: Sequence[Any]) -> bool:
        """Where K is r (I + O); another number has no place in its settings."""
        return self.r is not None

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `ShiraConfig`."""
        return {
            "r": self.r,
            "mask_type": "random",
            "target_modules": sorted(site.path for site in sites),
            "fan_in_fan_out": any(site.kind == "conv1d" for site in sites),
            "init_weights": True,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "Sparse | None":
        """Settings of a SHIRA folder; None for other formats."""
        if config.get("peft_type") != cls.peft_type:
            return None
        lists = {key: tuple(listed(config[key])) for key in ("target_modules", "modules_to_save") if config.get(key)}
        return cls.parse({"r": config.get("r", 32), **lists}, "adapter_config.json")

    def to_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`shira_weight` and `shira_indices`, rows and columns."""
        if not self.for_peft(()):
            return dict(tensors)
        flat = tensors["indices"].long()
        pairs = torch.stack([flat // site.in_features, flat % site.in_features]).int()
        return {"shira_weight": tensors["values"], "shira_indices": pairs}

    def of_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's, sorted."""
        if not self.for_peft(()):
            return dict(tensors)
        rows, columns = tensors["shira_indices"].long()
        flat, order = (rows * site.in_features + columns).sort()
        dtype = flat_dtype(site.in_features * site.out_features)
        return {"indices": flat.to(dtype), "values": tensors["shira_weight"][order]}
