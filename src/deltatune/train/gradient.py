"""Gradient of one optimizer step: micro-batches weighted so that their number changes nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deltatune.core.task import TRUNK, Batch, Example, inputs_of
from deltatune.data.batch import collate
from deltatune.engine.conditions import told
from deltatune.engine.together import split, together
from deltatune.train.distill import Distillation
from deltatune.train.job import Job
from deltatune.train.plan import Step


class Share(NamedTuple):
    """What one process does of a micro-batch."""

    rows: Sequence[int]
    batch: Batch
    repeated: Batch
    """The rows once for each adapter; the batch itself where there is one."""
    weight: int
    """Supervised units; 0 where there are too few rows for all processes."""


def accumulate(
    jobs: Sequence[Job],
    accelerator: Accelerator,
    network: nn.Module,
    number: int,
    step: Step,
    distillation: Distillation | None = None,
) -> list[Tensor]:
    """Backward through every micro-batch of step `number`; each job's loss, the mean over its supervised units.

    Several jobs share each pass. A method's penalty is added once, whatever the number of micro-batches and processes.
    """
    shares = [_share(jobs, accelerator, number, rows) for rows in step]
    units = _units(accelerator, sum(share.weight for share in shares))
    penalties = [job.handle.penalty() for job in jobs]
    totals = torch.zeros(len(jobs), device=accelerator.device)
    for index, share in enumerate(shares, start=1):
        last = index == len(shares)
        with nullcontext() if last else accelerator.no_sync(network), _acting(jobs, share):
            losses = torch.stack(_losses(jobs, network, share, distillation)) * (share.weight / units)
            totals += losses.detach()
            loss = losses.sum() * accelerator.num_processes  # accelerate averages the gradients of the processes
            accelerator.backward(sum((p for p in penalties if last and p is not None), start=loss))
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals, reduction="sum")
        for parameter in distillation.parameters() if distillation else ():  # no part of the wrapped network
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
    return [t if p is None else t + p.detach() for t, p in zip(totals.unbind(), penalties, strict=True)]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def clip(parameters: Sequence[nn.Parameter], limit: float | None, norm: Tensor) -> None:
    """Scales gradients of this norm down to the limit; none leaves them."""
    if limit is not None:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def batch_of(job: Job, device: torch.device, number: int, rows: Sequence[int]) -> Batch:
    """The rows as they are shown at step `number`."""
    return _collated(job, [_augmented(job, number, row) for row in rows], device)


@contextmanager
def _acting(jobs: Sequence[Job], share: Share) -> Iterator[None]:
    """The adapters that are trained act, and the model is told of the rows; of several adapters, which are whose."""
    first, *others = [job.handle for job in jobs]
    if others:
        with together([first, *others], len(share.rows), share.batch, share.repeated):
            yield
    else:
        with first.roster.activated(first.name), told(first.model, share.batch):
            yield


def _losses(
    jobs: Sequence[Job], network: nn.Module, share: Share, distillation: Distillation | None = None
) -> list[Tensor]:
    """The task's losses, and the teacher's where there is one; the teacher is asked first, the adapters act last."""
    task, batch = jobs[0].task, share.batch
    if distillation is not None:
        answer = distillation.ask(share.rows, batch)
        return [distillation.loss(network(**inputs_of(batch), **distillation.wanted), batch, answer)]
    output = network(**inputs_of(share.repeated))
    return [task.loss(part, batch) for part in (split(output, len(jobs)) if len(jobs) > 1 else [output])]


def _share(jobs: Sequence[Job], accelerator: Accelerator, number: int, rows: Sequence[int]) -> Share:
    """The rows of a micro-batch for this process."""
    own = rows[accelerator.process_index :: accelerator.num_processes]
    shown = own or rows[:1]
    share = shared(jobs, [_augmented(jobs[0], number, row) for row in shown], shown, accelerator.device)
    return share if own else share._replace(weight=0)


def shared(jobs: Sequence[Job], examples: Sequence[Example], rows: Sequence[int], device: torch.device) -> Share:
    """Examples as a batch, and again with each of them once per job."""
    one = _collated(jobs[0], examples, device)
    repeated = _collated(jobs[0], [*examples] * len(jobs), device) if len(jobs) > 1 else one
    return Share(rows, one, repeated, jobs[0].task.weight(one))


def _collated(job: Job, examples: Sequence[Example], device: torch.device) -> Batch:
    batch = collate(job.task, examples, job.processor)
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


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
