"""Attention in training: plain products against the fused kernel, forward and backward, by dtype and length.

    OMP_NUM_THREADS=1 python benchmarks/attention.py [--pairs 12]

CPU time of one process and one thread, the two alternating; medians, and the median of the ratios with
quartiles. Writes docs/results/attention.md, a table per processor: `engine/attention_by_shape.py` chooses by these.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from deltatune.engine.attention_by_shape import plain

PAGE = Path("docs/results/attention.md")
SHAPES = ((16, 32, 12, 32), (16, 128, 12, 32), (8, 32, 12, 64), (8, 64, 12, 64), (8, 128, 12, 64), (4, 256, 12, 64))
SHAPES += ((2, 512, 12, 64), (1, 1024, 12, 64))


def main() -> None:
    """Measures, and writes the table of this processor."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=12)
    given = options.parse_args()
    torch.set_num_threads(1)
    lines = [f"## {processor()}", "", "| dtype | rows | tokens | heads x width | plain | fused | plain / fused |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            lines.append(line(dtype, shape, given.pairs if dtype == torch.float32 else max(3, given.pairs // 4)))
            print(lines[-1], flush=True)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(lines[0])
    _, mark, after = rest.partition("\n## ")
    PAGE.write_text(before.rstrip() + "\n\n" + "\n".join(lines) + "\n" + ("\n## " + after if mark else ""), "utf-8")


def processor() -> str:
    """Vendor and vector units of this processor, and torch's version."""
    info = Path("/proc/cpuinfo")
    names = [row.partition(":")[2].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
    return (
        f"{(names or [platform.processor()])[0]}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    )


def line(dtype: torch.dtype, shape: tuple[int, int, int, int], pairs: int) -> str:
    """One row of the table."""
    rows, tokens, heads, width = shape
    works = [work(function, dtype, shape) for function in (plain, sdpa_attention_forward)]
    for once in works:
        once()
    times = [[seconds(once) for once in works] for _ in range(pairs)]
    products, fused = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    low, middle, high = statistics.quantiles([a / b for a, b in times], n=4)
    ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    name = str(dtype).removeprefix("torch.")
    return f"| {name} | {rows} | {tokens} | {heads} x {width} | {products:.1f} ms | {fused:.1f} ms | {ratio} |"


def work(function: Callable[..., object], dtype: torch.dtype, shape: tuple[int, int, int, int]) -> Callable[[], None]:
    """Forward and backward with a fifth of the keys masked."""
    rows, tokens, heads, width = shape
    given = [torch.randn(rows, tokens, heads, width, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
    mask[..., tokens - tokens // 5 :] = False

    upstream = torch.randn(rows, tokens, heads, width, dtype=dtype)

    def once() -> None:
        output, _ = function(nn.Module(), *given, mask, is_causal=False)
        torch.autograd.grad(output, given, upstream)

    return once


def seconds(once: Callable[[], None]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    once()
    return time.process_time() - start


if __name__ == "__main__":
    main()
