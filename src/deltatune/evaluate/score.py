"""Score: the metrics of a task on held-out rows, with a 95 % interval for the main one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from deltatune.core.errors import DataError
from deltatune.core.interval import PROPORTIONS, wilson
from deltatune.core.task import Example, Row, Task
from deltatune.data.tasks import name_of
from deltatune.evaluate.answer import Answered, answers


def score(
    model: nn.Module,
    task: Task,
    processor: Any,
    rows: Sequence[Row],
    examples: Sequence[Example],
    batch_size: int = 64,
    *,
    interval: bool = True,
) -> dict[str, Any]:
    """Metrics of the model on rows, `rows` (their number), `loss`, and `interval` of the main metric.

    `tasks` has the metrics of every task where many are trained.
    """
    return measured(task, answers(model, task, processor, examples, batch_size), rows, interval=interval)


def measured(task: Task, answered: Answered, rows: Sequence[Row], *, interval: bool) -> dict[str, Any]:
    """What `score` says, of answers that are known."""
    found, loss = answered
    metrics = task.score(found, rows)
    result = {**metrics, "loss": loss, "rows": len(rows)}
    if task.many is not None:
        result["tasks"] = {name: _of_task(name, task, found, rows) for name in task.many.names}
    return {**result, "interval": interval_of(task, found, rows, metrics)} if interval else result


def _of_task(name: str, task: Task, found: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
    """Metrics of one task's rows; only their number when there are none."""
    chosen = [index for index, row in enumerate(rows) if name_of(row) == name]
    own = [rows[index] for index in chosen]
    return {**(task.score([found[index] for index in chosen], own) if own else {}), "rows": len(own)}


def interval_of(
    task: Task, found: Sequence[Mapping[str, Any]], rows: Sequence[Row], metrics: Mapping[str, Any]
) -> list[float]:
    """95 % interval of the main metric: Wilson's for a share of rows, a seeded bootstrap over rows otherwise.

    Raises `DataError` when no draw of the rows has the metric.
    """
    if task.metric in PROPORTIONS:
        return list(wilson(metrics[task.metric], len(rows)))
    generator, metric_of = np.random.default_rng(0), task.resampled(found, rows)
    drawn = [metric_of(generator.integers(0, len(rows), len(rows))) for _ in range(task.resamples)]
    values = [value for value in drawn if value is not None]  # an AUC needs both classes
    if not values:
        raise DataError(
            f"{task.metric} cannot be computed on these {len(rows)} rows: too few, or of one class only",
            hint="give more rows, with every class among them",
        )
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return [low, high]
