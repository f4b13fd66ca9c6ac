"""Batch: rows of similar length together, in an order that can be resumed anywhere.

The order of an epoch follows from seed and epoch alone, so a position is two numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BUCKET = 50
"""Batches whose rows are sorted together: enough to waste little padding, few enough to stay random."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of row indices, bucketed by length; every row once per epoch."""

    lengths: Sequence[int]
    batch_size: int
    seed: int

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[list[int]]:
        """The batches of an epoch from batch `start` on.

        The very first batch holds the longest row: what does not fit into memory shows at once.
        """
        generator = np.random.default_rng((self.seed, number))
        order = generator.permutation(len(self.lengths))
        lengths = np.asarray(self.lengths)
        batches: list[list[int]] = []
        span = BUCKET * self.batch_size
        for begin in range(0, len(order), span):
            bucket = order[begin : begin + span]
            bucket = bucket[np.argsort(-lengths[bucket], kind="stable")]
            batches += [bucket[i : i + self.batch_size].tolist() for i in range(0, len(bucket), self.batch_size)]
        shuffled = [batches[i] for i in generator.permutation(len(batches))]
        if number == 0:
            shuffled.sort(key=lambda batch: max(self.lengths[i] for i in batch) < lengths.max())
        yield from shuffled[start:]


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches for scoring, longest rows first.

    >>> by_length([3, 9, 4], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
