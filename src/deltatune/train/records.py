"""Records: what a training writes, by the main process alone.

A disk that refuses costs a warning and another try at the next turn; the third refusal in a row ends the training.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from deltatune.core.errors import StorageError
from deltatune.store.run import writing
from deltatune.store.state import random_state
from deltatune.train import checkpoint
from deltatune.train.checkpoint import Training
from deltatune.train.job import Job
from deltatune.train.plan import Plan

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

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other trainings out of the run folder."""
        return self.job.folder.locked() if self.main else nullcontext()

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if self.main:
            with self._trying("metrics.jsonl"):
                self.job.folder.log(line)

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
        with self.accelerator.main_process_first():  # it deletes the damaged ones
            newest = self.job.folder.newest_checkpoint()
        if newest is None:
            logger.warning("no checkpoint in %s yet: starting from the beginning", self.job.folder.path)
        else:
            checkpoint.read(newest, training, self.plan, self.accelerator.process_index)
            logger.warning("going on from %s", newest)
            self.written = training.position.step
        if self.main:
            with writing("metrics.jsonl"):
                self.job.folder.forget_after(training.position.step)

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
