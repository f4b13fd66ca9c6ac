"""Compiled blocks: `torch.compile` for each block of a model, in training.

One graph holds a block with its adapters. It must not know which adapter acts, or each would be compiled for itself:
while it runs, every socket inside holds the acting adapter alone, under the name `ACTING`. Blocks and adapters of one
make share a graph then; the first block, whose input needs no gradient, has one of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

from deltatune.core.errors import SettingsError
from deltatune.engine.blocks import DELTAS
from deltatune.engine.layers import original_class
from deltatune.engine.roster import Roster
from deltatune.engine.sockets import PREFIX, Socket, socket

KEY = "graph"
ACTING = "acting"
"""The name of whichever adapter acts, as the compiled code sees it."""
GRAPHS = 64
"""Graphs of one block that torch may keep (its own limit is 8): with and without a gradient, one row or several."""


class CompiledSocket(Socket):
    """Runs a block as one compiled graph while gradients are computed."""

    def __init__(self, roster: Roster, compiled: Callable[..., Any]) -> None:
        super().__init__(roster)
        self.compiled = compiled

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The block's call; without gradients, or when another adapter acts, the plain one.

        Raises `SettingsError` where torch cannot make one graph of it.
        """
        name = self.roster.active
        if not torch.is_grad_enabled() or not isinstance(name, str) or PREFIX + name not in self.adapters:
            return call(*args, **kwargs)
        with self._alone(module, name):
            try:
                return self.compiled(module, *args, **kwargs)
            except TorchDynamoException as error:
                raise SettingsError(_said(module, error), hint="leave training.compile out") from error

    @contextmanager
    def _alone(self, module: nn.Module, name: str) -> Iterator[None]:
        """Inside the block this adapter alone is in every socket, under the name that the graph knows."""
        sockets = _inside(module)
        before = [one.adapters._modules for one in sockets]
        for one, adapters in zip(sockets, before, strict=True):
            one.adapters._modules = {
                renamed: adapter for key, adapter in adapters.items() if (renamed := _renamed(key, name)) is not None
            }
        self.roster.active = ACTING
        try:
            yield
        finally:
            self.roster.active = name
            for one, adapters in zip(sockets, before, strict=True):
                one.adapters._modules = adapters


def compile_blocks(model: nn.Module, roster: Roster, name: str, backend: str = "inductor") -> None:
    """Compiles every block while the adapter `name` is attached and acts; raises `SettingsError` without blocks."""
    blocks = [path for stack in roster.anatomy.stacks for path in stack.blocks]
    if not blocks:
        raise SettingsError(f"compile has no effect: {type(model).__name__} has no repeated blocks")
    if roster.adapters[name].parts:
        raise SettingsError(
            f"{roster.adapters[name].method.type} acts with other adapters, which is not compiled",
            hint="leave training.compile out",
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    own = FunctionType(_run.__code__.replace(), globals())  # graphs are kept with the code: each model has its own
    compiled = torch.compile(own, fullgraph=True, dynamic=True, backend=backend)
    for path in blocks:
        socket(model.get_submodule(path), KEY, partial(CompiledSocket, roster, compiled)).plug(name, nn.Identity())


def _run(module: Any, *args: Any, **kwargs: Any) -> Any:
    """A block with the sockets inside of the compiled one, as its class runs them."""
    call: Callable[..., Any] = partial(original_class(module).forward, module)
    for key, plugged in module.deltas.items():
        if key == KEY:
            break
        call = partial(plugged.run, module, call)
    return call(*args, **kwargs)


def _inside(block: Any) -> list[Any]:
    """The sockets that the compiled code runs."""
    found = []
    for module in block.modules():
        for key, plugged in getattr(module, "_modules", {}).get(DELTAS, {}).items():
            if module is block and key == KEY:
                break
            found.append(plugged)
    return found


def _renamed(key: str, name: str) -> str | None:
    """The key of an adapter with its name replaced; None for those of others.

    >>> _renamed("adapter_a", "a"), _renamed("adapter_weight/a", "a"), _renamed("adapter_b", "a")
    ('adapter_acting', 'adapter_weight/acting', None)
    """
    tensor, slash, last = key.removeprefix(PREFIX).rpartition("/")
    return f"{PREFIX}{tensor}{slash}{ACTING}" if last == name else None


def _said(module: nn.Module, error: TorchDynamoException) -> str:
    what = "compiler" if isinstance(error, BackendCompilerFailed) else "tracer"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{original_class(module).__name__} cannot be compiled; torch's {what} says: {first}"
