"""Diagnosis: where a loss that is not finite comes from: the first layer, its precision, the rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.task import inputs_of
from deltatune.engine.conditions import told
from deltatune.train.gradient import batch_of
from deltatune.train.job import Job
from deltatune.train.plan import Step

ROWS = 5
"""Rows that are named."""


def diagnosis(job: Job, device: torch.device, number: int, step: Step) -> str:
    """What is not finite in a step, in words; the model runs row by row, gradients are read and not changed."""
    wrong = [row for batch in step for row in batch if not _finite(job, device, number, [row])]
    if not wrong:
        names = [name for name, p in job.handle.named_parameters().items() if p.grad is not None and not _all(p.grad)]
        return f"every row alone has a finite loss; gradients that are not finite: {', '.join(names[:ROWS]) or 'none'}"
    found: list[str] = []
    with torch.no_grad():
        watched(job.handle.model, lambda: _finite(job, device, number, wrong[:1]), found.append)
    layer = found[0] if found else "the loss itself"
    return f"first not finite: {layer}, on {shown(job, wrong)}"


def shown(job: Job, rows: Sequence[int]) -> str:
    """Rows as a user knows them.

    Rows of a file by their lines, others by their numbers among the training rows.
    """
    places = [place for row in rows[:ROWS] for place in job.places(row)]
    named = [f"{place['file']}:{place['line']}" if "file" in place else f"row {place['row']}" for place in places]
    return ", ".join(named) + (f" and {len(rows) - ROWS} more" if len(rows) > ROWS else "")


def watched(model: nn.Module, run: Callable[[], Any], say: Callable[[str], None]) -> None:
    """Runs a model and says in the order of computation which modules give something that is not finite."""

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            bad = next((tensor for tensor in _tensors(output) if not _all(tensor)), None)
            if bad is not None:
                say(f"{name or 'the model'} ({str(bad.dtype).removeprefix('torch.')})")

        return look

    hooks = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        run()
    finally:
        for each in hooks:
            each.remove()


@torch.no_grad()
def _finite(job: Job, device: torch.device, number: int, rows: Sequence[int]) -> bool:
    batch = batch_of(job, device, number, rows)
    with told(job.handle.model, batch):
        return _all(job.task.loss(job.handle.model(**inputs_of(batch)), batch))


def _all(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _tensors(output: Any) -> Iterator[Tensor]:
    """Tensors of numbers in an output; masks have infinities by right and are no outputs of modules."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict | list | tuple):
        for value in output.values() if isinstance(output, dict) else output:
            yield from _tensors(value)
