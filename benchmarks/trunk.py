"""Time of a training step with the trunk's output kept: LoRA in the top k blocks against LoRA in all of them.

    OMP_NUM_THREADS=1 python benchmarks/trunk.py [--pairs 15]

CPU time of one process, one thread, float32, all-MiniLM-L6-v2, 16 rows of 128 tokens; a step with LoRA in all six
blocks, one in the top k and one in the top k with the trunk kept alternate. Writes docs/results/trunk.md: medians and
quartiles of the ratios. The losses of the last two are compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import quality
import torch
from bars import bars
from pages import put
from transformers import AutoModelForSequenceClassification

import deltatune
from deltatune.core.task import TRUNK
from deltatune.engine.conditions import told
from deltatune.engine.trunk import Trunk, trunk_of

PAGE, PLOT = Path("docs/results/trunk.md"), Path("docs/results/trunk.svg")
ROWS, TOKENS = 16, 128
Step = Callable[[], float]


def main() -> None:
    """Measures and writes."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=15)
    given = options.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| LoRA in | against all blocks | against the same without keeping | difference of losses |",
        "|---|---:|---:|---:|",
    ]
    shown = {"LoRA in all blocks": 1.0}
    for top in (1, 2, 3):
        every, plain, kept = step(None, False), step(f"top-{top}", False), step(f"top-{top}", True)
        times: list[list[float]] = []
        apart = 0.0
        for number in range(given.pairs + 2):
            row, losses = [], []
            for work in (every, plain, kept):
                start = time.process_time()
                losses.append(work())
                row.append(time.process_time() - start)
            apart = max(apart, abs(losses[1] - losses[2]))
            if number > 1:
                times.append(row)
        found = [spread([row[0] / row[2] for row in times]), spread([row[1] / row[2] for row in times])]
        lines.append(f"| top {top} of 6 | {found[0]} | {found[1]} | {apart:.1e} |")
        shown[f"top {top}, ours"] = statistics.median(row[0] / row[2] for row in times)
        print(lines[-1], flush=True)
    bars(PLOT, "A step with the trunk kept: times as fast as LoRA in all six blocks", shown)
    put(PAGE, lines)


def spread(ratios: list[float]) -> str:
    """Median and quartiles, as how many times faster."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.1f} x ({low:.1f} to {high:.1f})"


def step(blocks: str | None, keep: bool) -> Step:
    """A training step; its loss."""
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(quality.MODEL, attn_implementation="eager").eval()
    model = deltatune.prepare(base, deltatune.LoRA(r=8, layers_to_transform=blocks))
    adapter = deltatune.Adapter(model, "default")
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4, fused=True)
    batch = {
        "input_ids": torch.randint(1000, 20000, (ROWS, TOKENS)),
        "attention_mask": torch.ones(ROWS, TOKENS, dtype=torch.long),
    }
    labels = torch.randint(0, 2, (ROWS,))
    numbers = {}
    if keep:
        trunk = Trunk(adapter, trunk_of(adapter))
        numbers = {TRUNK: torch.tensor(trunk.keep(batch))}
        adapter.roster.trunk = trunk

    def work() -> float:
        with told(model, {**batch, **numbers}):
            loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return work


if __name__ == "__main__":
    main()
