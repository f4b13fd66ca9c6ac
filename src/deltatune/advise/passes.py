"""Passes: a training step and an evaluation of a model without values, and what they take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.advise.counting import Counting
from deltatune.core.task import Batch, Task, inputs_of
from deltatune.engine.conditions import told
from deltatune.engine.handle import Handle
from deltatune.engine.valueless import META, valueless


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass takes beside weights and trained tensors."""

    peak_bytes: int
    """Most bytes at once: activations, gradients, what is made on the way."""
    kept_bytes: int
    """Bytes alive when the loss is there: what backward reads."""
    operations: float
    """Floating point operations of products, convolutions and attention."""
    moved_bytes: int
    """Bytes read and written by everything else."""
    calls: int
    """Kernels."""
    whole: bool
    """Whether the task's own loss ran; where it asks for values the sum of the output takes its place."""

    def scaled(self, less: "Pass", blocks: int) -> "Pass":
        """The pass with so many more blocks, each the difference to the pass with one block less."""

        def more(own: float, smaller: float) -> float:
            return own + blocks * (own - smaller)

        return Pass(
            round(more(self.peak_bytes, less.peak_bytes)),
            round(more(self.kept_bytes, less.kept_bytes)),
            more(self.operations, less.operations),
            round(more(self.moved_bytes, less.moved_bytes)),
            round(more(self.calls, less.calls)),
            self.whole,
        )


def step(handle: Handle, task: Task, batch: Batch, device: str) -> Pass:
    """Forward and backward over a batch, on a model without values whose adapter is active."""
    return _pass(handle.model, task, batch, device, learns=True)


def evaluation(handle: Handle, task: Task, batch: Batch, device: str) -> Pass:
    """A forward pass over a batch without gradient."""
    return _pass(handle.model, task, batch, device, learns=False)


def _pass(model: nn.Module, task: Task, batch: Batch, device: str, *, learns: bool) -> Pass:
    there = {name: tensor.to(META) for name, tensor in batch.items()}
    failures = []
    for loss_of in (task.loss, _sum_of_output):
        try:
            with valueless(device):
                return counted(model, there, loss_of, learns=learns, whole=loss_of is not _sum_of_output)
        except Exception as error:  # whatever a loss may raise that asks for values
            failures.append(error)
            _forget(model)
    raise failures[-1]


def counted(
    model: nn.Module, batch: Batch, loss_of: Callable[[Any, Batch], Tensor], *, learns: bool, whole: bool = True
) -> Pass:
    """What a pass over a batch takes, with values or without; gradients are dropped behind it."""
    counting = Counting([*model.parameters(), *model.buffers(), *batch.values()])
    with torch.set_grad_enabled(learns), counting, told(model, batch):
        output = model(**inputs_of(batch))
        loss = loss_of(output, batch)
        kept = counting.alive
        del output
        if learns:
            loss.backward()  # type: ignore[no-untyped-call]
    del loss
    _forget(model)
    return Pass(counting.peak, kept, counting.operations, counting.moved, counting.calls, whole)


def _forget(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def _sum_of_output(output: Any, batch: Batch) -> Tensor:
    values = [value for value in output.values() if isinstance(value, Tensor) and value.is_floating_point()]
    return torch.stack([value.float().sum() for value in values if value.requires_grad or len(values) == 1]).sum()
