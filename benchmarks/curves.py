"""Learning curves: accuracy by the number of training rows, of adapters and of full fine-tuning, over several seeds.

    OMP_NUM_THREADS=1 python benchmarks/curves.py --data DIR [--seeds 5] [--sizes 32 128 512 2048]

DIR holds train.csv, validation.csv and test.csv of film reviews with the columns text and label; the model is
all-MiniLM-L6-v2. A seed draws the training rows, their order and the initial values, the same for all methods; as many
validation rows, at most 512, choose the best of five places in the training. Methods at their defaults, full
fine-tuning also at a rate half a decade above its own. The test rows are read once per run. Results are kept in
docs/results/curves.json, by size, seed and method, and not measured again; `benchmarks/claims.py` writes what follows.
"""

import argparse
import csv
import random
import shutil
from pathlib import Path
from typing import Any

import quality
from pages import keep, known

import deltatune

KEPT, RUNS = Path("docs/results/curves.json"), Path("runs/curves")
EPOCHS = {32: 60, 128: 20, 512: 6, 2048: 3}
"""Rows -> passes over them: fewer rows are shown more often, as one would."""
MOST_HELD_OUT, BATCH, LOOKS = 512, 16, 5
"""Validation rows at most, rows of a step, and how often a training looks at the validation rows."""
ARMS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "adapter": {"method": "adapter"},
    "full": {"method": "full"},
    "full-higher-rate": {"method": "full", "training": {"learning_rate": 1.6e-4}},
}
Kept = dict[str, dict[str, dict[str, float]]]
"""Rows -> seed -> arm -> test accuracy."""


def main() -> None:
    """Trains what is missing, one size and seed after the other."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(".cache/data/sentiment"))
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--sizes", type=int, nargs="*", default=list(EPOCHS), choices=list(EPOCHS))
    given = options.parse_args()
    kept: Kept = known(KEPT)
    for seed in range(1, given.seeds + 1):
        for size in given.sizes:
            own = kept.setdefault(str(size), {})
            if str(seed) not in own:
                own[str(seed)] = found = trained(given.data, size, seed)
                keep(KEPT, kept)
                print(f"{size} rows, seed {seed}: {found}", flush=True)


def trained(data: Path, size: int, seed: int) -> dict[str, float]:
    """Test accuracy of every arm on the same rows."""
    place = RUNS / f"{size}-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    runs = deltatune.finetune_many(
        ARMS,
        task={"type": "text-classification", "max_length": 128},
        model=quality.MODEL,
        data=parts(data, size, seed),
        output_dir=place,
        training={
            "num_train_epochs": EPOCHS[size],
            "per_device_train_batch_size": BATCH,
            "eval_steps": EPOCHS[size] * size // BATCH // LOOKS,
            "early_stopping_patience": None,
            "seed": seed,
        },
        quiet=True,
    )
    return {name: run.results["test"]["accuracy"] for name, run in runs.items()}


def parts(data: Path, size: int, seed: int) -> dict[str, str]:
    """So many training rows, as many for validation up to a limit, and all test rows."""
    return {
        "train": some_rows(data / "train.csv", size, seed),
        "validation": some_rows(data / "validation.csv", min(size, MOST_HELD_OUT), seed),
        "test": str(data / "test.csv"),
    }


def some_rows(path: Path, number: int, seed: int) -> str:
    """A file of so many rows of another one, drawn by the seed."""
    RUNS.mkdir(parents=True, exist_ok=True)
    drawn = RUNS / f"{path.stem}-{number}-{seed}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    with drawn.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *random.Random(seed).sample(rows, number)])
    return str(drawn)


if __name__ == "__main__":
    main()
