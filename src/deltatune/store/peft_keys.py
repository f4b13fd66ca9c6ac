"""Names of tensors in an adapter file, as peft 0.21 writes and expects them.

    base_model.model.<module path>.<tensor>       a tensor of an adapter
    base_model.model.<parameter path>             a tensor of a module saved whole

Several raw tensors of one module (stacked experts) are told apart by nesting alone: the last one that the module
declares has no prefix, the one before it `base_layer.`, and so on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from deltatune.core.errors import AdapterError
from deltatune.core.method import AdapterFile, Method
from deltatune.core.site import LayerSite, Site

ROOT = "base_model.model."
SHARED = "base_model.deltatune_shared."


def ours_to_file(file: AdapterFile) -> dict[str, Tensor]:
    """The tensors of an adapter under the names of the file."""
    found = {f"{file.method.peft_root}{path}": file.tensors[path] for path in file.saved}
    whole = file.method.to_peft_file(file.sites, file.tensors)
    if whole is not None:
        return found | whole
    places = _places(file.sites)
    inside = _split(file.tensors, {site.path: f"{site.path}." for site in file.sites})
    for site in file.sites:
        own = inside[site.path]
        found |= {f"{places[site.path]}{key}": tensor for key, tensor in file.method.to_peft(site, own).items()}
    for key, tensor in file.tensors.items():
        if key.startswith("shared."):
            found[SHARED + key.removeprefix("shared.")] = tensor
    return found


def file_to_ours(
    tensors: Mapping[str, Tensor], method: Method, sites: Sequence[Site], saved: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of a file under our names; raises `AdapterError` for tensors that belong to no site."""
    rest = dict(tensors)
    found = {path: _take(rest, f"{method.peft_root}{path}") for path in saved}
    noted = Noted(rest)
    whole = _translated("", lambda: method.of_peft_file(sites, noted))
    if whole is not None:
        _refuse({key for key in rest if key not in noted.read})
        return found | whole
    places = _places(sites)
    inside = _split(rest, places)
    for site in sites:
        prefix = places[site.path]
        noted = Noted(inside[site.path])
        mine = _translated(prefix, partial(method.of_peft, site, noted)) or {}
        for key in noted.read:
            del rest[prefix + key]
        found |= {f"{site.path}.{key}": tensor for key, tensor in mine.items()}
    found |= {f"shared.{key.removeprefix(SHARED)}": rest.pop(key) for key in list(rest) if key.startswith(SHARED)}
    _refuse(set(rest))
    return found


class Noted(Mapping[str, Tensor]):
    """Tensors of a file, and which of them were read: what nobody reads does not belong there."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        tensor = self.tensors[key]
        self.read.add(key)
        return tensor

    def __contains__(self, key: object) -> bool:
        return key in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def _translated(prefix: str, translate: Callable[[], dict[str, Tensor] | None]) -> dict[str, Tensor] | None:
    """What a method makes of a file; raises `AdapterError` for tensors that are missing or have impossible shapes."""
    try:
        return translate()
    except KeyError as missing:
        raise AdapterError(f"adapter tensor {prefix}{missing.args[0]} is missing") from None
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(f"adapter tensors {prefix}* have another shape than they should: {error}") from None


def _refuse(keys: set[str]) -> None:
    if keys:
        more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
        raise AdapterError(
            f"adapter tensor {min(keys)} belongs to no layer of this model{more}",
            hint="the adapter was made for another base, or for other target modules",
        )


def _take(rest: dict[str, Tensor], key: str) -> Tensor:
    if key not in rest:
        raise AdapterError(f"adapter tensor {key} is missing")
    return rest.pop(key)


def _split(tensors: Mapping[str, Tensor], places: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the place with the longest prefix that fits, under the rest of their name."""
    found: dict[str, dict[str, Tensor]] = {path: {} for path in places}
    owners = {prefix: path for path, prefix in places.items()}
    for key, tensor in tensors.items():
        prefix = key
        while prefix:
            prefix = prefix[:-1].rpartition(".")[0]
            prefix = f"{prefix}." if prefix else ""
            if prefix in owners:
                found[owners[prefix]][key.removeprefix(prefix)] = tensor
                break
    return found


def _places(sites: Sequence[Site]) -> dict[str, str]:
    """Prefix of the keys of every site."""
    stacked: dict[str, list[str]] = {}
    for site in sites:
        if isinstance(site, LayerSite) and site.kind == "tensor" and site.copies:
            stacked.setdefault(site.path.rpartition(".")[0], []).append(site.path)
    places = {site.path: f"{ROOT}{site.path}." for site in sites}
    for module, paths in stacked.items():
        for depth, path in enumerate(reversed(paths)):
            places[path] = f"{ROOT}{module}." + "base_layer." * depth
    return places
