"""Rates: a learning-rate range test: the rate grows from step to step, where does the loss fall, where fly off.

    r_i = r_0 q^i                 one step at each rate, from the adapter's start
    l_i                           loss of the step's batch over its loss before the test, smoothed
    falls at     the first rate behind which l stays below 1 - (1 - min l) / 10
    diverges at  the rate behind the minimum from which on l is above 1 - (1 - min l) / 2, or not finite
    suggested    from r(diverges) / 30 to r(diverges) / 5; without divergence from r(min) / 15 to r(min) / 2.5

Smith 2017, arXiv:1506.01186, section 3.3. What a training can move is about the sum of its rates, so a rate is too low
when all its steps together stay below what the test had moved when the loss began to fall.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltatune.rehearsal.clock import affordable
from deltatune.rehearsal.pace import batches_within, cost_s
from deltatune.rehearsal.practice import Practice, practising
from deltatune.rehearsal.stage import Stage

BELOW, ABOVE = 1 / 100, 100.0
"""The range around the method's own rate."""
MOST_STEPS, FEWEST_STEPS = 60, 12
MOST_ROWS = 16
"""Of a batch."""
BATCHES = 4
"""Different batches, taken in turn: each loss is compared with the same batch before the test."""
SMOOTHING = 0.5
"""Weight of the losses before in a running mean."""
FALL = 0.002
"""Smallest fall of the loss, as a share, that is one: batches are compared with themselves, little else moves them."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Rates and what the loss was at each, as a share of what it was before."""

    rates: Sequence[float]
    losses: Sequence[float]
    """Shorter than `rates` when the loss was not finite; smoothed."""

    @property
    def lowest(self) -> int:
        """The step of the smallest loss."""
        return int(np.argmin(self.losses))

    @property
    def fell(self) -> bool:
        """Whether the loss fell at all."""
        return bool(self.losses) and 1 - min(self.losses) >= FALL

    @property
    def falls_at(self) -> int:
        """The step behind which the loss stays below a tenth of its fall."""
        level = 1 - (1 - self.losses[self.lowest]) / 10
        above = [step for step in range(self.lowest) if self.losses[step] > level]
        return above[-1] + 1 if above else 0

    @property
    def diverges_at(self) -> float | None:
        """The rate from which on half of the fall is lost, or the loss not finite; None: nowhere in the range."""
        level = 1 - (1 - self.losses[self.lowest]) / 2
        last = max(step for step in range(self.lowest, len(self.losses)) if self.losses[step] <= level)
        return self.rates[last + 1] if last + 1 < len(self.rates) else None

    @property
    def suggested(self) -> tuple[float, float]:
        """Rates to choose from."""
        lowest = self.rates[self.lowest]
        end = 2 * lowest if self.diverges_at is None else self.diverges_at
        return end / 30, end / 5

    @property
    def needed(self) -> float:
        """Sum of the rates up to where the loss began to fall."""
        return float(sum(self.rates[: self.falls_at + 1]))


def sweep(stage: Stage) -> Sweep:
    """Runs the test in about a quarter of the budget."""
    own, method = stage.rate, stage.adapter.method.learning_rate
    low, high = min(BELOW * method, own / 10), max(ABOVE * method, 10 * own)
    seconds = stage.clock.share(0.25)
    batches = batches_within(stage, seconds, FEWEST_STEPS + BATCHES, MOST_ROWS, BATCHES)
    each = sum(cost_s(stage, batch) for batch in batches) / len(batches)
    steps = affordable(seconds - BATCHES * each, each, FEWEST_STEPS, MOST_STEPS)
    with practising(stage, steps) as practice:
        rates = np.geomspace(low, high, steps).tolist()
        return Sweep(rates, smoothed(_losses(practice, batches, rates)))


def smoothed(losses: Sequence[float]) -> list[float]:
    """Running mean from the start on, which is 1.

    >>> smoothed([1.0, 0.0, 0.0])
    [1.0, 0.5, 0.25]
    """
    found, mean = [], 1.0
    for loss in losses:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean)
    return found


def _losses(practice: Practice, batches: Sequence[Sequence[int]], rates: Sequence[float]) -> list[float]:
    """Losses over those before the test, up to the first that is not finite."""
    before = [practice.pass_over(batch)[0] for batch in batches]
    practice.optimizer.zero_grad(set_to_none=True)
    found: list[float] = []
    for step, rate in enumerate(rates):
        loss = practice.step(batches[step % len(batches)], rate) / max(abs(before[step % len(batches)]), 1e-12)
        if not math.isfinite(loss) or loss > 1e6:
            break
        found.append(loss)
    return found
