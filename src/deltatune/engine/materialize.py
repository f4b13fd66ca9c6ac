"""Materialize: a conditional adapter, for one condition for good, as the plain adapter that does the same."""

import torch
from torch import Tensor

from deltatune.core import registry
from deltatune.core.errors import AdapterError
from deltatune.engine.attach import attach
from deltatune.engine.handle import Handle
from deltatune.engine.tensors import copy_strictly


def materialize(handle: Handle, condition: int | Tensor, *, name: str) -> Handle:
    """Attaches the plain adapter with equal outputs for a task id or a vector [C]; it becomes the active one.

    Raises `AdapterError` for an adapter that is not conditional and for an impossible condition.
    """
    attached = handle.attached
    settings = attached.method.materialized()
    if settings is None:
        raise AdapterError(f"adapter {handle.name!r} ({attached.method.type}) has no condition to be materialized for")
    given = torch.as_tensor(condition, device=handle.parameters()[0].device)
    attached.method.check_condition(given.unsqueeze(0))
    plain = attach(handle.model, registry.method(settings), name=name)
    with torch.no_grad():
        for path, module in plain.attached.placed.sites.items():
            copy_strictly(attached.placed.sites[path].materialized(given), module.state_dict())
        for path, module in plain.attached.saved.items():
            copy_strictly(attached.saved[path].state_dict(), module.state_dict())
    plain.train_mode(False)
    return plain
