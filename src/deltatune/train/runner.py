"""Runner: one training among those that take their steps together, with all that is its own.

Optimizer, schedule, clipping, log, best adapter, checkpoints and patience; only the passes over the base are shared.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from deltatune.core.errors import DeltatuneError, StorageError
from deltatune.data.batch import collate
from deltatune.engine.conditions import told
from deltatune.train.checkpoint import Training
from deltatune.train.distill import Distillation
from deltatune.train.energy import Spent
from deltatune.train.gradient import clip, gradient_norm
from deltatune.train.job import Job, Trained
from deltatune.train.memory import peak_memory_bytes
from deltatune.train.optimizer import current_rate, make_optimizer, make_schedule
from deltatune.train.plan import Plan, Position, Step
from deltatune.train.progress import Progress
from deltatune.train.records import Records
from deltatune.train.stopping import Best
from deltatune.train.window import Window


class Runner:
    """A training from its first step, or the step it is resumed at, to its best adapter."""

    def __init__(self, job: Job, plan: Plan, accelerator: Accelerator) -> None:
        settings, handle = job.settings, job.handle
        self.job, self.plan = job, plan
        handle.expect_steps(plan.total)
        distillation = _distillation(job, accelerator.device)
        others = distillation.parameters() if distillation else []
        self.parameters = [*handle.parameters(), *others]
        rate = settings.learning_rate or handle.method.learning_rate
        optimizer = make_optimizer(handle, settings, rate, others)
        schedule = make_schedule(optimizer, settings, plan.total)
        window, best = Window(accelerator.device), Best.of(settings, job.task)
        self.training = Training(handle, optimizer, schedule, rate, window, Position(), best, distillation=distillation)
        self.records = Records(job, plan, accelerator)
        self.resumed_at, self.seconds_before, self.shown = 0, 0.0, 0
        self.failure: DeltatuneError | None = None
        """Why it had to end: losses or gradients that are not finite again and again."""

    def resume(self) -> None:
        """Goes on from the newest checkpoint."""
        self.records.resume(self.training)
        self.resumed_at, self.seconds_before = self.training.position.step, self.training.position.seconds

    @property
    def seconds(self) -> float:
        """Time in its steps since it was resumed."""
        return self.training.position.seconds - self.seconds_before

    @property
    def over(self) -> bool:
        """Whether it takes no further steps although others may."""
        return self.failure is not None or self.training.best.patience_over

    def step(self, loss: Tensor, step: Step) -> bool:
        """Clip, step, schedule, unless loss or gradient is not finite; whether it stands behind this step then.

        It does not when a checkpoint came back, or when there was none and it had to end.
        """
        training, position = self.training, self.training.position
        norm = gradient_norm(self.parameters)
        if training.guards.pass_on(loss, norm):
            clip(self.parameters, self.job.settings.max_grad_norm, norm)
            training.optimizer.step()
            training.schedule.step()
            training.window.add(loss, norm)
            self.records.spike(training, loss)
        else:
            self._left_out(step, loss, norm)
        training.optimizer.zero_grad(set_to_none=True)
        return self.failure is None and training.position is position

    def advance(self, step: Step, seconds: float, progress: Progress) -> None:
        """Moves on behind a step; what is due then: a line of the log, an evaluation."""
        settings, position, training = self.job.settings, self.training.position, self.training
        self.plan.advance(position, step)
        self.shown += sum(len(batch) for batch in step)
        position.seconds += seconds
        progress.step(position.step)
        if training.window.steps and (position.step % settings.logging_steps == 0 or position.step == self.plan.total):
            line = training.window.line(position, current_rate(training.schedule, training.rate))
            self.records.log(line)
            progress.log(line, self.job.label)
        if self._evaluates():
            self._evaluate(progress)

    def finish(self, together: int, spent: Spent) -> Trained:
        """Puts the best adapter back; what the training amounted to, which so many were at once."""
        training, position, best = self.training, self.training.position, self.training.best
        best.restore(self.job.handle)
        return Trained(
            position.step,
            position.seconds,
            position.tokens,
            peak_memory_bytes(),
            best.step,
            best.value,
            "no better metric for a while" if position.step < self.plan.total else "done",
            training.rate,
            self.resumed_at,
            self.shown,
            spent,
            together,
        )

    def _left_out(self, step: Step, loss: Tensor, norm: Tensor) -> None:
        """A step that is not finite; the model is looked at with this adapter alone."""
        handle = self.job.handle
        try:
            with handle.roster.activated(handle.name):
                self.records.bad_step(self.training, step, loss, norm)
        except StorageError:
            raise
        except DeltatuneError as failure:
            self.failure = failure

    def _evaluates(self) -> bool:
        """Whether an evaluation is due: every `eval_steps`, or after each epoch, and always at the end."""
        position, every = self.training.position, self.job.settings.eval_steps
        due = position.step % every == 0 if every else position.batch == 0
        return due or position.step == self.plan.total

    def _evaluate(self, progress: Progress) -> None:
        """Scores the validation rows, keeps the adapter if it is the best so far, and writes a checkpoint."""
        job, best, step = self.job, self.training.best, self.training.position.step
        metrics: dict[str, Any] = job.evaluate()
        self.records.log({"step": step, "validation": metrics})
        if job.handle.ready and best.better(metrics, step):
            best.keep(job.handle)
            self.records.best()
        progress.evaluated(metrics, best, job.label)
        self.records.checkpoint(self.training)


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
