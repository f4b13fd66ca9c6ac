"""Together: several adapters in one pass over the base they share.

The rows of a batch stand once for each adapter, side by side. Rows do not depend on their neighbours, so outputs and
gradients are those of a pass for each adapter alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from deltatune.core.task import TRUNK, Batch
from deltatune.engine.compose import Rows
from deltatune.engine.conditions import told
from deltatune.engine.handle import Handle


@contextmanager
def together(handles: Sequence[Handle], rows: int, batch: Batch, repeated: Batch) -> Iterator[None]:
    """Inside the block a pass with `repeated` runs each adapter on its own copy of `batch`, which has so many rows.

    A trunk whose output is not kept for these rows runs once for all copies. Raises `AdapterError` for adapters that
    cannot act on single rows.
    """
    lead = handles[0]
    trunk = lead.roster.trunk
    with ExitStack() as stack:
        stack.enter_context(lead.roster.activated(Rows([handle.name for handle in handles for _ in range(rows)])))
        stack.enter_context(told(lead.model, repeated))
        if trunk is not None and TRUNK not in repeated:
            stack.enter_context(trunk.running_once(batch, len(handles)))
        yield


def split(output: Any, times: int) -> list[Any]:
    """A model's output in equal parts along the batch, in the form it has; what is no tensor stands in each part.

    >>> import torch
    >>> split({"logits": torch.tensor([[1], [2]]), "loss": None}, 2)
    [{'logits': tensor([[1]]), 'loss': None}, {'logits': tensor([[2]]), 'loss': None}]
    """
    if isinstance(output, Tensor):
        return list(output.chunk(times)) if output.dim() and len(output) % times == 0 else [output] * times
    if isinstance(output, Mapping):
        parts = {key: split(value, times) for key, value in output.items()}
        make: Any = type(output)
        return [make(**{key: part[index] for key, part in parts.items()}) for index in range(times)]
    if isinstance(output, tuple | list):
        return [type(output)(part) for part in zip(*(split(value, times) for value in output), strict=True)] or [
            output
        ] * times
    return [output] * times
