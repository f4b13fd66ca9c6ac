"""Overfit: one batch learned by heart. An adapter that cannot do that cannot learn anything larger either."""

from torch import Tensor

from deltatune.rehearsal.clock import affordable
from deltatune.rehearsal.line import Line, failed, passed, warned
from deltatune.rehearsal.pace import batches_within, cost_s
from deltatune.rehearsal.practice import practising
from deltatune.rehearsal.stage import Stage

MOST_STEPS, FEWEST_STEPS, ROWS = 40, 12, 4
ENOUGH = 20
"""Steps from which on a batch that is not learned is a fault, not impatience."""
FAR, LITTLE = 0.5, 0.99
"""Shares of the first loss: below the one the batch is learned, above the other it is not."""


def overfit_line(stage: Stage, rate: float | None) -> tuple[Line, dict[str, Tensor]]:
    """Loss of one batch before and after some steps at a rate, and the adapter as it was then."""
    seconds = stage.clock.share(0.2)
    chosen = stage.rate if rate is None else rate
    (rows,) = batches_within(stage, seconds, ENOUGH, ROWS)
    steps = affordable(seconds, cost_s(stage, rows), FEWEST_STEPS, MOST_STEPS)
    with practising(stage, steps) as practice:
        examples = [stage.running.examples["train"][row] for row in rows]
        before, _ = stage.loss(examples)
        for _ in range(steps):
            practice.step(rows, chosen)
        after, _ = stage.loss(examples)
        moved = {name: tensor.detach().clone() for name, tensor in stage.adapter.state_dict().items()}
    return _judged(before, after, steps, len(rows), chosen), moved


def _judged(before: float, after: float, steps: int, size: int, rate: float) -> Line:
    seen = f"the loss of {size} rows went from {before:.3f} to {after:.3f} in {steps} steps at {rate:.1e}"
    details = {"before": before, "after": after, "steps": steps, "rows": size, "learning_rate": rate}
    if after <= FAR * before:
        return passed("one batch", seen, **details)
    fix = "look at labels and method.target_modules, give the adapter more size, or rehearse longer (--budget)"
    return (failed if after > LITTLE * before and steps >= ENOUGH else warned)("one batch", seen, fix, **details)
