"""Time of a training step as a multiple of the floor: every method against BitFit on the same batch.

    OMP_NUM_THREADS=1 python benchmarks/steps.py [--pairs 15] [--methods lora ia3]

CPU time of one process, one thread, float32, all-MiniLM-L6-v2, 32 rows of 32 tokens; a step of the method and a step
of BitFit alternate, and the quartiles and median of the ratios are kept in docs/results/steps.json. A step is forward,
loss, backward and AdamW.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import quality
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

import deltatune

PAGE = Path("docs/results/steps.json")
ROWS, TOKENS = 32, 32


def main() -> None:
    """Measures and writes."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=15)
    options.add_argument("--methods", nargs="*")
    given = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(quality.MODEL, attn_implementation="eager").eval()
    batch = {
        "input_ids": torch.randint(1000, 20000, (ROWS, TOKENS)),
        "attention_mask": torch.ones(ROWS, TOKENS, dtype=torch.long),
        "labels": torch.randint(0, 2, (ROWS,)),
    }
    floor = step(base, "bitfit", batch)
    found = json.loads(PAGE.read_text(encoding="utf-8")) if PAGE.is_file() else {}
    for name, settings in quality.rows().items():
        if given.methods and name not in given.methods:
            continue
        work = step(base, settings, batch)
        for warm in (floor, work, floor, work):
            warm()
        ratios = [seconds(work) / seconds(floor) for _ in range(given.pairs)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[name] = [round(low, 3), round(middle, 3), round(high, 3)]
        print(f"{name:32} {middle:5.2f} ({low:.2f} to {high:.2f})", flush=True)
    PAGE.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def step(base: nn.Module, method: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A training step of a method on a copy of the base."""
    model = deltatune.prepare(copy.deepcopy(base), deltatune.method(method))
    adapter = deltatune.Adapter(model, "default")
    adapter.expect_steps(1000)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4, fused=True)

    def work() -> None:
        loss = model(**batch).loss
        penalty = adapter.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def seconds(work: Callable[[], None]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
