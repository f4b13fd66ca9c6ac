"""Tensors of an adapter by name: taken from a file strictly, and told apart from the base."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.core.method import Placed
from deltatune.core.site import ParameterSite, ReplacedTensor
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


def folded_tensors(placed: Placed, saved: Mapping[str, ReplacedTensor]) -> dict[str, Tensor]:
    """Tensors of an adapter by the names of `AdapterFile.tensors`, each once."""
    shared = placed.shared.folded() if placed.shared is not None else None
    found = {f"shared.{name}": tensor.detach() for name, tensor in (shared.state_dict() if shared else {}).items()}
    seen = {id(tensor) for tensor in (shared.state_dict(keep_vars=True).values() if shared else ())}
    for path, module in placed.sites.items():
        for name, tensor in module.folded().state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                found[f"{path}.{name}"] = tensor.detach()
    return found | {path: module.value.detach() for path, module in saved.items()}


def inside(path: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one site, by their names there."""
    prefix = f"{path}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def copy_strictly(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copies values by name; raises `AdapterError` naming what is missing, extra, misshapen or not finite."""
    check_fit(source, target)
    _refuse("has values that are not finite", [n for n, t in source.items() if not bool(torch.isfinite(t).all())])
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def check_fit(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Raises `AdapterError` naming what is missing, extra, misshapen or of another kind; looks at no value."""
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


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise AdapterError(f"adapter tensor {names[0]} {what}{more}")
