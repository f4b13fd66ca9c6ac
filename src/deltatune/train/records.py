"""Records: what a training writes, by the main process alone.

A disk that refuses costs a warning and another try at the next turn; the third refusal in a row ends the training.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from deltatune.core.errors import DeltatuneError, StorageError
from deltatune.store.run import writing
from deltatune.store.state import random_state
from deltatune.train import checkpoint
from deltatune.train.checkpoint import Training
from deltatune.train.diagnosis import diagnosis
from deltatune.train.job import Job
from deltatune.train.plan import Plan, Step
from deltatune.train.sinks import Sinks, opened
from deltatune.train.stacks import Stacks

logger = logging.getLogger("deltatune")

TRIES = 3


class Records:
    """The run folder as a training sees it."""

    def __init__(self, job: Job, plan: Plan, accelerator: Accelerator) -> None:
        self.job = job
        self.plan = plan
        self.accelerator = accelerator
        self.main = bool(accelerator.is_main_process)
        self.written: int | None = None
        """Step of the newest checkpoint."""
        self.failures: Counter[str] = Counter()
        self.sinks = Sinks([])

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other trainings out of the run folder."""
        return self.job.folder.locked() if self.main else nullcontext()

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if self.main:
            with self._trying("metrics.jsonl"):
                self.job.folder.log(line)
            self.sinks.log(line)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Lines of metrics.jsonl go to the sinks of the settings too."""
        with opened(self.job, main=self.main) as self.sinks:
            yield

    def best(self) -> None:
        """The adapter as it is, the best so far."""
        if self.main:
            with self._trying("the best adapter"):
                self.job.save_best()

    def checkpoint(self, training: Training, tries: int = TRIES) -> None:
        """A checkpoint of this step, if there is none yet; then old ones go."""
        random = gather_object([random_state()])
        step, folder = training.position.step, self.job.folder
        if self.main and self.written != step:
            with self._trying("a checkpoint", tries):
                checkpoint.write(folder.checkpoint(step), training, self.plan, random)
                self.written = step
                folder.prune_checkpoints(self.job.settings.save_total_limit)

    def resume(self, training: Training) -> None:
        """Goes on from the newest checkpoint that is whole, from the beginning when none was written yet."""
        newest = self._read_newest(training)
        if newest is None:
            logger.warning("no checkpoint in %s yet: starting from the beginning", self.job.folder.path)
        else:
            logger.warning("going on from %s", newest)
        if self.main:
            with writing("metrics.jsonl"):
                self.job.folder.forget_after(training.position.step)

    def stacks(self) -> Stacks:
        """Watches for steps that hang."""
        own = "" if self.main else f"-{self.accelerator.process_index}"
        return Stacks(self.job.folder.path / f"stacks{own}.txt")

    def spike(self, training: Training, loss: Tensor) -> None:
        """Looks whether the loss of a step is unusual; a line of metrics.jsonl if it is."""
        found = training.guards.spike(float(loss))
        if found is not None:
            self.log({"step": training.position.step + 1, "spike": found})

    def bad_step(self, training: Training, step: Step, loss: Tensor, norm: Tensor) -> None:
        """A step whose loss or gradient is not finite: its rows are noted, and too many of them have consequences.

        Then the newest checkpoint comes back at half the learning rate, once. Raises `DeltatuneError` with a diagnosis
        when there is none or it had come back before.
        """
        number = training.position.step + 1
        said = f"loss {float(loss):g} with gradient norm {float(norm):g}"
        if self.main:
            rows = [place for batch in step for row in batch for place in self.job.places(row)]
            line = {"step": number, "loss": str(float(loss)), "gradient_norm": str(float(norm)), "rows": rows}
            with self._trying("bad_steps.jsonl"):
                self.job.folder.log_bad(line)
        logger.warning("step %d is left out: %s; its rows stand in bad_steps.jsonl", number, said)
        too_many = training.guards.tripped
        if too_many is None:
            return
        found = diagnosis(self.job, self.accelerator.device, number, step)
        if training.guards.halved or self._read_newest(training) is None:
            raise DeltatuneError(
                f"{too_many} are not finite, the last is step {number}: {said}; {found}",
                hint="lower training.learning_rate, or look at these rows; the weights are those before these steps",
            )
        training.guards.forgive()
        checkpoint.halve(training)
        at = training.position.step
        logger.warning("%s are not finite (%s): back at step %d with half the rate", too_many, found, at)
        if self.main:
            with self._trying("metrics.jsonl"):
                self.job.folder.forget_after(at, bad_too=False)
        self.log({"step": at, "restored_from": number, "reason": found})

    def _read_newest(self, training: Training) -> Path | None:
        """Puts a training back to the newest checkpoint that is whole, which is returned; None when there is none."""
        with self.accelerator.main_process_first():  # it deletes the damaged ones
            newest = self.job.folder.newest_checkpoint()
        if newest is not None:
            checkpoint.read(newest, training, self.plan, self.accelerator.process_index)
            self.written = training.position.step
        return newest

    @contextmanager
    def _trying(self, what: str, tries: int = TRIES) -> Iterator[None]:
        try:
            with writing(what):
                yield
        except StorageError as error:
            self.failures[what] += 1
            if self.failures[what] >= tries:
                raise
            logger.warning("%s; training goes on", error.what)
        else:
            self.failures[what] = 0
