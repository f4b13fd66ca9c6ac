"""Resuming: a training that is killed behind a checkpoint and goes on, against the same one without a break.

The first one writes a checkpoint at step k and ends at step 2k without another word, as a killed one does. What is on
disk then is resumed: the steps behind the checkpoint must come out as they did before.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deltatune.rehearsal.clock import affordable
from deltatune.rehearsal.line import Line, failed, passed
from deltatune.rehearsal.pace import batches_within, cost_s, steps_of
from deltatune.rehearsal.stage import Stage
from deltatune.train.loop import Job, train

MOST, ROWS = 4, 8
"""Steps before the checkpoint and behind it, and rows of a batch."""


class Killed(Exception):
    """Ends a training at once."""


@dataclass(frozen=True)
class Behind:
    """What a training was at step 2k."""

    losses: dict[int, float]
    """Behind the checkpoint, by step."""
    tensors: dict[str, Tensor] = field(default_factory=dict)


def resuming_line(stage: Stage) -> Line:
    """2k steps in a scratch folder, killed, and the k behind the checkpoint again."""
    seconds = stage.clock.share(0.15)
    (rows,) = batches_within(stage, seconds, 3, ROWS)
    size, half = len(rows), affordable(seconds / 3, cost_s(stage, rows), 1, MOST)
    examples = rows if size == 1 else range(len(stage.running.examples["train"]))
    stage.running.folder.open(stage.running.resolved, resume=False)
    whole = _killed_at(stage, examples, size, half, resume=False)
    again = _killed_at(stage, examples, size, half, resume=True)
    stage.model.eval()
    stage.reset()
    return _compared(whole, again, half, size)


def _killed_at(stage: Stage, examples: Sequence[int], size: int, half: int, *, resume: bool) -> Behind:
    """Trains up to step 2k, from the start or from the checkpoint."""
    stage.reset()
    tensors: dict[str, Tensor] = {}

    def evaluate() -> dict[str, float]:
        if (stage.running.folder.checkpoint(half)).is_dir():  # step 2k: the end
            tensors.update({name: tensor.detach().clone() for name, tensor in stage.adapter.state_dict().items()})
            raise Killed
        return {stage.settings.training.metric_for_best_model or stage.task.metric: 0.0}

    with suppress(Killed):
        train(_job(stage, examples, size, half, evaluate), resume=resume)
    text = stage.running.folder.metrics.read_text(encoding="utf-8")
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    return Behind({line["step"]: line["loss"] for line in lines if "loss" in line and line["step"] > half}, tensors)


def _job(stage: Stage, rows: Sequence[int], size: int, half: int, evaluate: Any) -> Job:
    """The run's own job with all its steps, in small batches; nothing is scored."""
    training = stage.running.settings.training
    short = {
        "max_steps": max(2 * half, steps_of(stage)),
        "eval_steps": half,
        "logging_steps": 1,
        "per_device_train_batch_size": size,
        "max_tokens_per_batch": None,
        "gradient_accumulation_steps": 1,
        "early_stopping_patience": None,
    }
    return replace(
        stage.running.job,
        settings=training.model_copy(update=short),
        examples=[stage.running.examples["train"][row] for row in rows],
        evaluate=evaluate,
        save_best=lambda: None,
    )


def _compared(whole: Behind, again: Behind, half: int, size: int) -> Line:
    losses, others = whole.losses, again.losses
    worst = max((abs(losses[step] - others.get(step, float("inf"))) for step in losses), default=0.0)
    same = all(torch.equal(whole.tensors[name], again.tensors[name]) for name in whole.tensors) and losses == others
    seen = f"killed at step {2 * half}, resumed from step {half} ({size} rows each): losses and weights are "
    details = {"losses": losses, "resumed": others, "difference": worst}
    if same:
        return passed("kill and resume", f"{seen}equal to the bit", **details)
    if worst <= 1e-3 * max(abs(loss) for loss in losses.values()):
        return passed("kill and resume", f"{seen}equal up to {worst:.1e}", **details)
    return failed(
        "kill and resume", f"{seen}others ({worst:.2g})", "please report this as a bug, with the config", **details
    )
