"""Evaluation: a pass over some validation rows, with the metric that chooses the best adapter."""

import math
import time
from collections.abc import Sequence
from typing import Any

from deltatune.core.errors import SettingsError
from deltatune.core.task import Example, Row
from deltatune.evaluate.answer import Answered, answers
from deltatune.evaluate.score import measured
from deltatune.rehearsal.line import Line, failed, passed, warned
from deltatune.rehearsal.stage import Stage
from deltatune.train.stopping import Best

WAVES = ((0, 2), (2, 8), (8, 32), (32, 128))
"""Rows that are scored one after the other, as long as there is time for the next."""


def evaluation_line(stage: Stage) -> Line:
    """The metric of the untrained adapter, and how long all rows would take."""
    stage.reset()
    rows, examples = _spread(stage)
    began, seconds = time.perf_counter(), stage.clock.share(0.1)
    found: list[dict[str, Any]] = []
    losses: list[float] = []
    each = 0.0
    for start, end in WAVES:
        own, loss = _answers(stage, examples[start:end])
        found += own
        losses += [] if loss is None else [loss] * len(own)
        each = (time.perf_counter() - began) / len(found)
        if len(found) == len(rows) or 4 * end * each > seconds:
            break
    count = len(found)
    loss = sum(losses) / len(losses) if losses else None
    metrics = measured(stage.task, (found, loss), rows[:count], interval=False)
    training = stage.settings.training
    metric = training.metric_for_best_model or stage.task.metric
    everything = each * len(stage.splits.validation)
    seen = f"{count} validation rows; all {len(stage.splits.validation):,} take about {everything:.0f} s"
    try:
        value = Best.of(training, stage.task).value_in(metrics)
    except SettingsError as error:
        if metric == stage.task.metric:  # of few rows it may not exist: an AUC needs both classes
            return passed("evaluation", f"{seen}; {metric} needs more rows than these", seconds=everything)
        return failed("evaluation", error.what, error.hint or "", seconds=everything)
    seen = f"{metric} {value:.4f} before training on {seen}"
    if not math.isfinite(value):
        fix = "choose another training.metric_for_best_model, or larger validation data"
        return warned("evaluation", seen, fix, seconds=everything)
    return passed("evaluation", seen, seconds=everything, value=value)


def _answers(stage: Stage, examples: Sequence[Example]) -> Answered:
    processor, size = stage.ground.loaded.processor, stage.settings.training.per_device_eval_batch_size
    with stage.adapter.roster.activated(stage.adapter.name):
        return answers(stage.model, stage.task, processor, examples, size)


def _spread(stage: Stage) -> tuple[list[Row], list[Example]]:
    """Validation rows with the classes in turn, so that few have them all."""
    rows, examples = stage.ground.splits.validation, stage.ground.examples["validation"]
    turns: dict[object, int] = {}
    keys = []
    for index, row in enumerate(rows):
        label = stage.task.class_of(row)
        turns[label] = turns.get(label, 0) + 1
        keys.append((turns[label], index))
    order = [index for _, index in sorted(keys)]
    return [rows[index] for index in order], [examples[index] for index in order]
