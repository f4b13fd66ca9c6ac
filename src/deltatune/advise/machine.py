"""Machine: how fast products, moves and calls are here, asked once in a process, in about a tenth of a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

TOKENS = 512
MOVED = 1 << 20
"""Values of the tensor that is moved: more than a core's own cache."""
WIDTHS = (64, 4096)
"""Narrowest and widest product that is tried."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates of one machine for one dtype and width."""

    products_per_s: float
    """Floating point operations a second in matrix products of this width."""
    bytes_per_s: float
    """Bytes read and written a second by what is no product."""
    seconds_per_call: float
    """Of a kernel that does nothing."""


@cache
def machine(dtype: torch.dtype, width: int, device: str) -> Machine:
    """The rates for products of a model's width, by the least time of a few tries."""
    width = min(max(width, WIDTHS[0]), WIDTHS[1])
    x, weight = (torch.ones(n, width, dtype=dtype, device=device) for n in (TOKENS, width))
    values, one = (torch.ones(n, dtype=dtype, device=device) for n in (MOVED, 1))
    with torch.inference_mode():
        product = _seconds(lambda: F.linear(x, weight), device)
        move = _seconds(lambda: F.gelu(values), device)
        call = _seconds(lambda: [one.add(one) for _ in range(100)], device) / 100
    return Machine(2 * TOKENS * width * width / product, 2 * MOVED * values.element_size() / move, call)


def _seconds(run: Callable[[], object], device: str, tries: int = 5) -> float:
    times = []
    for _ in range(tries + 1):  # the first one warms up
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
