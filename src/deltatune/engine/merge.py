"""Merge: fold an adapter into the base's weights, keeping the originals so that unmerging is exact to the bit."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.core.site import LayerSite, ParameterSite
from deltatune.engine.compose import Node, names
from deltatune.engine.layers import FixedBase, kind_of, substituted
from deltatune.engine.plug import owner, split
from deltatune.engine.roster import Attached, Roster


@dataclass(frozen=True)
class Original:
    """One tensor of the base as it was: the parameter object and the data it held; None where there was none."""

    module: nn.Module
    name: str
    parameter: nn.Parameter | None
    data: Tensor | None

    def restore(self) -> None:
        """Puts the tensor back."""
        if self.parameter is not None:
            assert self.data is not None
            self.parameter.data = self.data
        self.module._parameters[self.name] = self.parameter


@dataclass(frozen=True)
class Before:
    """What a merge replaced: tensors and the composition that acted."""

    originals: list[Original]
    active: Node


def merge(model: nn.Module, roster: Roster, attached: Attached) -> None:
    """Folds an adapter into the weights it changes and takes it out of the active composition.

    Raises `AdapterError`, with nothing changed, for methods that cannot merge, tied weights, quantised weights, a
    second merge, or a result that is not finite.
    """
    _check(roster, attached)
    originals: list[Original] = []
    try:
        with torch.no_grad():
            for site in attached.sites:
                if isinstance(site, LayerSite):
                    _merge_layer(model, site, attached.placed.sites[site.path], originals)
                elif isinstance(site, ParameterSite):
                    _merge_tensor(model, site.path, attached.placed.sites[site.path], originals)
            for path, head in attached.saved.items():
                _merge_tensor(model, path, head, originals)
    except Exception:
        _restore(originals)
        raise
    roster.merged[attached.name] = Before(originals, roster.active)
    roster.active = None


def unmerge(roster: Roster, attached: Attached) -> None:
    """Puts the base's tensors and the composition back as they were."""
    if attached.name not in roster.merged:
        raise AdapterError(f"adapter {attached.name!r} is not merged")
    before: Before = roster.merged.pop(attached.name)
    _restore(before.originals)
    roster.active = before.active


def _check(roster: Roster, attached: Attached) -> None:
    if not attached.method.can.merge:
        raise AdapterError(
            f"{attached.method.type} cannot be merged into the base", hint="serve it as an adapter beside the base"
        )
    if roster.merged:
        raise AdapterError(f"adapter {next(iter(roster.merged))!r} is merged already", hint="unmerge it first")
    others = sorted(set(names(roster.active)) - {attached.name})
    if others:
        raise AdapterError(f"{', '.join(others)} would go on acting on the merged weights", hint="activate only one")
    for site in attached.sites:
        if isinstance(site, LayerSite) and site.tied:
            raise AdapterError(
                f"{site.path} shares its weight with {', '.join(site.tied)}: merging would change both",
                hint="leave it out of target_modules, or untie the weights in the base model first",
            )


def _merge_layer(model: nn.Module, site: LayerSite, adapter: Any, originals: list[Original]) -> None:
    module, name = owner(model, site)
    kind = kind_of(site)
    stored = module._parameters[name]
    assert stored is not None
    bias = module._parameters.get("bias") if site.kind != "tensor" else None
    weight = kind.read(substituted(module, {}), name).float()  # in float32, rounded once at the end
    new_weight, new_bias = adapter.merged(FixedBase(weight, None if bias is None else bias.float()))
    _write(module, name, kind.stored(new_weight, like=stored), originals)
    if new_bias is not None:
        _write(module, "bias", new_bias, originals, like=stored)


def _merge_tensor(model: nn.Module, path: str, adapter: Any, originals: list[Original]) -> None:
    module, name = split(model, path)
    stored = module._parameters[name]
    assert stored is not None
    _write(module, name, adapter(stored), originals)


def _write(module: nn.Module, name: str, value: Tensor, originals: list[Original], like: Tensor | None = None) -> None:
    """Replaces the data of a parameter (all who share it see it), or adds a bias where there was none."""
    if not bool(torch.isfinite(value).all()):
        raise AdapterError(f"merging gives values that are not finite in {name} of {type(module).__name__}")
    parameter = module._parameters.get(name)
    originals.append(Original(module, name, parameter, None if parameter is None else parameter.data))
    if parameter is None:
        assert like is not None
        module._parameters[name] = nn.Parameter(value.to(like.dtype), requires_grad=False)
    else:
        parameter.data = value.to(parameter.dtype).contiguous().clone()


def _restore(originals: list[Original]) -> None:
    for original in reversed(originals):
        original.restore()
