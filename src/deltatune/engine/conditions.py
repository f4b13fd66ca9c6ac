"""Conditions: what a batch says besides its inputs, told to the model: task ids, and hidden states that are known."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from deltatune.core.task import CONDITION, TRUNK, Batch
from deltatune.engine.compose import names
from deltatune.engine.handle import Handle
from deltatune.engine.roster import roster_of


@contextmanager
def told(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Inside the block the rows have the batch's conditions, and skip the trunk where it is known for them.

    Raises `AdapterError` for a condition that an active adapter cannot have.
    """
    with ExitStack() as stack:
        if CONDITION in batch:
            for name in dict.fromkeys(names(roster_of(model).active)):
                stack.enter_context(Handle(model, name).conditioned(batch[CONDITION]))
        if TRUNK in batch and (trunk := roster_of(model).trunk) is not None:
            stack.enter_context(trunk.replaying(batch))
        yield
