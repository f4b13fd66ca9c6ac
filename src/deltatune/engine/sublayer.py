"""Sublayer site: the output of attention or feed-forward, just before it joins the residual stream."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.core.site import SiteAdapter, SublayerAdapter, SublayerSite, Tap
from deltatune.engine.compose import Rows, by_rows, chosen, evaluate, expand_rows, names, weighted
from deltatune.engine.layers import substituted
from deltatune.engine.roster import Roster
from deltatune.engine.sockets import Socket, repeated, socket


class TapSocket(Socket):
    """Keeps a tensor at the border of a module for an adapter further on in the same block."""

    def __init__(self, roster: Roster) -> None:
        super().__init__(roster)
        self.sides: dict[str, Tap] = {}

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The plain call; first input and first output are noted in the roster's frame."""
        if self.roster.active is not None and "input" in self.sides:
            self.roster.frame[self.sides["input"]] = args[0] if args else next(iter(kwargs.values()))
        output = call(*args, **kwargs)
        if self.roster.active is not None and "output" in self.sides:
            self.roster.frame[self.sides["output"]] = first(output)
        return output


class SublayerSocket(Socket):
    """Adapters on one sublayer output."""

    def __init__(self, roster: Roster, site: SublayerSite, norm: nn.Module | None) -> None:
        super().__init__(roster)
        self.site = site
        self.norm = (norm,)  # in a tuple: the norm belongs to the base, not to the socket

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """h' of the active composition."""
        output = call(*args, **kwargs)
        node = self.roster.active
        here = self.here()
        if not any(name in here for name in names(node)):
            return output
        h = first(output)
        frame = self.roster.frame  # some models flatten batch and tokens between the taps
        condition = repeated(self.roster.condition, h.shape[self._dim(h)])
        residual, entry = (frame[tap].view_as(h) for tap in (self.site.residual, self.site.entry))
        stream = Block(residual, entry, self.norm[0], self._dim(h), condition, self.here())
        changed = self._rows(node, h, stream) if isinstance(node, Rows) else self._composed(node, h, stream)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    def _composed(self, node: Any, h: Tensor, stream: "Block") -> Tensor:
        return evaluate(node, self.here(), lambda adapter, below: adapter(below, stream), h, weighted)

    def _rows(self, node: Rows, h: Tensor, stream: "Block") -> Tensor:
        dim = self._dim(h)
        groups = expand_rows(node, h.shape[dim], self.site.path)

        def part(child: Any, rows: list[int]) -> Tensor:
            return self._composed(child, chosen(h, rows, dim), stream.rows(rows, dim))

        return by_rows(groups, part, dim)

    def _dim(self, h: Tensor) -> int:
        return self.roster.batch_dim if h.dim() > 2 else 0


class Block:
    """What surrounds a sublayer output (see `core.site.Stream`)."""

    def __init__(
        self,
        residual: Tensor,
        entry: Tensor,
        norm: nn.Module | None,
        batch_dim: int,
        condition: Tensor | None,
        here: Mapping[str, SublayerAdapter],
    ) -> None:
        self.residual, self.entry, self.norm, self.batch_dim = residual, entry, norm, batch_dim
        self.condition, self.here = condition, here

    def normed(self, h: Tensor) -> Tensor:
        """norm(h + residual), by the block's own norm."""
        total = h + self.residual
        return total if self.norm is None else substituted(self.norm, {})(total)

    def rows(self, rows: Sequence[int], dim: int) -> "Block":
        """The same for some rows of the batch."""
        condition = None if self.condition is None else chosen(self.condition, rows, 0)
        residual, entry = chosen(self.residual, rows, dim), chosen(self.entry, rows, dim)
        return Block(residual, entry, self.norm, dim, condition, self.here)

    def adapter(self, name: str) -> SublayerAdapter:
        """Another adapter at this site; raises `AdapterError` when there is none of this name."""
        if name not in self.here:
            raise AdapterError(f"no adapter {name!r} at this sublayer", hint=f"here are {', '.join(sorted(self.here))}")
        return self.here[name]


def plug_sublayer(model: nn.Module, roster: Roster, site: SublayerSite, name: str, adapter: SiteAdapter) -> None:
    """Puts an adapter on a sublayer output, with taps where it reads the block."""
    norm = model.get_submodule(site.norm) if site.norm else None
    socket(model.get_submodule(site.path), "sublayer", partial(SublayerSocket, roster, site, norm)).plug(name, adapter)
    for tap in (site.residual, site.entry):
        tapped: TapSocket = socket(model.get_submodule(tap.path), "tap", partial(TapSocket, roster))
        tapped.sides[tap.side] = tap
        tapped.plug(name, nn.Identity())


def first(output: Any) -> Tensor:
    """The tensor of a module's output, or the first of several."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found
