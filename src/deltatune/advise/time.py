"""Time: seconds of a training from what its passes do and how fast the machine is.

pass = a products / rate + b bytes / bandwidth + c kernels * seconds of one        a, b, c: fitted to measured runs
"""

from deltatune.advise.evidence import Constants
from deltatune.advise.machine import Machine
from deltatune.advise.memory import Range
from deltatune.advise.passes import Pass


def seconds_of(found: Pass, machine: Machine, constants: Constants) -> float:
    """Expected seconds of one pass.

    >>> from deltatune.advise.evidence import constants
    >>> still = Pass(0, 0, 0.0, 0, 0, True)
    >>> seconds_of(still, Machine(1e9, 1e9, 1e-6), constants())
    0.0
    """
    return (
        constants.products * found.operations / machine.products_per_s
        + constants.moving * found.moved_bytes / machine.bytes_per_s
        + constants.calls * found.calls * machine.seconds_per_call
    )


def around(seconds: float, constants: Constants) -> Range:
    """The range of a time: another program on the machine can make it longer without bound."""
    return Range(seconds / constants.time_spread, seconds, seconds * constants.time_spread)
