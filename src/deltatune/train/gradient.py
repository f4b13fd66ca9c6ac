"""Gradient of one optimizer step: micro-batches weighted so that their number changes nothing."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deltatune.core.task import TRUNK, Batch, Example, inputs_of
from deltatune.data.batch import collate
from deltatune.engine.conditions import told
from deltatune.train.distill import Distillation
from deltatune.train.job import Job
from deltatune.train.plan import Step


def accumulate(
    job: Job,
    accelerator: Accelerator,
    network: nn.Module,
    number: int,
    step: Step,
    distillation: Distillation | None = None,
) -> Tensor:
    """Backward through every micro-batch of step `number`; returns the loss, the mean over its supervised units.

    The method's penalty is added once, whatever the number of micro-batches and processes.
    """
    shares = [_share(job, accelerator, number, rows) for rows in step]
    units = _units(accelerator, sum(weight for _, _, weight in shares))
    penalty = job.handle.penalty()
    total = torch.zeros((), device=accelerator.device)
    for index, (rows, batch, weight) in enumerate(shares, start=1):
        last = index == len(shares)
        with nullcontext() if last else accelerator.no_sync(network), told(job.handle.model, batch):
            loss = _loss(job, network, rows, batch, distillation) * (weight / units)
            total += loss.detach()
            loss = loss * accelerator.num_processes  # accelerate averages the gradients of the processes
            accelerator.backward(loss + penalty if last and penalty is not None else loss)
    if accelerator.num_processes > 1:
        total = accelerator.reduce(total, reduction="sum")
        for parameter in distillation.parameters() if distillation else ():  # no part of the wrapped network
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
    return total if penalty is None else total + penalty.detach()


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def clip(parameters: Sequence[nn.Parameter], limit: float | None, norm: Tensor) -> None:
    """Scales gradients of this norm down to the limit; none leaves them."""
    if limit is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def batch_of(job: Job, device: torch.device, number: int, rows: Sequence[int]) -> Batch:
    """The rows as they are shown at step `number`."""
    batch = collate(job.task, [_augmented(job, number, row) for row in rows], job.processor)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _loss(job: Job, network: nn.Module, rows: Sequence[int], batch: Batch, distillation: Distillation | None) -> Tensor:
    """The task's loss, and the teacher's where there is one; the teacher is asked first, the adapters act last."""
    if distillation is None:
        return job.task.loss(network(**inputs_of(batch)), batch)
    answer = distillation.ask(rows, batch)
    return distillation.loss(network(**inputs_of(batch), **distillation.wanted), batch, answer)


def _share(job: Job, accelerator: Accelerator, number: int, rows: Sequence[int]) -> tuple[Sequence[int], Batch, int]:
    """The rows of a micro-batch for this process, and their weight: 0 where there are too few rows for all."""
    own = rows[accelerator.process_index :: accelerator.num_processes]
    shown = own or rows[:1]
    batch = batch_of(job, accelerator.device, number, shown)
    return shown, batch, job.task.weight(batch) if own else 0


def _augmented(job: Job, number: int, row: int) -> Example:
    """A row as it is shown at this step: the same after a resume, whatever the batches and processes."""
    example = job.examples[row]
    generator = np.random.default_rng((job.settings.seed, number, row))
    shown = job.task.augment(example, generator)
    if job.task.mixes:
        other = job.examples[int(generator.integers(len(job.examples)))]
        shown = job.task.mix(shown, job.task.augment(other, generator), generator)
    return shown if shown is example else {name: value for name, value in shown.items() if name != TRUNK}


def _units(accelerator: Accelerator, own: int) -> int:
    """Supervised units of the step in all processes."""
    if accelerator.num_processes == 1:
        return max(1, own)
    return max(1, int(accelerator.reduce(torch.tensor(own, device=accelerator.device), reduction="sum")))
