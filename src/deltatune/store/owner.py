"""Owner: a process by number and start time, since the system gives numbers out again."""

import os
from functools import cache

import psutil

TOLERANCE_S = 2
"""Start times are counted from the boot time, which moves when the clock is set."""


def this_process() -> str:
    """The running process as `<number>.<start time in whole seconds>`, fit for a file name."""
    return _described(os.getpid())


def alive(owner: str) -> bool:
    """Whether the process that `this_process` described is still running; anything else is not.

    >>> alive(this_process()), alive("123.456"), alive("nobody")
    (True, False, False)
    """
    number, _, started = owner.partition(".")
    if not (number.isdigit() and started.isdigit()):
        return False
    try:
        known: float = psutil.Process(int(number)).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(known - int(started)) <= TOLERANCE_S


@cache
def _described(number: int) -> str:
    """Computed once per process; a forked child has a number of its own."""
    return f"{number}.{int(psutil.Process(number).create_time())}"
