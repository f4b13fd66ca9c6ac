"""The best adapter so far, and when to stop waiting for a better one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deltatune.core.config import TrainingSettings
from deltatune.core.errors import SettingsError, did_you_mean
from deltatune.core.task import Task
from deltatune.engine.attach import Handle


@dataclass
class Best:
    """The evaluation that counts: value, step, and the adapter's tensors."""

    metric: str
    lower: bool
    patience: int | None
    value: float = math.nan
    step: int = 0
    waited: int = 0
    """Evaluations since the best one."""
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: TrainingSettings, task: Task) -> "Best":
        """Nothing yet, for the metric of the settings or of the task."""
        metric = settings.metric_for_best_model or task.metric
        return cls(metric, metric in task.lower_is_better, settings.early_stopping_patience)

    def better(self, metrics: Mapping[str, Any], step: int) -> bool:
        """Whether an evaluation is the best so far; raises `SettingsError` when it lacks the metric."""
        value = self.value_in(metrics)
        improved = math.isnan(self.value) or (value < self.value if self.lower else value > self.value)
        self.waited = 0 if improved else self.waited + 1
        if improved:
            self.value, self.step = value, step
        return improved

    def value_in(self, metrics: Mapping[str, Any]) -> float:
        """The metric that counts; raises `SettingsError` with near names where it is missing."""
        value = metrics.get(self.metric)
        if isinstance(value, int | float):
            return float(value)
        numbers = [name for name, known in metrics.items() if isinstance(known, float)]
        raise SettingsError(
            f"metric_for_best_model {self.metric!r} is not measured", hint=did_you_mean(self.metric, numbers)
        )

    @property
    def patience_over(self) -> bool:
        """Whether there were too many evaluations without a better one."""
        return self.patience is not None and self.waited >= self.patience

    def keep(self, handle: Handle) -> None:
        """Copies the adapter's tensors, to the CPU: they shall not count against the memory of the training."""
        self.tensors = {name: tensor.to("cpu", copy=True) for name, tensor in handle.state_dict().items()}

    def restore(self, handle: Handle) -> None:
        """Puts the best tensors back into the adapter."""
        if self.tensors:
            handle.load_state_dict(self.tensors)
