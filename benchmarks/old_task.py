"""An old task: what is left of named entities in a base that then learns the sentiment of film reviews.

    OMP_NUM_THREADS=1 python benchmarks/old_task.py [--entities DIR] [--reviews DIR] [--seeds 3]

First all-MiniLM-L6-v2 learns wikigold's entities by full fine-tuning (the rows of examples/token-classification.yaml),
and is kept as a checkpoint with its head. Then that checkpoint learns 1,500 reviews in 2 epochs, as in `forgetting.py`,
by methods at their defaults and by full fine-tuning at its own rate and at four times that. Before and after, F1 of the
old head on the entities' test rows (`forgetting.old`). Results are kept in docs/results/old-task.json by seed and
method, and not measured again; `benchmarks/claims.py` writes what follows.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import curves
import quality
from forgetting import ROWS
from pages import keep, known

import deltatune
from deltatune.core import registry
from deltatune.store import adapter as folders

KEPT, RUNS = Path("docs/results/old-task.json"), Path("runs/old-task")
CHECKPOINT = RUNS / "entities"
OLD_TRAINING = {"num_train_epochs": 12, "per_device_train_batch_size": 16, "early_stopping_patience": None, "seed": 1}
"""Of the entities; full fine-tuning at its own rate."""
ARMS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in ("lora", "adapter", "ia3", "bitfit", "full")},
    "full-higher-rate": {"method": "full", "training": {"learning_rate": 2e-4}},
}


def main() -> None:
    """Trains what is missing."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--entities", type=Path, default=Path(".cache/data/ner"))
    options.add_argument("--reviews", type=Path, default=Path(".cache/data/sentiment"))
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    kept = known(KEPT)
    for seed in range(1, given.seeds + 1):
        for name, arm in ARMS.items():
            own = kept.setdefault(str(seed), {})
            if name not in own:
                own[name] = trained(given.entities, given.reviews, f"{name}-{seed}", arm, seed)
                keep(KEPT, kept)
                print(f"{name}, seed {seed}: {own[name]}", flush=True)


def checkpoint(data: Path) -> Path:
    """The base that knows entities, made once."""
    if CHECKPOINT.is_dir():
        return CHECKPOINT
    shutil.rmtree(RUNS / "entities-run", ignore_errors=True)
    run = deltatune.finetune(
        task="token-classification",
        model=quality.MODEL,
        data={part: str(data / f"{part}.conll") for part in ("train", "validation", "test")},
        method="full",
        training=OLD_TRAINING,
        output_dir=RUNS / "entities-run",
        quiet=True,
    )
    loaded = registry.task(folders.read(run.adapter).facts["task"]).load(quality.MODEL)
    network: Any = deltatune.load(loaded.model, run.adapter).merge_and_unload()
    staging = RUNS / "entities.part"
    network.save_pretrained(staging)
    loaded.tokenizer.save_pretrained(staging)
    staging.rename(CHECKPOINT)
    print(f"entities: {run.results['test']}", flush=True)
    return CHECKPOINT


def trained(entities: Path, reviews: Path, name: str, arm: dict[str, Any], seed: int) -> dict[str, float]:
    """F1 of the old head before and after one run, and the accuracy of the new one; the run's folder goes."""
    place = RUNS / name
    shutil.rmtree(place, ignore_errors=True)
    run = deltatune.finetune(
        task={"type": "text-classification", "max_length": 128},
        model=str(checkpoint(entities)),
        data=curves.parts(reviews, ROWS, seed),
        method=arm["method"],
        training={**quality.TRAINING, **arm.get("training", {}), "seed": seed},
        forgetting={"old": {"task": "token-classification", "data": str(entities / "test.conll"), "rows": 10_000}},
        output_dir=place,
        quiet=True,
    )
    old = run.results["forgetting"]["old"]
    shutil.rmtree(place)
    return {
        "before": round(old["off"], 4),
        "after": round(old["on"], 4),
        "rows": old["rows"],
        "learning_rate": run.results["train"]["learning_rate"],
        "accuracy": run.results["test"]["accuracy"],
    }


if __name__ == "__main__":
    main()
