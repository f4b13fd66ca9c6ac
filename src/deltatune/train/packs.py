"""Packs: which trainings share their passes over the base.

They must show the same rows in the same order. Whether their adapters can act side by side is tried on two rows:
losses must be those of each adapter alone, and nothing may be drawn at random, which would make them other trainings.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deltatune.core.errors import DeltatuneError
from deltatune.core.task import inputs_of
from deltatune.engine.conditions import told
from deltatune.engine.together import split, together
from deltatune.train.gradient import shared
from deltatune.train.job import Job

logger = logging.getLogger("deltatune")

OWN = {
    "learning_rate",
    "loraplus_lr_ratio",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_steps",
    "max_grad_norm",
    "early_stopping_patience",
    "metric_for_best_model",
    "eval_steps",
    "logging_steps",
    "save_total_limit",
}
"""Training settings that trainings which share their passes may have otherwise."""
NUDGE = 0.02
"""How far weights are moved while it is tried: many adapters start as no change at all."""


class Apart(Exception):
    """Why adapters cannot act side by side."""


def packs(jobs: Sequence[Job], limit: int) -> list[list[Job]]:
    """The jobs in groups of at most `limit` that share their passes; those that cannot are alone."""
    found: list[list[Job]] = []
    for job in jobs:
        home = next((pack for pack in found if len(pack) < limit and _agree([*pack, job])), None)
        if home is None:
            found.append([job])
        else:
            home.append(job)
    return found


def _agree(jobs: Sequence[Job]) -> bool:
    first, *rest = [job.settings.model_dump(exclude=OWN) for job in jobs]
    if any(other != first for other in rest) or jobs[0].settings.distillation is not None:
        return False
    try:
        _try(jobs)
    except (Apart, DeltatuneError, RuntimeError, ValueError) as reason:
        logger.info("%s trains in passes of its own: %s", jobs[-1].handle.name, reason)
        return False
    return True


def _try(jobs: Sequence[Job]) -> None:
    """Raises `Apart`, or what the model raises, when the losses of two rows are not those of each adapter alone."""
    lead = jobs[0]
    model, task = lead.handle.model, lead.task
    share = shared(jobs, lead.examples[:2], [0, 1][: len(lead.examples)], next(model.parameters()).device)
    with _nudged(jobs), torch.no_grad():
        drawn = _random_state()
        alone = torch.stack([_alone(job, share.batch) for job in jobs])
        if any(not torch.equal(a, b) for a, b in zip(drawn, _random_state(), strict=True)):
            raise Apart("it draws random numbers")
        with together([job.handle for job in jobs], len(share.rows), share.batch, share.repeated):
            outputs = split(model(**inputs_of(share.repeated)), len(jobs))
        beside = torch.stack([task.loss(output, share.batch) for output in outputs])
    tolerance = 0.05 if next(model.parameters()).dtype == torch.bfloat16 else 1e-3
    if not torch.allclose(alone, beside, rtol=tolerance, atol=tolerance):
        raise Apart(f"losses side by side are {beside.tolist()}, alone {alone.tolist()}")


def _alone(job: Job, batch: dict[str, Tensor]) -> Tensor:
    model = job.handle.model
    with job.handle.roster.activated(job.handle.name), told(model, batch):
        return job.task.loss(model(**inputs_of(batch)), batch)


@contextmanager
def _nudged(jobs: Sequence[Job]) -> Iterator[None]:
    """Adapters in training mode with weights moved a little inside the block; weights and modes are restored."""
    model = jobs[0].handle.model
    modes = {module: module.training for module in model.modules()}
    weights = [(tensor, tensor.detach().clone()) for job in jobs for tensor in job.handle.parameters()]
    generator = torch.Generator().manual_seed(0)
    model.train(jobs[0].settings.base_dropout)
    for job in jobs:
        job.handle.train_mode(True)
    try:
        with torch.no_grad():
            for tensor, _ in weights:
                tensor.add_((torch.randn(tensor.shape, generator=generator) * NUDGE).to(tensor))
        yield
    finally:
        with torch.no_grad():
            for tensor, before in weights:
                tensor.copy_(before)
        _restore(modes)


def _restore(modes: dict[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]
