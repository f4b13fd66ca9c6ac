"""Rank and scale: what methods with a rank share, per layer where a pattern says so."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field

from deltatune.core.errors import SettingsError
from deltatune.core.method import Sites, check_rank
from deltatune.core.site import LayerSite
from deltatune.core.targeted import TargetedMethod, matches, read_targets

Value = TypeVar("Value")

RANKS = (2, 4, 8, 16, 32, 64)
"""Worth trying."""


class RankedMethod(TargetedMethod, ABC):
    """Settings of a method whose change of a layer has a rank and a scale."""

    r: Annotated[int, Field(ge=1, le=4096)] = 8
    """Rank."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=4096)]] = {}
    """Another rank for the layers of a path, name or glob; a full path counts first, then the first match."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Another alpha for the layers of a path, name or glob; a full path counts first, then the first match."""

    @property
    @abstractmethod
    def numerator(self) -> float:
        """Alpha where no pattern says otherwise."""

    def sites(self, model: Sites) -> Sequence[LayerSite]:
        """The targeted layers; raises `SettingsError` for ranks that do not fit and patterns that match nothing."""
        found = super().sites(model)
        for name in (*self.rank_pattern, *self.alpha_pattern):
            if not any(matches(site.path, name) for site in found):
                raise SettingsError(f"pattern {name!r} matches no targeted layer, such as {found[0].path}")
        return found

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for a rank that does not fit and for grouped convolutions."""
        super().check(site)
        check_rank(self.title, self.rank(site), site)

    def rank(self, site: LayerSite) -> int:
        """R at a site."""
        return _first(self.rank_pattern, site.path, self.r)

    def alpha_at(self, site: LayerSite) -> float:
        """Alpha at a site."""
        return _first(self.alpha_pattern, site.path, self.numerator)

    def scale(self, site: LayerSite) -> float:
        """s = alpha / r at a site."""
        return self.alpha_at(site) / self.rank(site)

    def ranks(self, alpha: str, power: float = 1.0) -> Sequence[Mapping[str, Any]]:
        """Ranks worth trying, with the `alpha` (its name) that keeps a scale of alpha / r ** power."""
        return [{"r": r, alpha: self.numerator * (r / self.r) ** power} for r in RANKS]

    # -- peft's format

    def pattern_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """Ranks and alphas by full path, so that nothing depends on how patterns are matched."""
        return {
            "rank_pattern": {site.path: self.rank(site) for site in sites} if self.rank_pattern else {},
            "alpha_pattern": {site.path: self.alpha_at(site) for site in sites} if self.alpha_pattern else {},
        }


def _first(pattern: Mapping[str, Value], path: str, usual: Value) -> Value:
    """What a pattern says of a path: the full path counts before names and globs, whose first match counts."""
    if path in pattern:
        return pattern[path]
    return next((value for name, value in pattern.items() if matches(path, name)), usual)


def read_ranked(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Rank, patterns, targets and these further fields of peft's `adapter_config.json`, where they are given."""
    named = ("r", "rank_pattern", "alpha_pattern", *keys)
    return {key: config[key] for key in named if config.get(key) is not None} | read_targets(config)


def kaiming(*shape: int) -> float:
    """Bound of the usual uniform start of a matrix or kernel: 1 / sqrt(fan in), the fan in without the first size.

    >>> kaiming(5, 16)
    0.25
    """
    return 1 / math.sqrt(math.prod(shape[1:]))
