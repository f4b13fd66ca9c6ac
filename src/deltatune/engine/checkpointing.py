"""Checkpointing of blocks: activations inside a block are computed again in backward instead of being kept.

Of our own because the one in `transformers` needs the base in training mode, with its dropout on.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deltatune.core.errors import SettingsError
from deltatune.engine.roster import Roster
from deltatune.engine.sockets import Socket, socket


class CheckpointSocket(Socket):
    """Runs a block so that only its inputs are kept for backward."""

    def run(self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The block's call; without gradients the plain one."""
        if not torch.is_grad_enabled() or self.roster.active is None:
            return call(*args, **kwargs)
        return checkpoint(call, *args, use_reentrant=False, **kwargs)


def checkpoint_blocks(model: Any, roster: Roster, name: str) -> None:
    """Checkpoints every block while the adapter `name` is attached; raises `SettingsError` without blocks."""
    blocks = [path for stack in roster.anatomy.stacks for path in stack.blocks]
    if not blocks:
        raise SettingsError(f"gradient_checkpointing has no effect: {type(model).__name__} has no repeated blocks")
    for path in blocks:
        socket(model.get_submodule(path), "checkpoint", partial(CheckpointSocket, roster)).plug(name, nn.Identity())
    roster.recomputes = True
    roster.undo.append(partial(setattr, roster, "recomputes", False))
    configs = {id(module.config): module.config for module in model.modules() if "config" in vars(module)}
    for config in configs.values():
        if getattr(config, "use_cache", False):  # a block that runs twice would fill the cache twice
            config.use_cache = False
            roster.undo.append(partial(setattr, config, "use_cache", True))
