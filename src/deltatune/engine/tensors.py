"""Tensors of an adapter by name: taken from a file strictly, and told apart from the base."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.core.site import ParameterSite
from deltatune.engine.roster import Attached


def replaced_heads(attached: Attached) -> set[str]:
    """Tensors of heads that the adapter brings along: a new head is random and says nothing about the base."""
    own = {site.path for site in attached.sites if isinstance(site, ParameterSite) and site.role == "head"}
    return own | set(attached.saved)


def whole_modules(model: nn.Module, saved: Collection[str]) -> tuple[str, ...]:
    """The outermost modules all of whose parameters are saved."""
    found: dict[str, None] = {}
    for path in saved:
        module_path = path.rpartition(".")[0]
        while parent := module_path.rpartition(".")[0]:
            inside = [name for name, _ in model.get_submodule(parent).named_parameters() if ".deltas." not in name]
            if not all(f"{parent}.{name}" in saved for name in inside if not name.startswith("deltas.")):
                break
            module_path = parent
        found[module_path] = None
    return tuple(found)


def copy_strictly(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copies values by name; raises `AdapterError` naming what is missing, extra, misshapen or not finite."""
    _refuse("is missing", sorted(target.keys() - source.keys()))
    _refuse("does not belong to this adapter", sorted(source.keys() - target.keys()))
    _refuse(
        "has another shape",
        [
            f"{n} {list(t.shape)} instead of {list(target[n].shape)}"
            for n, t in source.items()
            if t.shape != target[n].shape
        ],
    )
    _refuse(
        "holds whole numbers", [n for n, t in source.items() if target[n].is_floating_point() > t.is_floating_point()]
    )
    _refuse("has values that are not finite", [n for n, t in source.items() if not bool(torch.isfinite(t).all())])
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise AdapterError(f"adapter tensor {names[0]} {what}{more}")
