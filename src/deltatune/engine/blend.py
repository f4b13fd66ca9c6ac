"""Blend: several trained adapters as one new adapter, combined by what they do to the weights, not by their factors.

    d_i = W_i - W        W_i is the weight that adapter i alone would be merged to
    W + B A ~ W + combine(w_1 d_1, w_2 d_2, ...)

Scales, magnitudes and frozen parts of the methods are inside d_i, so that methods, ranks and targets may differ. Where
an adapter changes nothing, its d_i is zero. Heads kept with the adapters are combined linearly.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError, SettingsError, did_you_mean
from deltatune.core.method import Method
from deltatune.core.site import LayerSite
from deltatune.engine.attach import attach, check_name, origin
from deltatune.engine.handle import Handle
from deltatune.engine.layers import FixedBase
from deltatune.engine.plug import owner, split
from deltatune.engine.roster import Attached, roster_of
from deltatune.ops import blending
from deltatune.ops.factor import factors

logger = logging.getLogger("deltatune")

How = Literal["linear", "svd", "ties", "dare_linear", "dare_ties"]
HOWS = ("linear", "svd", "ties", "dare_linear", "dare_ties")
LARGE_ERROR = 1e-3


@dataclass(frozen=True, slots=True)
class Blended:
    """The new adapter, and how much of the combined change it leaves out."""

    handle: Handle
    ranks: Mapping[str, int]
    """Rank by layer."""
    errors: Mapping[str, float]
    """Norm of what is left out, as a share of the change, by layer."""
    error: float
    """The same over all layers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to combine."""

    weights: Mapping[str, float]
    how: str
    rank: int | None
    density: float
    seed: int

    def check(self) -> None:
        """Raises `SettingsError` for impossible values and for settings without effect."""
        if self.how not in HOWS:
            raise SettingsError(f"how={self.how!r} is no way to blend", hint=did_you_mean(self.how, HOWS))
        if not self.weights or not all(math.isfinite(weight) for weight in self.weights.values()):
            raise SettingsError(f"weights={dict(self.weights)} do not say how much of which adapter")
        if self.rank is not None and self.rank < 1:
            raise SettingsError(f"rank={self.rank} is not allowed", hint="try rank=8, or none for an exact result")
        if self.how == "svd" and self.rank is None:
            raise SettingsError("how='svd' needs a rank", hint="give one, or how='linear' for an exact result")
        if not 0 < self.density <= 1:
            raise SettingsError(f"density={self.density:g} is not a share of entries", hint="try density=0.5")
        if self.how in ("linear", "svd") and self.density != 1:
            raise SettingsError(f"density={self.density:g} has no effect with how={self.how!r}")
        if not self.how.startswith("dare") and self.seed:
            raise SettingsError(f"seed={self.seed} has no effect with how={self.how!r}: nothing is random")

    def combine(self, deltas: list[Tensor], weights: list[float], rng: torch.Generator) -> Tensor:
        """One change from those of the adapters that act at a layer."""
        if self.how == "ties":
            deltas = [blending.trimmed(delta, self.density) for delta in deltas]
        if self.how.startswith("dare"):
            deltas = [blending.dropped(delta, self.density, rng) for delta in deltas]
        return (blending.elected if self.how.endswith("ties") else blending.linear)(deltas, weights)


def blend(
    model: nn.Module,
    weights: Mapping[str, float],
    make: Callable[..., Method],
    *,
    name: str,
    how: How = "linear",
    rank: int | None = None,
    density: float = 1.0,
    seed: int = 0,
) -> Blended:
    """Attaches the weighted combination of attached adapters as a new one, which becomes the active one.

    `make` gives the settings of the new adapter from fields of `LowRankMethod`. Without `rank` the result is exact;
    with one it is the nearest of this rank. Raises `SettingsError` for impossible settings, `AdapterError` for adapters
    that do more than change the weights of layers.
    """
    plan = Plan(weights, how, rank, density, seed)
    plan.check()
    roster = roster_of(model)
    check_name(name, roster)
    if roster.merged:
        raise AdapterError(f"adapter {next(iter(roster.merged))!r} is merged into the base", hint="unmerge it first")
    parts = {part: roster.require(part) for part in weights}
    for part in parts.values():
        _check(part)
    with torch.no_grad():
        found, errors, norms = _factored(model, parts, plan)
        handle = attach(model, _settings(make, found, parts), name=name)
        _fill(model, handle, found, parts, weights)
    handle.train_mode(False)
    left, whole = (math.sqrt(sum(value**2 for value in values)) for values in (errors.values(), norms.values()))
    error = left / whole if whole else 0.0
    ranks = {path: b.shape[-1] for path, (b, _) in found.items()}
    level = logging.WARNING if error > LARGE_ERROR else logging.INFO
    logger.log(level, "blend %r: rank %d at most, leaves out %.2g of the change", name, max(ranks.values()), error)
    return Blended(handle, ranks, {path: errors[path] / (norms[path] or 1.0) for path in found}, error)


def _check(attached: Attached) -> None:
    """Raises `AdapterError` for an adapter that is more than changed weights."""
    other = next((site.path for site in attached.sites if not isinstance(site, LayerSite)), None)
    if attached.parts or not attached.method.can.merge or other is not None or not attached.sites:
        raise AdapterError(
            f"adapter {attached.name!r} ({attached.method.type}) is not a change of the weights of layers alone and "
            "cannot be blended",
            hint="combine it with `Average` or `Stack` instead",
        )


def _factored(
    model: nn.Module, parts: Mapping[str, Attached], plan: Plan
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float], dict[str, float]]:
    """By path: B and A, the norm of what they leave out, the norm of the combined change."""
    sites = {site.path: site for part in parts.values() for site in part.sites if isinstance(site, LayerSite)}
    rng = torch.Generator().manual_seed(plan.seed)
    found, errors, norms = {}, {}, {}
    for path in sorted(sites):
        here = [name for name, part in parts.items() if path in part.placed.sites]
        deltas = [_delta(model, sites[path], parts[name]) for name in here]
        delta = plan.combine(deltas, [plan.weights[name] for name in here], rng)
        if not bool(torch.isfinite(delta).all()):
            raise AdapterError(f"blending gives values that are not finite at {path}")
        flat = delta if sites[path].copies else delta.flatten(1)
        b, a = factors(flat, None if plan.rank is None else min(plan.rank, *flat.shape[-2:]))
        errors[path], norms[path] = float((flat - b @ a).norm()), float(flat.norm())
        found[path] = b.float(), a.view(*a.shape[:-1], -1, *sites[path].kernel).float()
    return found, errors, norms


def _delta(model: nn.Module, site: LayerSite, attached: Attached) -> Tensor:
    """What one adapter adds to the weight [O, I, *kernel], in float64: a difference of near values."""
    adapter: Any = attached.placed.sites[site.path]
    weight: Tensor = origin(model, site).double()
    bias = owner(model, site)[0]._parameters.get("bias") if site.kind != "tensor" else None
    base = FixedBase(weight, None if bias is None else bias.double())
    changed, shifted = adapter.merged(base)
    if shifted is not None and (base.bias is None or not torch.equal(shifted, base.bias)):
        raise AdapterError(
            f"adapter {attached.name!r} changes the bias of {site.path}, which the blended adapter has no place for",
            hint="combine it with `Average` instead",
        )
    delta: Tensor = changed - weight
    return delta


def _settings(
    make: Callable[..., Method], found: Mapping[str, tuple[Tensor, Tensor]], parts: Mapping[str, Attached]
) -> Method:
    """The new adapter's settings: scale 1 everywhere, each layer with its own rank."""
    ranks = {path: b.shape[-1] for path, (b, _) in found.items()}
    usual = max(ranks.values())
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    heads = sorted({name for part in parts.values() for name in part.method.modules_to_save or ()})
    return make(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=sorted(found),
        **({"modules_to_save": heads} if heads else {}),
    )


def _fill(
    model: nn.Module,
    handle: Handle,
    found: Mapping[str, tuple[Tensor, Tensor]],
    parts: Mapping[str, Attached],
    weights: Mapping[str, float],
) -> None:
    """The factors at every layer, the one on the output's side told by its pace; heads moved from the base's."""
    attached = handle.attached
    for path, (b, a) in found.items():
        for name, parameter in attached.placed.sites[path].named_parameters():
            parameter.copy_(b if attached.method.pace(name).outer else a)
    for path, head in attached.saved.items():
        module, name = split(model, path)
        stored = module._parameters[name]
        assert stored is not None
        value = stored.double()
        for part in parts.values():
            if path in part.saved:
                value = value + weights[part.name] * (part.saved[path].value.double() - stored.double())
        head.value.copy_(value)
