"""Attach: put a method's modules at their sites, freeze the base, hand back a handle.

The model stays the same object; `detach` leaves it as it was found.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError, DeltatuneError, SettingsError
from deltatune.core.method import Method, Placed
from deltatune.core.site import InputSite, LayerSite, ParameterSite, ReplacedTensor, Site, SiteAdapter
from deltatune.engine import steps
from deltatune.engine.handle import Handle
from deltatune.engine.layers import kind_of, substituted
from deltatune.engine.plug import owner, plug, plug_loss, split
from deltatune.engine.roster import Attached, Roster, roster_of

__all__ = ["Handle", "attach", "check_name", "member_name", "origin", "places"]

NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?")
"""What an adapter may be called: it becomes a folder, a module key and part of a URL."""


def attach(
    model: nn.Module, method: Method, *, name: str = "default", seed: int = 0, parts: Sequence[str] | None = None
) -> "Handle":
    """Attaches a new adapter, freezes the base and makes the adapter the active one.

    `parts` are the adapters it consists of, when they are attached already. Raises `AdapterError` for a bad or taken
    name, `SettingsError` when the method has no place in this model.
    """
    roster = roster_of(model)
    check_name(name, roster)
    sites, saved = places(method, roster)
    if parts is None:
        parts = _parts(model, method, name, seed)
    rng = torch.Generator().manual_seed(seed)
    shared = method.share(sites, rng)
    built = {site.path: _build(model, method, site, shared, rng) for site in sites}
    heads = {site.path: ReplacedTensor(_stored(model, site.path)).to(site.device) for site in saved}
    for site in sites:  # shared modules follow their first site
        built[site.path].to(site.device)
    roster.adapters[name] = Attached(name, method, tuple(sites), Placed(built, shared), heads, tuple(parts))
    _freeze(model, roster)
    for site in sites:
        plug(model, roster, site, name, built[site.path])
    for site in saved:
        plug(model, roster, site, name, heads[site.path])
    if type(method).penalty is not Method.penalty:
        plug_loss(model, roster, name)
    if type(method).after_step is not Method.after_step:
        steps.watch(roster.adapters[name])
    handle = Handle(model, name)
    handle.train_mode(model.training)
    roster.activate(name)
    return handle


def _parts(model: nn.Module, method: Method, name: str, seed: int) -> list[str]:
    """The adapters that this one reads, which stop training, or consists of, which are attached here."""
    roster = roster_of(model)
    for read in method.reads():
        roster.require(read)
        Handle(model, read).trainable(False)
    found = list(method.reads())
    try:
        for index, member in enumerate(method.members()):
            found.append(attach(model, member, name=member_name(name, index, member), seed=seed + index).name)
    except DeltatuneError:
        for part in found[len(method.reads()) :]:
            Handle(model, part).detach()
        raise
    return found


def member_name(name: str, index: int, member: Method) -> str:
    """What one of the adapters that another consists of is called.

    >>> from deltatune.core import registry
    >>> member_name("reviews", 0, registry.method("lora"))
    'reviews-0-lora'
    """
    return f"{name}-{index}-{member.type}"


def check_name(name: str, roster: Roster) -> None:
    """Raises `AdapterError` for a name that is not allowed or taken."""
    if not NAME.fullmatch(name):
        raise AdapterError(
            f"adapter name {name!r} is not allowed",
            hint="use 1 to 64 lower-case letters, digits, - and _, with a letter or digit at both ends",
        )
    if name in roster.adapters:
        raise AdapterError(f"an adapter named {name!r} is already attached", hint="detach it or choose another name")


def places(method: Method, roster: Roster) -> tuple[list[Site], list[ParameterSite]]:
    """The method's sites and the tensors of modules trained whole; raises when there is nothing to train."""
    with roster.activated(None):  # the map is the base's, whatever adapters act
        return _places(method, roster)


def _places(method: Method, roster: Roster) -> tuple[list[Site], list[ParameterSite]]:
    if not method.can.quantised_base and any(layer.quantised for layer in roster.anatomy.every_layer):
        raise SettingsError(
            f"{method.type} cannot train on a quantised base", hint="load the base unquantised, or use lora"
        )
    whole = list(roster.anatomy.parameters(targets=method.modules_to_save)) if method.modules_to_save else []
    saved = {site.path for site in whole}  # a change of what was random and is not saved would be of nothing
    sites = [s for s in method.sites(roster.anatomy) if not (isinstance(s, ParameterSite) and s.path in saved)]
    if not sites and not whole and not method.members():
        raise SettingsError(f"{method.type} finds nothing to train in {type(roster.anatomy.model).__name__}")
    return sites, whole


def _build(model: nn.Module, method: Method, site: Site, shared: Any, rng: torch.Generator) -> SiteAdapter:
    return method.build(site, lambda: origin(model, site), shared, rng)


def origin(model: nn.Module, site: Site) -> Tensor:
    """The base's tensor at a layer site ([O, I, *kernel]), a parameter site (as stored) or an input site ([V, D])."""
    if isinstance(site, LayerSite):
        module, name = owner(model, site)
        return kind_of(site).read(substituted(module, {}), name)  # the base's own, whatever adapters are there
    if isinstance(site, InputSite):
        if site.table is None:
            raise SettingsError(f"{site.path} reads no tokens of a vocabulary that a prompt could start from")
        return _stored(model, site.table)
    return _stored(model, site.path)


def _stored(model: nn.Module, path: str) -> Tensor:
    module, name = split(model, path)
    tensor = module._parameters[name]
    assert tensor is not None
    return tensor


def _freeze(model: nn.Module, roster: Roster) -> None:
    """The base's parameters take no gradient; how they were is remembered once."""
    if roster.frozen:
        return
    for path, parameter in model.named_parameters():
        roster.frozen[path] = parameter.requires_grad
        parameter.requires_grad_(False)
