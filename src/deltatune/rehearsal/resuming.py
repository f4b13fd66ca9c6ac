"""Resuming: a training that is killed behind a checkpoint and goes on, against the same one without a break."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deltatune.rehearsal.clock import affordable
from deltatune.rehearsal.line import Line, failed, passed
from deltatune.rehearsal.pace import batches_within, cost_s
from deltatune.rehearsal.stage import Stage
from deltatune.store import atomic, state
from deltatune.train.loop import Job, train

MOST, ROWS = 4, 8
"""Steps before the break and behind it, and rows of a batch."""


def resuming_line(stage: Stage) -> Line:
    """2k steps in a scratch folder, a checkpoint in the middle; then what a kill leaves of it, and k steps again."""
    seconds = stage.clock.share(0.15)
    (rows,) = batches_within(stage, seconds, 3, ROWS)
    size, half = len(rows), affordable(seconds / 3, cost_s(stage, rows), 1, MOST)
    job = _job(stage, rows if size == 1 else range(len(stage.running.examples["train"])), size, half)
    folder = stage.running.folder
    folder.open(stage.running.resolved, resume=False)
    stage.reset()
    train(job)
    whole = _written(stage, half)
    atomic.discard(folder.checkpoint(2 * half))
    stage.reset()
    train(job, resume=True)
    again = _written(stage, half)
    stage.model.eval()
    stage.reset()
    return _compared(whole, again, half, size)


def _job(stage: Stage, rows: Sequence[int], size: int, half: int) -> Job:
    """The run's own job, for a few steps; it needs no metric, so none is measured."""
    training = stage.running.settings.training
    short = {
        "max_steps": 2 * half,
        "eval_steps": half,
        "logging_steps": 1,
        "per_device_train_batch_size": size,
        "max_tokens_per_batch": None,
        "gradient_accumulation_steps": 1,
        "early_stopping_patience": None,
    }
    metric = training.metric_for_best_model or stage.task.metric
    return replace(
        stage.running.job,
        settings=training.model_copy(update=short),
        examples=[stage.running.examples["train"][row] for row in rows],
        evaluate=lambda: {metric: 0.0},
        save_best=lambda: None,
    )


def _written(stage: Stage, half: int) -> tuple[dict[int, float], Mapping[str, Tensor]]:
    """Losses behind the break by step, and the adapter in the last checkpoint."""
    folder = stage.running.folder
    lines: list[dict[str, Any]] = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line and line["step"] > half}
    return losses, state.load(folder.checkpoint(2 * half))["adapter"]


def _compared(whole: Any, again: Any, half: int, size: int) -> Line:
    (losses, tensors), (others, resumed) = whole, again
    worst = max((abs(losses[step] - others.get(step, float("inf"))) for step in losses), default=0.0)
    same = all(torch.equal(tensors[name], resumed[name]) for name in tensors) and losses == others
    seen = f"killed behind step {half} of {2 * half} ({size} rows each) and resumed: losses and weights are "
    details = {"losses": losses, "resumed": others, "difference": worst}
    if same:
        return passed("kill and resume", f"{seen}equal to the bit", **details)
    if worst <= 1e-3 * max(abs(loss) for loss in losses.values()):
        return passed("kill and resume", f"{seen}equal up to {worst:.1e}", **details)
    return failed(
        "kill and resume", f"{seen}others ({worst:.2g})", "please report this as a bug, with the config", **details
    )
