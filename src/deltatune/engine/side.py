"""Side site: the base runs without gradient, a side network reads the output of every block and has the last word."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError
from deltatune.core.site import SideSite, SiteAdapter
from deltatune.engine.compose import names
from deltatune.engine.roster import Roster
from deltatune.engine.sockets import Socket, socket
from deltatune.engine.sublayer import first


class BlockSocket(Socket):
    """Hands a block's output (and the first block's input) to the side network."""

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The plain call, noted."""
        hidden: list[Tensor] | None = self.roster.frame.get("hidden")
        if hidden is None:
            return call(*args, **kwargs)
        if not hidden:
            hidden.append((args[0] if args else kwargs["hidden_states"]).detach())
        output = call(*args, **kwargs)
        hidden.append(first(output).detach())
        return output


class SideSocket(Socket):
    """Runs a stack without gradient and replaces its last hidden state by the side network's."""

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The stack's output with another last hidden state."""
        here = self.here()
        wanted = [name for name in names(self.roster.active) if name in here]
        if not wanted:
            return call(*args, **kwargs)
        if len(wanted) > 1:
            raise AdapterError("two side networks cannot act at once", hint="activate one of them")
        hidden: list[Tensor] = []
        self.roster.frame["hidden"] = hidden
        try:
            with torch.no_grad():
                output = call(*args, **kwargs)
        finally:
            del self.roster.frame["hidden"]
        return _replaced(output, here[wanted[0]](hidden, first(output).detach()))


def plug_side(model: nn.Module, roster: Roster, site: SideSite, name: str, adapter: SiteAdapter) -> None:
    """Puts a side network beside a stack."""
    socket(model.get_submodule(site.path), "side", partial(SideSocket, roster)).plug(name, adapter)
    for path in site.blocks:
        socket(model.get_submodule(path), "block", partial(BlockSocket, roster)).plug(name, nn.Identity())


def _replaced(output: Any, last: Tensor) -> Any:
    if isinstance(output, Tensor):
        return last
    if isinstance(output, tuple):
        return (last, *output[1:])
    output["last_hidden_state"] = last
    return output
