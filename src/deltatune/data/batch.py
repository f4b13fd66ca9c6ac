"""Batch: rows of similar length together, in an order that can be resumed anywhere.

The order of an epoch follows from seed and epoch alone, so a position is two numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from deltatune.core.task import CONDITION, TRUNK, Batch, Example, Task

BUCKET = 50
"""Batches whose rows are sorted together: enough to waste little padding, few enough to stay random."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of row indices, bucketed by length; every row once per epoch, or by the shares of the tasks."""

    lengths: Sequence[int]
    batch_size: int
    seed: int
    tasks: Sequence[int] | None = None
    """Task id of every row, from 0."""
    temperature: float = 1.0
    """T: a task of n rows has a share of every epoch proportional to n^(1/T)."""
    budget: int | None = None
    """Tokens of a batch, padding counted: short rows come in larger batches; `batch_size` sizes the buckets only."""
    counts: dict[int, int] = field(default_factory=dict, compare=False)
    """Batches of the epochs that were asked for."""

    def count(self, number: int) -> int:
        """Batches of an epoch; with a budget it depends on which rows come together."""
        if self.budget is None:
            return -(-len(self.lengths) // self.batch_size)
        if number not in self.counts:
            self.counts[number] = len(self._of(number))
        return self.counts[number]

    def epoch(self, number: int, start: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch from batch `start` on.

        The very first batch holds the longest row: what does not fit into memory shows at once.
        """
        yield from self._of(number)[start:]

    def _of(self, number: int) -> list[list[int]]:
        generator = np.random.default_rng((self.seed, number))
        order = self._order(generator)
        lengths = np.asarray(self.lengths)
        batches: list[list[int]] = []
        span = BUCKET * self.batch_size
        for begin in range(0, len(order), span):
            bucket = order[begin : begin + span]
            bucket = bucket[np.argsort(-lengths[bucket], kind="stable")]
            batches += self._cut(bucket.tolist())
        shuffled = [batches[i] for i in generator.permutation(len(batches))]
        if number == 0:
            longest = lengths[order].max()
            shuffled.sort(key=lambda batch: max(self.lengths[i] for i in batch) < longest)
        return shuffled

    def _cut(self, bucket: list[int]) -> list[list[int]]:
        """A bucket, longest rows first, as batches; a row longer than the budget is a batch of its own."""
        if self.budget is None:
            return [bucket[i : i + self.batch_size] for i in range(0, len(bucket), self.batch_size)]
        batches = []
        while bucket:
            rows = max(1, self.budget // max(1, self.lengths[bucket[0]]))
            batches.append(bucket[:rows])
            bucket = bucket[rows:]
        return batches

    def _order(self, generator: np.random.Generator) -> np.ndarray:
        """The rows of an epoch: all of them, or as many in all with every task at its share.

        The rows of a task come round in turn, in an order of their own in every epoch: none twice before each was once.
        """
        if self.tasks is None or self.temperature == 1.0:
            return generator.permutation(len(self.lengths))
        of_task = [np.flatnonzero(np.asarray(self.tasks) == task) for task in sorted(set(self.tasks))]
        counts = shares([len(rows) for rows in of_task], self.temperature)
        drawn = [np.resize(generator.permutation(rows), count) for rows, count in zip(of_task, counts, strict=True)]
        return generator.permutation(np.concatenate(drawn))


def shares(sizes: Sequence[int], temperature: float) -> list[int]:
    """Rows of each task in an epoch of sum(sizes) rows: proportional to n^(1/T), by largest remainders.

    >>> shares([90, 10], 1), shares([90, 10], 2), shares([90, 10], 1e9)
    ([90, 10], [75, 25], [50, 50])
    """
    powers = (np.asarray(sizes) / max(sizes)) ** (1 / temperature)
    exact = powers / powers.sum() * sum(sizes)
    counts = np.floor(exact + 1e-9).astype(int)  # 10 may be 9.999...
    counts[np.argsort(counts - exact, kind="stable")[: sum(sizes) - counts.sum()]] += 1
    found: list[int] = counts.tolist()
    return found


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches for scoring, longest rows first.

    >>> by_length([3, 9, 4], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def collate(task: Task, examples: Sequence[Example], processor: Any) -> Batch:
    """The task's batch, with task ids of the rows and numbers of their kept hidden states, where they have any."""
    batch = task.collate(examples, processor)
    for name in (CONDITION, TRUNK):
        if all(name in example for example in examples):
            batch[name] = torch.tensor([example[name] for example in examples])
    return batch
