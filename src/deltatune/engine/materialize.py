"""Materialize: an adapter as the plain one that does the same, for one condition for good where it takes one."""

import torch
from torch import Tensor

from deltatune.core import registry
from deltatune.core.errors import AdapterError
from deltatune.core.method import Method
from deltatune.engine.attach import attach
from deltatune.engine.handle import Handle
from deltatune.engine.tensors import copy_strictly


def materialize(handle: Handle, condition: int | Tensor | None = None, *, name: str) -> Handle:
    """Attaches the plain adapter with equal outputs, for a task id or a vector [C] if it is conditional.

    It becomes the active one. Raises `AdapterError` for an adapter that is plain already, an impossible condition, a
    missing one, and one that has no effect.
    """
    attached = handle.attached
    settings = attached.method.materialized()
    if settings is None:
        raise AdapterError(f"adapter {handle.name!r} ({attached.method.type}) has no condition to be materialized for")
    conditional = type(attached.method).check_condition is not Method.check_condition
    if conditional != (condition is not None):
        said = "needs a condition" if conditional else "takes no condition"
        raise AdapterError(f"adapter {handle.name!r} ({attached.method.type}) {said} to be materialized for")
    given = torch.as_tensor(0 if condition is None else condition, device=handle.parameters()[0].device)
    attached.method.check_condition(given.unsqueeze(0))
    plain = attach(handle.model, registry.method(settings), name=name)
    with torch.no_grad():
        for path, module in plain.attached.placed.sites.items():
            copy_strictly(attached.placed.sites[path].materialized(given), module.state_dict())
        for path, module in plain.attached.saved.items():
            copy_strictly(attached.saved[path].state_dict(), module.state_dict())
    plain.train_mode(False)
    return plain
