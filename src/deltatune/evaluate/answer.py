"""Answers: a model on rows, in batches of similar length, in the order of the rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from deltatune.core.task import Example, Row, Task
from deltatune.data.batch import by_length, collate
from deltatune.data.tasks import encode
from deltatune.engine.conditions import told

Answered = tuple[list[dict[str, Any]], float | None]
"""One answer per example, and the mean loss where the examples have labels."""


def answers(
    model: nn.Module, task: Task, processor: Any, examples: Sequence[Example], batch_size: int = 64
) -> Answered:
    """One answer per example, and the mean loss where the examples have labels; the model's mode is kept."""
    found: list[dict[str, Any]] = [{} for _ in examples]
    losses, units = 0.0, 0
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.inference_mode():
        for indices in by_length([example["length"] for example in examples], batch_size):
            batch = collate(task, [examples[i] for i in indices], processor)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with told(model, batch):
                output = task.run(model, batch)
            for index, answer in zip(indices, task.read(task.decode(output, processor), batch), strict=True):
                found[index] = answer
            if "labels" in batch:
                losses += float(task.loss(output, batch)) * task.weight(batch)
                units += task.weight(batch)
    for module, mode in modes.items():
        module.training = mode
    return found, losses / units if units else None


def on_rows(
    model: nn.Module, task: Task, processor: Any, rows: Sequence[Row], batch_size: int = 64
) -> list[dict[str, Any]]:
    """Answers for rows that are not encoded yet."""
    return answers(model, task, processor, encode(task, rows, processor), batch_size)[0]
