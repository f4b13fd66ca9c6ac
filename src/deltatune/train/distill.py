"""Distillation: a loss that learns from a teacher's answers besides the labels.

    (1 - alpha) task loss + alpha T^2 KL(teacher / T || student / T) + hidden * mean (P h_student - h_teacher)^2

Means are over the task's supervised units: rows, or positions whose label is not -100. P is trained along, from a
seeded start, where the widths differ, and thrown away at the end.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.config import DistillationSettings
from deltatune.core.errors import SettingsError
from deltatune.core.label_loss import IGNORED
from deltatune.core.task import Batch, Task, inputs_of
from deltatune.data.batch import collate
from deltatune.ops import distillation as losses
from deltatune.train.teacher import Teacher, asleep


class Distillation:
    """The loss of one training with a teacher."""

    def __init__(self, settings: DistillationSettings, teacher: Teacher, task: Task) -> None:
        self.settings, self.teacher, self.task = settings, teacher, task
        self.projection: nn.Linear | None = None

    def prepare(self, student: nn.Module, rows: Sequence[int], batch: Batch, seed: int) -> None:
        """Tries one batch: raises `SettingsError` when the outputs do not fit; makes P where widths differ."""
        with asleep(student), torch.no_grad():
            output = student(**inputs_of(batch), **self.wanted)
        answer = self.ask(rows, batch)
        if getattr(output, "logits", None) is None:
            raise SettingsError(f"distillation compares logits, {type(student).__name__} returns none")
        if answer is not None:
            self._check(output.logits, answer.logits)
        if self.settings.hidden:
            ours, theirs = _last_hidden(output), _last_hidden(answer)
            if ours.shape[2] != theirs.shape[2]:
                self.projection = _projection(ours.shape[2], theirs.shape[2], seed).to(ours.device)

    def ask(self, rows: Sequence[int], batch: Batch) -> Any:
        """The teacher's output for the training rows of a batch; None where it has no weight."""
        settings, teacher = self.settings, self.teacher
        if not (settings.alpha or settings.hidden):
            return None
        if not teacher.examples:
            return teacher.answer(batch, **self.wanted)
        device = next(teacher.model.parameters()).device
        theirs = collate(self.task, [teacher.examples[row] for row in rows], teacher.processor)
        theirs = {name: tensor.to(device) for name, tensor in theirs.items()}
        if (settings.hidden or batch["labels"].dim() > 1) and not _same_tokens(batch, theirs):
            raise SettingsError(
                "the teacher cuts texts into other tokens than the student: only whole rows can be compared",
                hint="take a teacher with the same tokenizer, or distillation.hidden: 0",
            )
        return teacher.answer(theirs, **self.wanted)

    @property
    def wanted(self) -> dict[str, bool]:
        """What the models are asked for besides logits."""
        return {"output_hidden_states": True} if self.settings.hidden else {}

    def parameters(self) -> list[nn.Parameter]:
        """Trained along with the adapter."""
        return [] if self.projection is None else list(self.projection.parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed training needs."""
        return {} if self.projection is None else self.projection.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave."""
        if self.projection is not None:
            self.projection.load_state_dict(state)

    def loss(self, output: Any, batch: Batch, answer: Any) -> Tensor:
        """The whole loss of a batch, from the student's output and the teacher's."""
        alpha, total = self.settings.alpha, torch.zeros((), device=output.logits.device)
        if alpha < 1:
            total = self.task.loss(output, batch) * (1 - alpha) if alpha else self.task.loss(output, batch)
        if alpha:
            total = total + alpha * self._answers(output.logits, answer.logits, batch)
        if self.settings.hidden:
            total = total + self.settings.hidden * self._hidden(output, answer, batch)
        return total

    def _answers(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        self._check(student, teacher)
        chosen = supervised(self.task, student, batch)
        s, t = (logits if chosen is None else logits[chosen] for logits in (student, teacher))
        if self.task.predicts == "values":
            return losses.values(s, t)
        if self.task.predicts == "labels":
            return losses.labels(s, t, self.settings.temperature)
        return losses.classes(s, t, self.settings.temperature)

    def _hidden(self, output: Any, answer: Any, batch: Batch) -> Tensor:
        """Per row the mean over its real positions, or over supervised positions."""
        ours, theirs = _last_hidden(output), _last_hidden(answer).float()
        p = self.projection
        ours = ours.float() if p is None else p(ours.float())
        distance = (ours - theirs).square().mean(-1)
        if "logits_to_keep" in batch:  # where the logits are, the labels are
            distance = distance[:, batch["logits_to_keep"]]
        chosen = supervised(self.task, output.logits, batch)
        if chosen is not None:
            return distance[chosen].sum() / chosen.sum().clamp_min(1)
        mask = batch.get("attention_mask")
        if mask is None or mask.shape != distance.shape:
            return distance.mean()
        return ((distance * mask).sum(1) / mask.sum(1).clamp_min(1)).mean()

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        if student.shape[-1] != teacher.shape[-1]:
            raise SettingsError(
                f"the student answers with {student.shape[-1]} classes, the teacher with {teacher.shape[-1]}",
                hint="take a teacher with the same labels or vocabulary",
            )


def supervised(task: Task, logits: Tensor, batch: Batch) -> Tensor | None:
    """Mask [B, T] of the positions that count; None where every row has one answer."""
    if logits.dim() == 2:
        return None
    chosen = batch["labels"] != IGNORED
    if task.predicts == "next classes":  # the label of a position is predicted one before it
        chosen = torch.cat([chosen[:, 1:], torch.zeros_like(chosen[:, :1])], 1)
    return chosen


def _same_tokens(ours: Batch, theirs: Batch) -> bool:
    a, b = ours.get("input_ids"), theirs.get("input_ids")
    return a is None or (b is not None and a.shape == b.shape and bool((a == b).all()))


def _last_hidden(output: Any) -> Tensor:
    states = output.get("hidden_states") or output.get("decoder_hidden_states")
    if not states:
        raise SettingsError("distillation.hidden needs a model that returns its hidden states")
    last: Tensor = states[-1]
    return last


def _projection(inner: int, outer: int, seed: int) -> nn.Linear:
    """P, uniform as torch starts linear maps."""
    generator = torch.Generator().manual_seed(seed)
    projection = nn.Linear(inner, outer, bias=False, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        projection.weight.uniform_(-1 / math.sqrt(inner), 1 / math.sqrt(inner), generator=generator)
    return projection
