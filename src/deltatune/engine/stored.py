"""Stored: an adapter from a file, and the adapters it reads or consists of, onto a model."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError, DeltatuneError
from deltatune.core.method import AdapterFile, Method
from deltatune.core.site import Site
from deltatune.engine.attach import attach, check_name, member_name, places
from deltatune.engine.fingerprint import fingerprint
from deltatune.engine.handle import Handle
from deltatune.engine.mould import check_mould, check_size
from deltatune.engine.roster import roster_of
from deltatune.engine.tensors import replaced_heads

Translate = Callable[[Mapping[str, Tensor], Method, Sequence[Site], Sequence[str]], Mapping[str, Tensor]]
"""Tensors of a file -> tensors under our names, given method, sites and tensors saved whole."""


def attach_file(model: nn.Module, file: AdapterFile, translate: Translate, *, name: str | None = None) -> Handle:
    """Attaches a stored adapter; raises `AdapterError` for another base or tensors that do not fit.

    Nothing stays attached after an error.
    """
    roster = roster_of(model)
    before, known = roster.active, set(roster.adapters)
    name = name or file.name
    try:
        check_name(name, roster)
        parts = _parts(model, file, translate, name)
        check_size(model, name, list(file.tensors.values()), "has")
        found = places(file.method, roster)
        tensors = translate(file.tensors, file.method, found[0], tuple(site.path for site in found[1]))
        check_mould(model, file.method, found, tensors, name)
        handle = attach(model, file.method, name=name, parts=parts)
        _check_base(model, file, handle)
        handle.load_tensors(tensors)
    except DeltatuneError:
        for new in reversed([each for each in roster.adapters if each not in known]):
            if new in roster.adapters:  # not gone with another
                Handle(model, new).detach()
        if roster.adapters:
            roster.active = before
        raise
    handle.train_mode(False)
    return handle


def _parts(model: nn.Module, file: AdapterFile, translate: Translate, name: str) -> list[str]:
    """Names of the attached parts; raises `AdapterError` when the file has others than its method works on."""
    wanted = len(file.method.members()) + len(file.method.reads())
    if len(file.parts) != wanted:
        raise AdapterError(f"adapter {file.name!r} works on {wanted} others, and its file has {len(file.parts)}")
    if file.method.members():
        pairs = zip(file.parts, file.method.members(), strict=True)
        names = [member_name(name, index, member) for index, (_, member) in enumerate(pairs)]
        return [attach_file(model, part, translate, name=own).name for part, own in zip(file.parts, names, strict=True)]
    return [_read(model, part, translate) for part in file.parts]


def _read(model: nn.Module, part: AdapterFile, translate: Translate) -> str:
    """An adapter that another one reads: attached, unless the same one is there."""
    roster = roster_of(model)
    if part.name not in roster.adapters:
        handle = attach_file(model, part, translate)
        handle.trainable(False)
        return handle.name
    known = Handle(model, part.name).export()
    stored = translate(part.tensors, known.method, known.sites, known.saved)
    same = known.method == part.method and known.tensors.keys() == stored.keys()
    if not same or not all(torch.equal(known.tensors[key].cpu(), value) for key, value in stored.items()):
        raise AdapterError(
            f"this adapter works on one named {part.name!r}, and another of that name is attached",
            hint="detach that one first",
        )
    return part.name


def _check_base(model: nn.Module, file: AdapterFile, handle: Handle) -> None:
    if not file.fingerprint:
        return
    own = fingerprint(model, handle.roster.frozen, skip=replaced_heads(handle.attached))
    if own != file.fingerprint:
        raise AdapterError(
            f"adapter {file.name!r} was trained on another base (fingerprint {file.fingerprint[:12]}, "
            f"this model has {own[:12]})",
            hint=f"load it on {file.base_model}" if file.base_model else "load it on the model it was trained on",
        )
