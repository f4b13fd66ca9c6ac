"""The per-step hook of methods, in whichever loop trains: Trainer, TRL, Lightning, ours, or a plain one.

One hook on all torch optimizers looks whether the optimizer holds tensors of a watched adapter.
"""

import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from deltatune.core.method import Progress
from deltatune.engine.roster import Attached

_watched: "weakref.WeakSet[Attached]" = weakref.WeakSet()
_installed: list[Any] = []


def watch(attached: Attached) -> None:
    """Calls the method's `after_step` after every optimizer step on this adapter's tensors."""
    _watched.add(attached)
    if not _installed:
        _installed.append(register_optimizer_step_post_hook(_after_step))


def forget(attached: Attached) -> None:
    """Stops watching an adapter."""
    _watched.discard(attached)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    for attached in list(_watched):
        if any(id(p) in held for module in attached.placed.modules() for p in module.parameters()):
            attached.steps += 1
            attached.method.after_step(attached.placed, Progress(attached.steps, attached.total_steps, optimizer))
