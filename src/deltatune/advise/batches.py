"""Batches: the largest one of a training or an evaluation, and how large the others are beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deltatune.core.config import TrainingSettings
from deltatune.core.task import Example
from deltatune.data.batch import Batches, by_length


@dataclass(frozen=True, slots=True)
class Largest:
    """The batch with the most cells (rows times longest row)."""

    rows: tuple[int, ...]
    share: float
    """Cells of the batch in the middle of them all, per cell of this one."""
    count: int
    """Batches there are."""
    cells: int


def of_training(examples: Sequence[Example], settings: TrainingSettings) -> Largest:
    """Among the batches of the first epoch, bucketed by length as a training does."""
    lengths = [example["length"] for example in examples]
    size, budget = settings.per_device_train_batch_size, settings.max_tokens_per_batch
    return _largest(list(Batches(lengths, size, settings.seed, budget=budget).epoch(0)), lengths)


def of_evaluation(examples: Sequence[Example], settings: TrainingSettings) -> Largest:
    """Among the batches of all rows, longest first."""
    lengths = [example["length"] for example in examples]
    return _largest(by_length(lengths, settings.per_device_eval_batch_size), lengths)


def _largest(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> Largest:
    """The batch with the most cells.

    >>> _largest([[0, 1], [2]], [3, 9, 4])
    Largest(rows=(0, 1), share=0.6111111111111112, count=2, cells=18)
    """
    cells = [len(batch) * max(lengths[row] for row in batch) for batch in batches]
    index = max(range(len(cells)), key=cells.__getitem__)
    return Largest(tuple(batches[index]), sum(cells) / len(cells) / cells[index], len(cells), cells[index])


def steps_of(batches: int, settings: TrainingSettings) -> int:
    """Optimizer steps of a training with so many batches in an epoch.

    >>> steps_of(10, TrainingSettings(num_train_epochs=2.5, gradient_accumulation_steps=4))
    8
    """
    if settings.max_steps is not None:
        return settings.max_steps
    of_epoch = -(-batches // settings.gradient_accumulation_steps)
    return max(1, math.ceil(round(of_epoch * settings.num_train_epochs, 6)))
