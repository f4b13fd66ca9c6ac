"""The training loop, from top to bottom.

for every optimizer step:
    for every micro-batch:  backward of task.loss(model(batch)) * units / units of the step
    a loss or gradient that is not finite stops here, before the weights (guards.py)
    clip, step, schedule
    now and then: log; evaluate, keep the best adapter, write a checkpoint, stop early
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deltatune.core.config import TrainingSettings
from deltatune.data.batch import collate
from deltatune.engine.attach import Handle
from deltatune.engine.conditions import told
from deltatune.train.checkpoint import Training
from deltatune.train.distill import Distillation
from deltatune.train.gradient import accumulate, clip, gradient_norm
from deltatune.train.job import Job, Trained
from deltatune.train.memory import forget_peak, peak_memory_bytes
from deltatune.train.optimizer import current_rate, make_optimizer, make_schedule
from deltatune.train.plan import Plan, Position, Step
from deltatune.train.progress import Progress
from deltatune.train.records import Records
from deltatune.train.signals import Signals, Stopped
from deltatune.train.stopping import Best
from deltatune.train.window import Window

__all__ = ["Job", "Stopped", "Trained", "check", "train"]


def train(job: Job, *, resume: bool = False) -> Trained:
    """Trains an attached adapter; the best one by the validation metric is in the handle at the end.

    Raises `Stopped` after Ctrl-C or SIGTERM, with the state saved, `DeltatuneError` with a diagnosis when losses are
    not finite again and again, `StorageError` when the disk refuses again and again.
    """
    settings, handle = job.settings, job.handle
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    plan = Plan.of(job.examples, settings, accelerator.num_processes)
    network = _network(accelerator, handle, settings)
    training = _beginning(job, plan, accelerator.device)
    distillation = training.distillation
    parameters = [*handle.parameters(), *(distillation.parameters() if distillation else ())]
    records = Records(job, plan, accelerator)
    backward = _backward(job, accelerator, plan, network, training)
    forget_peak()
    with records.locked(), Signals() as signals:
        if resume:
            records.resume(training)
        quiet = job.quiet or not records.main
        with Progress(plan.total, training.position, quiet=quiet) as progress, records.stacks() as stacks:
            for step in _steps(plan, training):
                position, started = training.position, time.perf_counter()
                with stacks.step(position.step + 1):
                    loss = backward(step)
                    norm = gradient_norm(parameters)
                    if training.guards.pass_on(loss, norm):
                        clip(parameters, settings.max_grad_norm, norm)
                        training.optimizer.step()
                        training.schedule.step()
                        training.window.add(loss, norm)
                        records.spike(training, loss)
                    else:
                        records.bad_step(training, step, loss, norm)
                training.optimizer.zero_grad(set_to_none=True)
                if training.position is not position:  # a checkpoint came back
                    continue
                plan.advance(position, step)
                position.seconds += time.perf_counter() - started
                progress.step(position.step)
                if training.window.steps and _logs(position, plan, settings):
                    line = training.window.line(position, current_rate(training.schedule, training.rate))
                    records.log(line)
                    progress.log(line)
                if _evaluates(position, plan, settings):
                    _evaluate(job, training, records, progress)
                if received := signals.received(accelerator):
                    records.checkpoint(training, tries=1)
                    raise Stopped(received, job.folder.path)
    training.best.restore(handle)
    return _amounted(training, plan)


def _amounted(training: Training, plan: Plan) -> Trained:
    position, best, memory = training.position, training.best, peak_memory_bytes()
    stopped = "no better metric for a while" if position.step < plan.total else "done"
    return Trained(
        position.step, position.seconds, position.tokens, memory, best.step, best.value, stopped, training.rate
    )


def check(job: Job, metrics: Mapping[str, Any]) -> None:
    """Raises `SettingsError` for what a training would stop at later; `metrics` are some evaluation's."""
    Best.of(job.settings, job.task).value_in(metrics)
    plan = Plan.of(job.examples, job.settings)
    make_optimizer(job.handle, job.settings, job.handle.method.learning_rate)
    job.handle.expect_steps(plan.total)


def _network(accelerator: Accelerator, handle: Handle, settings: TrainingSettings) -> nn.Module:
    """The network on its device and in its mode, wrapped for several processes when there are several."""
    handle.model.to(accelerator.device)
    if settings.gradient_checkpointing:
        handle.checkpoint()
    handle.model.train(settings.base_dropout)  # the base is frozen: its dropout only adds noise
    handle.train_mode(True)
    network: nn.Module = accelerator.prepare(handle.model) if accelerator.num_processes > 1 else handle.model
    return network


def _backward(
    job: Job, accelerator: Accelerator, plan: Plan, network: nn.Module, training: Training
) -> Callable[[Step], Tensor]:
    """What computes loss and gradient of a step; one process alone cuts its passes where memory does not suffice."""

    def whole(step: Step) -> Tensor:
        return accumulate(job, accelerator, network, training.position.step + 1, step, training.distillation)

    def fitted(step: Step) -> Tensor:
        return training.room.fitted(step, plan.batches.lengths, job.handle, whole, training.optimizer.zero_grad)

    return whole if accelerator.num_processes > 1 else fitted


def _steps(plan: Plan, training: Training) -> Iterator[Step]:
    """The steps from where a training stands, until patience is over; anew when a checkpoint came back."""
    position = None
    while position is not training.position:
        position = training.position
        for step in plan.steps(position):
            if training.best.patience_over:
                return
            yield step
            if training.position is not position:
                break


def _beginning(job: Job, plan: Plan, device: torch.device) -> Training:
    """A training before its first step."""
    settings, handle = job.settings, job.handle
    rate = settings.learning_rate or handle.method.learning_rate
    handle.expect_steps(plan.total)
    distillation = _distillation(job, device)
    optimizer = make_optimizer(handle, settings, rate, distillation.parameters() if distillation else ())
    schedule = make_schedule(optimizer, settings, plan.total)
    best = Best.of(settings, job.task)
    return Training(handle, optimizer, schedule, rate, Window(device), Position(), best, distillation=distillation)


def _distillation(job: Job, device: torch.device) -> Distillation | None:
    """What a teacher adds to the loss, tried on the first row."""
    settings = job.settings.distillation
    if settings is None or job.teacher is None:
        assert settings is None and job.teacher is None, "a teacher and its settings come together"
        return None
    job.teacher.model.to(device)
    distillation = Distillation(settings, job.teacher, job.task)
    batch = {name: t.to(device) for name, t in collate(job.task, job.examples[:1], job.processor).items()}
    with told(job.handle.model, batch):
        distillation.prepare(job.handle.model, [0], batch, job.settings.seed)
    return distillation


def _logs(position: Position, plan: Plan, settings: TrainingSettings) -> bool:
    """Whether a line of the log is due."""
    return position.step % settings.logging_steps == 0 or position.step == plan.total


def _evaluates(position: Position, plan: Plan, settings: TrainingSettings) -> bool:
    """Whether an evaluation is due: every `eval_steps`, or after each epoch, and always at the end."""
    due = position.step % settings.eval_steps == 0 if settings.eval_steps else position.batch == 0
    return due or position.step == plan.total


def _evaluate(job: Job, training: Training, records: Records, progress: Progress) -> None:
    """Scores the validation rows, keeps the adapter if it is the best so far, and writes a checkpoint."""
    metrics: dict[str, Any] = job.evaluate()
    records.log({"step": training.position.step, "validation": metrics})
    if job.handle.ready and training.best.better(metrics, training.position.step):
        training.best.keep(job.handle)
        records.best()
    progress.evaluated(metrics, training.best)
    records.checkpoint(training)
