"""A sweep of eight settings: together on one base, one after the other, and by peft with a plain loop.

    OMP_NUM_THREADS=1 python benchmarks/sweep.py [--rows 2000] [--epochs 3] [--rounds 3]

LoRA on all linear layers of the top two of the six blocks of all-MiniLM-L6-v2, ranks 2, 4, 8, 16 by two learning rates,
sentences of film reviews, batches of 32. CPU time of one process and one thread, from loading the model to the tested
adapter; nobody pays for starting Python. Every way runs all steps of all eight settings in the same batches; a round
runs every way once, and docs/results/sweep.md has the median of the rounds. Ours is as it comes: in bfloat16 where the
processor is faster with it. It scores before training, after every epoch and at the end, and writes run folders with
checkpoints and reports. peft's loop scores the test rows once and writes nothing: as it comes (float32, the base drops
out), and tuned (no dropout, base and adapter in the dtype of ours, eager attention in bfloat16).
"""

import argparse
import cProfile
import csv
import itertools
import logging
import random
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import quality
import torch
from bars import bars
from job import parts
from pages import put
from peft import LoraConfig, get_peft_model
from step import processor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

import deltatune
from deltatune.core import registry
from deltatune.core.config import DataSettings, TrainingSettings
from deltatune.data.load import load
from deltatune.engine.precision import base_dtype
from deltatune.train.plan import Plan, Position

DATA = Path(".cache/data/reviews/reviews.csv")
PAGE, PLOT, RUNS = Path("docs/results/sweep.md"), Path("docs/results/sweep.svg"), Path("runs/sweep")
RANKS, RATES, SEED, BATCH = (2, 4, 8, 16), (5e-4, 2e-3), 1, 32
SETTINGS = {f"r{rank}-{rate * 1e4:g}e-4": (rank, rate) for rank, rate in itertools.product(RANKS, RATES)}
Result = dict[str, float]
"""CPU seconds and test accuracies of one way."""


def main() -> None:
    """Measures and writes."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=2000)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--parts", action="store_true", help="only measure again what ours consists of")
    given = options.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("deltatune").setLevel(logging.ERROR)
    work = common(given.rows, given.epochs)
    ways: dict[str, Callable[[], Result]] = {
        "ours, together": lambda: together(work),
        "ours, 8 runs": lambda: separate(work),
        "`peft`, 8 runs, tuned": lambda: peft_runs(work, tuned=True),
        "`peft`, 8 runs, as it comes": lambda: peft_runs(work, tuned=False),
    }
    warm = common(60, 1)
    together(warm)
    write_parts(work)
    if given.parts:
        return
    peft_run(warm, 2, 1e-3, tuned=True)
    measured: dict[str, list[float]] = {name: [] for name in ways}
    accuracies: dict[str, Result] = {}
    for number in range(given.rounds):
        for name, way in ways.items():
            start = time.process_time()
            accuracies[name] = way()
            measured[name].append(time.process_time() - start)
            print(f"round {number + 1}  {name:38} {measured[name][-1]:7.1f} s", flush=True)
    write(measured, accuracies, given)


def common(rows: int, epochs: int) -> dict[str, Any]:
    """What all settings share; some rows of the reviews, split by the tool."""
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RUNS / f"{rows}.csv"
    with DATA.open(encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    chosen = [head, *random.Random(SEED).sample(lines, rows)]  # the file has the positive ones first
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(chosen)
    training = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": BATCH,
        "early_stopping_patience": None,
        "seed": SEED,
    }
    task = {"type": "text-classification", "max_length": 128}
    return {"task": task, "model": quality.MODEL, "data": {"train": str(path)}, "training": training, "quiet": True}


def method(rank: int) -> Any:
    """LoRA of a rank in the top two blocks."""
    return deltatune.LoRA(r=rank, layers_to_transform="top-2")


def together(work: dict[str, Any]) -> Result:
    """All settings on one base."""
    shutil.rmtree(RUNS / "together", ignore_errors=True)
    runs = {name: {"method": method(r), "training": {"learning_rate": rate}} for name, (r, rate) in SETTINGS.items()}
    done = deltatune.finetune_many(runs, output_dir=RUNS / "together", **work)
    return {name: run.results["test"]["accuracy"] for name, run in done.items()}


def separate(work: dict[str, Any]) -> Result:
    """A run for each setting."""
    shutil.rmtree(RUNS / "separate", ignore_errors=True)
    found = {}
    for name, (rank, rate) in SETTINGS.items():
        training = {**work["training"], "learning_rate": rate}
        given = {**work, "training": training, "output_dir": RUNS / "separate" / name, "method": method(rank)}
        found[name] = deltatune.finetune(**given).results["test"]["accuracy"]
    return found


def peft_runs(work: dict[str, Any], *, tuned: bool) -> Result:
    """peft and a plain loop for each setting."""
    return {name: peft_run(work, rank, rate, tuned=tuned) for name, (rank, rate) in SETTINGS.items()}


def peft_run(work: dict[str, Any], rank: int, rate: float, *, tuned: bool) -> float:
    """One setting: load, tokenize, train in the batches of our plan, test; the accuracy."""
    settings = TrainingSettings(**work["training"])
    parts = rows_of(work)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(quality.MODEL)
    dtype = base_dtype("auto") if tuned else torch.float32
    attention = "eager" if dtype == torch.bfloat16 else "sdpa"
    base = AutoModelForSequenceClassification.from_pretrained(
        quality.MODEL, num_labels=2, dtype=dtype, attn_implementation=attention
    )
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=16,
        target_modules=["query", "key", "value", "dense"],
        layers_to_transform=[4, 5],
        layers_pattern="layer",
    )
    model = get_peft_model(base, config, autocast_adapter_dtype=not tuned)
    encoded = {name: tokenizer([t for t, _ in rows], truncation=True, max_length=128) for name, rows in parts.items()}
    ids = encoded["train"]["input_ids"]
    plan = Plan.of([{"length": len(row)} for row in ids], settings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.01)
    warm = int(0.06 * plan.total)
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: n / max(1, warm) if n < warm else (plan.total - n) / max(1, plan.total - warm)
    )

    def batch(name: str, indices: list[int]) -> tuple[Any, torch.Tensor]:
        padded = tokenizer.pad({k: [v[i] for i in indices] for k, v in encoded[name].items()}, return_tensors="pt")
        return padded, torch.tensor([parts[name][i][1] for i in indices])

    model.train(not tuned)
    for step in plan.steps(Position()):
        inputs, labels = batch("train", step[0])
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits.float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        shape.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    order = sorted(range(len(parts["test"])), key=lambda i: len(encoded["test"]["input_ids"][i]))
    right = 0
    with torch.no_grad():
        for start in range(0, len(order), 64):
            inputs, labels = batch("test", order[start : start + 64])
            right += int((model(**inputs).logits.argmax(1) == labels).sum())
    return right / len(order)


def rows_of(work: dict[str, Any]) -> dict[str, list[tuple[str, int]]]:
    """Text and label of the rows in the parts that our runs have."""
    splits = load(DataSettings(**work["data"]), registry.task(work["task"]), Path.cwd())
    names = list(splits.task.label_names)
    return {part: [(row["text"], names.index(row["label"])) for row in rows] for part, rows in splits.parts.items()}


def write_parts(work: dict[str, Any]) -> None:
    """The table of what ours consists of, by cProfile, which weighs Python more than it costs."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(together, work)
    profile.dump_stats(RUNS / "profile")
    lines = ["| part of ours, together | share |", "|---|---:|"]
    shares = parts(RUNS / "profile")
    lines += [f"| {part} | {share:.1%} |" for part, share in sorted(shares.items(), key=lambda pair: -pair[1]) if share]
    put(PAGE, lines, "parts")


def write(measured: dict[str, list[float]], accuracies: dict[str, Result], given: argparse.Namespace) -> None:
    """The page: text in front stays, the table is made anew."""
    ours = measured["ours, together"]
    lines = [
        f"{given.rows} rows, {given.epochs} epochs, {given.rounds} rounds, {processor()}.",
        "",
        "| way | CPU seconds for all eight | against ours together | test accuracy, least to most |",
        "|---|---:|---:|---:|",
    ]
    for name, seconds in measured.items():
        ratio = statistics.median(other / own for other, own in zip(seconds, ours, strict=True))
        low, high = min(accuracies[name].values()), max(accuracies[name].values())
        lines.append(f"| {name} | {statistics.median(seconds):.1f} | {ratio:.2f} x | {low:.3f} to {high:.3f} |")
    medians = {name: statistics.median(seconds) for name, seconds in measured.items()}
    bars(PLOT, f"CPU seconds of eight settings, {given.rows} rows, {given.epochs} epochs", medians, "{:.0f}")
    put(PAGE, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
