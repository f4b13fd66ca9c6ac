"""Forgetting: how far a base's representations move, by adapters and by full fine-tuning, over several seeds.

    OMP_NUM_THREADS=1 python benchmarks/forgetting.py --data DIR [--seeds 3]

Rows, model and arms are those of `curves.py`, 1,500 training rows, 2 epochs. Agreement is CKA between what the last
block makes of 256 validation rows before and after, adapter on (`deltatune.evaluate.forgetting`): 1 is unmoved but for
rotation and scale. Results are kept in docs/results/forgetting.json; `benchmarks/claims.py` writes what follows.
"""

import argparse
from pathlib import Path
from typing import Any

import curves
import quality
from pages import keep, known

import deltatune

KEPT, RUNS = Path("docs/results/forgetting.json"), Path("runs/forgetting")
ROWS = 1500


def main() -> None:
    """Trains what is missing."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(".cache/data/sentiment"))
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    kept = known(KEPT)
    for seed in range(1, given.seeds + 1):
        for name, arm in curves.ARMS.items():
            own = kept.setdefault(str(seed), {})
            if name not in own:
                own[name] = trained(given.data, f"{name}-{seed}", arm, seed)
                keep(KEPT, kept)
                print(f"{name}, seed {seed}: {own[name]}", flush=True)


def trained(data: Path, name: str, arm: dict[str, Any], seed: int) -> dict[str, float]:
    """Agreement and test accuracy of one run."""
    run = deltatune.finetune(
        task={"type": "text-classification", "max_length": 128},
        model=quality.MODEL,
        data=curves.parts(data, ROWS, seed),
        method=arm["method"],
        training={**quality.TRAINING, **arm.get("training", {}), "seed": seed},
        forgetting={},
        output_dir=RUNS / name,
        quiet=True,
    )
    agreement = run.results["forgetting"]["agreement"]
    return {
        "agreement": round(agreement["on"], 4),
        "off": agreement["off"],
        "accuracy": run.results["test"]["accuracy"],
    }


if __name__ == "__main__":
    main()
