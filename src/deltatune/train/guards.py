"""Guards: what stands between a gradient and the weights, and what is said of a step that looks wrong.

not finite                    the step is left out, its rows stand in bad_steps.jsonl
three in a row, or more       the newest checkpoint comes back at half the learning rate, once; then the training ends
than 1 % of the last 500
spike                         a loss over median + 6 MAD of the last 100: a line of metrics.jsonl
"""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

IN_A_ROW = 3
"""Steps that are not finite, one after the other, before something has to change."""
SPAN, MOST = 500, 5
"""So many of so many steps may be left out: 1 %."""
REMEMBERED, FEWEST = 100, 20
"""Losses that a new one is compared with; with fewer nothing is said."""
SPIKE = 6.0
"""Median absolute deviations above the median; about four standard deviations of normal noise."""


@dataclass
class Guards:
    """What is remembered of the steps so far; part of a checkpoint."""

    losses: list[float] = field(default_factory=list)
    """Of the last finite steps."""
    bad: int = 0
    """Steps in a row that were not finite."""
    taken: int = 0
    """Steps so far, those left out too."""
    left_out: list[int] = field(default_factory=list)
    """Which of the last 500 were not finite, counted from 1."""
    halved: bool = False
    """Whether a checkpoint came back already: the learning rate is half that of the settings."""

    @property
    def rate_factor(self) -> float:
        """On the learning rate of the settings."""
        return 0.5 if self.halved else 1.0

    @property
    def tripped(self) -> str | None:
        """Which too many steps were not finite, in words; None when there are not too many."""
        if self.bad >= IN_A_ROW:
            return f"{IN_A_ROW} steps in a row"
        return f"{len(self.left_out)} of the last {SPAN} steps" if len(self.left_out) > MOST else None

    def forgive(self) -> None:
        """Forgets what was left out so far: a checkpoint came back."""
        self.bad, self.left_out = 0, []

    def pass_on(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether a step may change the weights: loss and gradient are finite. Reads both from the device at once."""
        finite = math.isfinite(sum(torch.stack([loss, norm.to(loss.dtype)]).tolist()))
        self.bad = 0 if finite else self.bad + 1
        self.taken += 1
        latest = self.left_out if finite else [*self.left_out, self.taken]
        self.left_out = [step for step in latest if step > self.taken - SPAN]
        return finite

    def spike(self, loss: float) -> dict[str, Any] | None:
        """What is unusual about the loss of a finite step, None when nothing is; remembers it.

        >>> guards = Guards([1.0, 1.1, 0.9] * 7)
        >>> guards.spike(1.5), guards.spike(1.8)
        (None, {'loss': 1.8, 'median': 1.0, 'mad': 0.1})
        """
        middle = median(self.losses) if len(self.losses) >= FEWEST else math.inf
        mad = median(abs(other - middle) for other in self.losses) if self.losses else 0.0
        self.losses = [*self.losses, loss][-REMEMBERED:]
        if not loss > middle + SPIKE * mad or mad == 0:
            return None
        return {"loss": loss, "median": middle, "mad": round(mad, 12)}
