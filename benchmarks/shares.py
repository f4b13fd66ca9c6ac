"""What a training step of a method consists of, beside the floor's: arithmetic and CPU time by kind of kernel.

    OMP_NUM_THREADS=1 python benchmarks/shares.py [--model minilm] [--dtype bfloat16] [--steps 6] [--methods lora vera]

The steps are those of `benchmarks/step.py` (forward, loss, backward, clipping, AdamW; the same batch), under torch's
profiler on one thread. A kernel's time is its own, without what it calls; Python and rest is the step without the
profiler less the kernels. Multiplications in products are counted (`torch.utils.flop_counter`), not estimated. The
table goes to the place "shares" of docs/results/step.md.
"""

import argparse
import statistics
import time
import warnings
from collections import Counter
from typing import Any

import quality
import torch
from pages import put
from step import CASES, PAGE, Case, Work, ours, processor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

METHODS = ("bitfit", "lora", "dora", "sparse", "oft", "lokr", "vera", "boft")
"""The floor, and those far from it."""
KINDS = {
    "products": (
        *("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "_addmm_activation", "mkldnn_linear"),
        *("dot", "mv", "addmv", "addmv_"),
    ),
    "softmax and norms": (
        *("_softmax", "_softmax_backward_data", "native_layer_norm", "native_layer_norm_backward"),
        *("linalg_vector_norm", "_log_softmax", "_log_softmax_backward_data"),
    ),
    "activations": ("gelu", "gelu_backward", "silu", "silu_backward", "tanh", "tanh_backward"),
    "moving": ("copy_", "cat", "clone", "index_select", "index", "gather", "embedding", "index_put_", "fill_", "zero_"),
}
"""Kind of kernel -> its names; what else computes is arithmetic by element."""
ELEMENTS = "by element"
REST = "Python and rest"
COLUMNS = (*KINDS, ELEMENTS, REST)


def main() -> None:
    """Profiles and writes the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", choices=CASES, default="minilm")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--methods", nargs="*", default=METHODS)
    given = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    case, dtype = CASES[given.model], getattr(torch, given.dtype)
    found = {}
    for name in dict.fromkeys([case.floor, *given.methods]):
        found[name] = profiled(case, dtype, quality.rows()[name], given.steps)
        print(name, found[name], flush=True)
    put(PAGE, [f"{given.model}, {given.dtype}, {processor()}.", "", *table(found, found[case.floor])], "shares")


def profiled(case: Case, dtype: torch.dtype, settings: dict[str, Any], steps: int) -> dict[str, float]:
    """Milliseconds of a step by kind of kernel, of the whole without a profiler, and its multiplications."""
    work = ours(case, dtype, settings)
    for _ in range(3):
        work.step()
    whole = statistics.median(seconds(work) for _ in range(steps))
    with FlopCounterMode(display=False) as counter:
        work.step()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for _ in range(steps):
            work.step()
    times: Counter[str] = Counter()
    for event in trace.key_averages():
        times[kind(event.key)] += event.self_cpu_time_total / 1000 / steps
    times[REST] = 1000 * whole - sum(times[name] for name in COLUMNS if name != REST)
    return {**{name: round(times[name], 1) for name in COLUMNS}, "step": round(1000 * whole, 1), **counted(counter)}


def counted(counter: FlopCounterMode) -> dict[str, float]:
    """Billions of multiplications and additions."""
    return {"gigaflops": round(counter.get_total_flops() / 1e9, 2)}


def kind(name: str) -> str:
    """The kind of a kernel by its name in the profile.

    >>> kind("aten::addmm"), kind("aten::mul"), kind("autograd::engine::evaluate_function: MmBackward0")
    ('products', 'by element', 'Python and rest')
    """
    space, _, own = name.partition("::")
    if space != "aten":
        return REST
    return next((kind for kind, names in KINDS.items() if own in names), ELEMENTS)


def seconds(work: Work) -> float:
    """CPU seconds of a step."""
    start = time.process_time()
    work.step()
    return time.process_time() - start


def table(found: dict[str, dict[str, float]], floor: dict[str, float]) -> list[str]:
    """A line per method: the step, its products' arithmetic, and where the milliseconds over the floor are."""
    lines = [
        f"| method | step | products' arithmetic x floor | {' | '.join(COLUMNS)} |",
        "|---|" + "---:|" * (2 + len(COLUMNS)),
    ]
    for name, one in sorted(found.items(), key=lambda item: item[1]["step"]):
        arithmetic = f"{one['gigaflops'] / floor['gigaflops']:.2f}"
        own = [f"{one[key]:.0f} ({one[key] - floor[key]:+.0f})" for key in COLUMNS]
        lines.append(f"| {name} | {one['step']:.0f} ms | {arithmetic} | {' | '.join(own)} |")
    return lines


if __name__ == "__main__":
    main()
