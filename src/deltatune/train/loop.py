"""The training loop, from top to bottom.

for every optimizer step:
    for every micro-batch:  backward of task.loss(model(batch)) * units / units of the step
    for every adapter that is trained (runner.py):
        a loss or gradient that is not finite stops here, before the weights (guards.py)
        clip, step, schedule
        now and then: log; evaluate, keep the best adapter, write a checkpoint, stop early
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deltatune.core.config import TrainingSettings
from deltatune.core.errors import DeltatuneError
from deltatune.engine.attach import Handle
from deltatune.train.energy import measuring, meters
from deltatune.train.gradient import accumulate
from deltatune.train.job import Job, Trained
from deltatune.train.memory import forget_peak, keep_freed_memory
from deltatune.train.optimizer import make_optimizer
from deltatune.train.plan import Plan, Step
from deltatune.train.progress import Progress
from deltatune.train.runner import Runner
from deltatune.train.signals import Signals, Stopped
from deltatune.train.stopping import Best

__all__ = ["Job", "Stopped", "Trained", "check", "train", "train_together"]


def train(job: Job, *, resume: bool = False) -> Trained:
    """Trains an attached adapter; the best one by the validation metric is in the handle at the end.

    Raises `Stopped` after Ctrl-C or SIGTERM, with the state saved, `DeltatuneError` with a diagnosis when losses are
    not finite again and again, `StorageError` when the disk refuses again and again.
    """
    (done,) = train_together([job], resume=resume)
    if isinstance(done, DeltatuneError):
        raise done
    return done


def train_together(jobs: Sequence[Job], *, resume: bool = False) -> list[Trained | DeltatuneError]:
    """Trains several adapters on one base, which show the same rows in the same order, in passes they share.

    What each amounted to; the diagnosis where losses were not finite again and again, which does not stop the others.
    Raises as `train` does else.
    """
    lead = jobs[0]
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    plan = Plan.of(lead.examples, lead.settings, accelerator.num_processes, lead.content)
    network = _network(accelerator, [job.handle for job in jobs], lead.settings)
    runners = [Runner(job, plan, accelerator) for job in jobs]
    forget_peak()
    keep_freed_memory()
    with ExitStack() as stack:
        spent = stack.enter_context(measuring(meters(lead.settings.watts_per_core)))
        for runner in runners:
            stack.enter_context(runner.records.locked())
        signals = stack.enter_context(Signals())
        if resume:
            for runner in runners:
                runner.resume()
        for runner in runners:
            stack.enter_context(runner.records.watched())
        quiet = lead.quiet or not runners[0].records.main
        start, unit = runners[0].training.position, lead.task.counted
        progress = stack.enter_context(Progress(plan.total, start, unit=unit, quiet=quiet, together=len(runners)))
        stacks = stack.enter_context(runners[0].records.stacks())
        for step, running in _steps(plan, runners):
            started = time.perf_counter()
            with stacks.step(running[0].training.position.step + 1):
                losses = _backward(accelerator, plan, network, running)(step)
                kept = [runner for runner, loss in zip(running, losses, strict=True) if runner.step(loss, step)]
            seconds = (time.perf_counter() - started) / len(running)
            for runner in kept:
                runner.advance(step, seconds, progress)
            if kept and (received := signals.received(accelerator)):
                for runner in kept:
                    runner.records.checkpoint(runner.training, tries=1)
                raise Stopped(received, lead.folder.path)
    shares = spent().shares([runner.seconds for runner in runners])
    return [runner.failure or runner.finish(len(jobs), own) for runner, own in zip(runners, shares, strict=True)]


def check(job: Job, metrics: Mapping[str, Any]) -> None:
    """Raises `SettingsError` for what a training would stop at later; `metrics` are some evaluation's."""
    Best.of(job.settings, job.task).value_in(metrics)
    plan = Plan.of(job.examples, job.settings)
    make_optimizer(job.handle, job.settings, job.handle.method.learning_rate)
    job.handle.expect_steps(plan.total)


def _network(accelerator: Accelerator, handles: Sequence[Handle], settings: TrainingSettings) -> nn.Module:
    """The network on its device and in its mode, wrapped for several processes when there are several."""
    model = handles[0].model
    model.to(accelerator.device)
    if settings.gradient_checkpointing:
        for handle in handles:
            handle.checkpoint()
    for handle in handles if settings.compile else ():
        handle.compile()
    model.train(settings.base_dropout)  # the base is frozen: its dropout only adds noise
    for handle in handles:
        handle.train_mode(True)
    network: nn.Module = accelerator.prepare(model) if accelerator.num_processes > 1 else model
    return network


def _backward(
    accelerator: Accelerator, plan: Plan, network: nn.Module, running: Sequence[Runner]
) -> Callable[[Step], list[Tensor]]:
    """What computes losses and gradients of a step; one process alone cuts its passes where memory does not suffice."""
    jobs, lead = [runner.job for runner in running], running[0].training

    def whole(step: Step) -> list[Tensor]:
        return accumulate(jobs, accelerator, network, lead.position.step + 1, step, lead.distillation)

    def forget() -> None:
        for runner in running:
            runner.training.optimizer.zero_grad()

    def fitted(step: Step) -> list[Tensor]:
        return lead.room.fitted(step, plan.batches.lengths, [job.handle for job in jobs], whole, forget)

    return whole if accelerator.num_processes > 1 else fitted


def _steps(plan: Plan, runners: Sequence[Runner]) -> Iterator[tuple[Step, Sequence[Runner]]]:
    """The steps with those who take them, until all are over; one whose checkpoint came back goes on alone."""
    waiting = [list(runners)]
    while waiting:
        running = waiting.pop(0)
        position = running[0].training.position
        for step in plan.steps(position):
            running = [runner for runner in running if not runner.over]
            if not running:
                break
            positions = [runner.training.position for runner in running]
            yield step, running
            back = [r for r, before in zip(running, positions, strict=True) if r.training.position is not before]
            waiting += [[runner] for runner in back]
            running = [runner for runner in running if runner not in back]
