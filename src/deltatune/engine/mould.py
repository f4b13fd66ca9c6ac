"""Mould: the tensors that an adapter from a file would have, made on the meta device and compared with the file.

A small file may ask for a large adapter. Nothing is allocated until names, shapes and kinds of all tensors are known to
be those of the file, and their bytes to be in proportion to the base.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.core.method import Method, Placed
from deltatune.core.site import ParameterSite, ReplacedTensor, Site
from deltatune.engine.attach import origin
from deltatune.engine.blocks import base_parameters
from deltatune.engine.tensors import check_fit, folded_tensors, inside

ROOM = 64 << 20
"""Bytes that any adapter may take, however small its base."""
TIMES = 4
"""And this many times the base in float32: masks and moments of a method that changes every weight."""


def check_size(model: nn.Module, name: str, tensors: Sequence[Tensor], what: str) -> None:
    """Raises `AdapterError` when an adapter's tensors take more bytes than this base can have a use for."""
    size = sum(tensor.nbytes for tensor in tensors)
    limit = ROOM + TIMES * 4 * sum(parameter.numel() for _, parameter in base_parameters(model))
    if size > limit:
        raise AdapterError(
            f"adapter {name!r} {what} {size:,} bytes, and one for this base has at most {limit:,}",
            hint="its settings ask for more than they can have a use for",
        )


def check_mould(
    model: nn.Module,
    method: Method,
    found: tuple[Sequence[Site], Sequence[ParameterSite]],
    tensors: Mapping[str, Tensor],
    name: str,
) -> None:
    """Raises `AdapterError` when tensors under our names are not those that the method has at its sites.

    The few methods that look at values while they are built (those of random positions in all weights) are compared
    when they are there; what they allocate follows from the base.
    """
    sites, saved = found
    try:
        with torch.device("meta"):
            placed = _cast(model, method, sites)
            check_size(model, name, _each(placed), "would take")
            opened = {path: module.opened(inside(path, tensors)) for path, module in placed.sites.items()}
            heads = {site.path: ReplacedTensor(torch.empty(site.shape)) for site in saved}
            expected = folded_tensors(Placed(opened, placed.shared), heads)
    except NotImplementedError:  # what torch raises where a value is asked of the meta device
        return
    check_fit(tensors, expected)


def _cast(model: nn.Module, method: Method, sites: Sequence[Site]) -> Placed:
    rng = torch.Generator()
    shared = method.share(sites, rng)

    def build(site: Site) -> nn.Module:
        return method.build(site, lambda: origin(model, site).to("meta"), shared, rng)

    return Placed({site.path: build(site) for site in sites}, shared)  # type: ignore[misc]


def _each(placed: Placed) -> list[Tensor]:
    """Every tensor of the modules, once."""
    modules = [*placed.modules(), *([placed.shared] if placed.shared is not None else [])]
    found = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return list(found.values())
