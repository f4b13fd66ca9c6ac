"""Evidence: what was measured with this tool, written by `benchmarks/evidence.py` from docs/results, never by hand."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from deltatune.core.config import Settings


class Constants(Settings):
    """What a forecast adds to arithmetic; fitted by `benchmarks/forecast.py`."""

    process: float
    """Bytes of a fresh process with everything imported that a training imports first."""
    libraries: float
    """Bytes of what is loaded on the way: scores, kernels, buffers of the products."""
    slack: float
    """Bytes the process grows by for one byte of tensors that a pass holds at once."""
    loading: float
    """Bytes at once while a checkpoint is read, per byte of it."""
    spread: float
    """Share of the peak by which a measured one may differ."""
    products: float
    """Seconds of products in a step, per second that the probe of this machine says."""
    moving: float
    """Seconds of moving bytes, per second that the probe says."""
    calls: float
    """Seconds per kernel, per second that the probe says."""
    time_spread: float
    """Factor by which a measured time may differ."""
    evaluation: float
    """Seconds of an evaluation per second of its forward passes: reading answers and scoring them."""


@cache
def evidence() -> dict[str, Any]:
    """The whole file."""
    found: dict[str, Any] = json.loads(files(__package__).joinpath("evidence.json").read_text(encoding="utf-8"))
    return found


@cache
def constants() -> Constants:
    """The constants of forecasts."""
    return Constants.parse(evidence()["constants"], "constants")
