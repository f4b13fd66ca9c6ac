"""Plan: which rows every optimizer step takes.

It follows from settings and row lengths alone, so a training can start anywhere in it.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from deltatune.core.config import TrainingSettings
from deltatune.core.errors import SettingsError
from deltatune.core.task import CONDITION, Example
from deltatune.data.batch import Batches

Step = list[list[int]]
"""Row indices of the micro-batches of one optimizer step."""


@dataclass(slots=True)
class Position:
    """Where a training stands."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    batch: int = 0
    """Micro-batches done in this epoch."""
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one training; the last step of an epoch may have fewer micro-batches."""

    batches: Batches
    accumulation: int
    total: int
    """Optimizer steps in all."""
    content: str = ""
    """Hash of what stands in the rows; empty where nobody knows."""

    @classmethod
    def of(
        cls, examples: Sequence[Example], settings: TrainingSettings, processes: int = 1, content: str = ""
    ) -> "Plan":
        """The plan for these rows; `max_steps` takes the place of the epochs.

        Raises `SettingsError` for a sampling temperature when the rows have no tasks.
        """
        tasks = [example[CONDITION] for example in examples if CONDITION in example] or None
        temperature = settings.sampling_temperature
        if temperature is not None and tasks is None:
            raise SettingsError("sampling_temperature has no effect on rows without tasks", hint="set data.task_column")
        lengths = [example["length"] for example in examples]
        size = settings.per_device_train_batch_size * processes
        budget = settings.max_tokens_per_batch and settings.max_tokens_per_batch * processes
        batches = Batches(lengths, size, settings.seed, tasks, temperature or 1.0, budget)
        accumulation = settings.gradient_accumulation_steps
        total = settings.max_steps or _steps(batches, accumulation, settings.num_train_epochs)
        return cls(batches, accumulation, total, content)

    def steps(self, position: Position) -> Iterator[Step]:
        """Every step from a position on; the position itself stays, `advance` moves it."""
        return islice(self._endless(position.epoch, position.batch), max(0, self.total - position.step))

    def advance(self, position: Position, step: Step) -> None:
        """Moves a position over a step that was done."""
        position.step += 1
        position.batch += len(step)
        position.tokens += sum(self.batches.lengths[row] for batch in step for row in batch)
        if position.batch == self.batches.count(position.epoch):
            position.epoch, position.batch = position.epoch + 1, 0

    def fingerprint(self) -> str:
        """Hash of lengths and tasks of all rows in their order: a resumed training must have the same.

        What stands in them is `content`'s to tell.
        """
        found = hashlib.sha256(np.asarray(self.batches.lengths, dtype="<i8").tobytes())
        if self.batches.tasks is not None:
            found.update(np.asarray(self.batches.tasks, dtype="<i8").tobytes())
        return found.hexdigest()

    def _endless(self, epoch: int, batch: int) -> Iterator[Step]:
        while True:
            batches = self.batches.epoch(epoch, batch)
            while step := list(islice(batches, self.accumulation)):
                yield step
            epoch, batch = epoch + 1, 0


def _steps(batches: Batches, accumulation: int, epochs: float) -> int:
    """Optimizer steps of so many epochs, of which the last one may be a part."""
    whole, part = int(epochs), epochs % 1
    counts = [math.ceil(batches.count(number) / accumulation) for number in range(whole + (part > 0))]
    rest = round(part * counts[-1], 6) if part else 0  # a tenth of 100 steps is 10, in floats a little more
    return max(1, math.ceil(sum(counts[:whole]) + rest))
