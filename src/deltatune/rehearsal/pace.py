"""Pace: how long a pass over some examples takes, by what the longest batch took, and which of them can be afforded."""

from collections.abc import Sequence
from statistics import median

from deltatune.advise import batches
from deltatune.rehearsal.stage import Stage


def steps_of(stage: Stage) -> int:
    """Optimizer steps of the whole training; where rows are packed, those it would have without."""
    training = stage.settings.training
    return batches.steps_of(-(-len(stage.splits.train) // training.per_device_train_batch_size), training)


def cost_s(stage: Stage, rows: Sequence[int]) -> float:
    """Seconds of a forward and backward pass over training examples, about."""
    examples = stage.running.examples["train"]
    return stage.pace_s * len(rows) * max(int(examples[row]["length"]) for row in rows)


def batches_within(stage: Stage, seconds: float, steps: int, rows: int, count: int = 1) -> list[list[int]]:
    """Batches of at most so many training examples, with which so many steps take so many seconds.

    Where even single rows take longer, the shortest ones.
    """
    examples = stage.running.examples["train"]
    lengths = [int(example["length"]) for example in examples]
    rows = min(rows, stage.settings.training.per_device_train_batch_size, len(examples))
    each = stage.pace_s * median(lengths) * steps
    size = max(1, min(rows, int(seconds / each))) if each > 0 else rows
    order = list(range(len(examples)))
    if each > seconds:
        order.sort(key=lambda row: lengths[row])
    return [[order[i % len(order)] for i in range(start, start + size)] for start in range(0, count * size, size)]
