"""Rate line: the config's learning rate against the range test, with a picture."""

import math
from dataclasses import replace
from pathlib import Path

from deltatune.rehearsal.line import Line, failed, passed, warned
from deltatune.rehearsal.pace import steps_of
from deltatune.rehearsal.rate_plot import draw
from deltatune.rehearsal.rates import Sweep, sweep
from deltatune.rehearsal.stage import Stage

FAR = 2.0
"""Times the rate at which the loss flies off: warm-up and a longer training do not make up for more."""
LITTLE = 0.1
"""Share of what the test had moved when the loss began to fall, that all steps of a training must move at least."""
FALLING = {"constant": 1.0, "constant_with_warmup": 1.0}
"""Mean of a schedule over its peak; 0.5 where it falls to zero."""


def rate_line(stage: Stage, plot: Path | None) -> tuple[Line, float | None]:
    """What the test says of the rate, and the highest it would take: None where the loss never fell."""
    found = sweep(stage)
    line = judged_rate(found, stage.rate, planned(stage))
    if plot is not None and found.losses:
        line = _drawn(line, found, stage, plot)
    return line, (found.suggested[1] if found.fell else None)


def _drawn(line: Line, found: Sweep, stage: Stage, plot: Path) -> Line:
    """The line, which says so where no picture could be made."""
    try:
        draw(found, stage.rate, plot, of=stage.adapter.method.type)
    except ModuleNotFoundError:
        return replace(line, seen=f"{line.seen}; no picture: matplotlib is missing (pip install 'deltatune[report]')")
    except OSError as error:
        return replace(line, seen=f"{line.seen}; no picture: {error}")
    return line


def planned(stage: Stage) -> float:
    """Sum of the rates of the whole training."""
    training = stage.settings.training
    return stage.rate * steps_of(stage) * FALLING.get(training.lr_scheduler_type, 0.5)


def judged_rate(found: Sweep, rate: float, total: float) -> Line:
    """The rate against the test; `total` is the sum of the rates of the whole training."""
    details = {"learning_rate": rate, "rates": list(found.rates), "losses": list(found.losses)}
    if not found.fell:
        seen = f"the loss fell at no rate from {found.rates[0]:.0e} to {found.rates[-1]:.0e}"
        fix = "the adapter cannot lower it: look at the labels, at method.target_modules and at the method's size"
        return failed("learning rate", seen, fix, **details)
    (low, high), diverges = found.suggested, found.diverges_at
    end = f"flies off at {diverges:.1e}" if diverges is not None else f"does not fly off up to {found.rates[-1]:.0e}"
    seen = f"{rate:.1e}; {low:.1e} to {high:.1e} looks good, the loss {end}"
    details |= {"suggested": [low, high], "diverges_at": diverges}
    middle = f"{math.sqrt(low * high):.0e}"
    if diverges is not None and rate > FAR * diverges:
        return failed("learning rate", f"{seen}: far too high", f"training.learning_rate: {middle}", **details)
    if total < LITTLE * found.needed:
        fix = f"training.learning_rate: {middle}, or more steps"
        return failed("learning rate", f"{seen}: so low that the whole training would change nothing", fix, **details)
    if diverges is not None and rate > diverges:
        return warned("learning rate", f"{seen}: too high", f"training.learning_rate: {middle}", **details)
    if total < found.needed / 2:
        return warned("learning rate", f"{seen}: low", f"training.learning_rate: {middle}", **details)
    return passed("learning rate", seen, **details)
