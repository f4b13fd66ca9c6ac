"""A sweep of eight settings: together on one base, one after the other, and by peft with a plain loop.

    OMP_NUM_THREADS=1 python benchmarks/sweep.py [--rows 2000] [--epochs 3] [--rounds 3]

LoRA on all linear layers of the top two of the six blocks of all-MiniLM-L6-v2, ranks 2, 4, 8, 16 by two learning rates,
sentences of film reviews, batches of 32, float32. CPU time of one process and one thread, from loading the model to the
tested adapter; nobody pays for starting Python. Every way runs all steps of all eight settings in the same batches;
a round runs every way once, and docs/results/sweep.md has the median of the rounds. Ours scores before training,
after every epoch and at the end, and writes run folders with checkpoints; the plain loop scores the test rows once.
"""

import argparse
import csv
import itertools
import logging
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import quality
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

import deltatune
from deltatune.core import registry
from deltatune.core.config import DataSettings, TrainingSettings
from deltatune.data.load import load
from deltatune.train.plan import Plan, Position

DATA = Path(".cache/data/reviews/reviews.csv")
PAGE, RUNS = Path("docs/results/sweep.md"), Path("runs/sweep")
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
    given = options.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("deltatune").setLevel(logging.ERROR)
    work = common(given.rows, given.epochs)
    ways: dict[str, Callable[[], Result]] = {
        "ours, together": lambda: together(work, 1),
        "ours, together, 8 in a pass": lambda: together(work, 8),
        "ours, 8 runs": lambda: separate(work),
        "`peft`, 8 runs, base without dropout": lambda: peft_runs(work, dropout=False),
        "`peft`, 8 runs, as it comes": lambda: peft_runs(work, dropout=True),
    }
    warm = common(60, 1)
    together(warm, 1), separate(warm), peft_runs(warm, dropout=False)
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
    """What all settings share; the first `rows` of the reviews are split by the tool."""
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RUNS / f"{rows}.csv"
    with DATA.open(encoding="utf-8", newline="") as file:
        chosen = list(itertools.islice(csv.reader(file), rows + 1))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(chosen)
    training = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": BATCH,
        "early_stopping_patience": None,
        "bf16": False,
        "seed": SEED,
    }
    task = {"type": "text-classification", "max_length": 128}
    return {"task": task, "model": quality.MODEL, "data": {"train": str(path)}, "training": training, "quiet": True}


def method(rank: int) -> Any:
    """LoRA of a rank in the top two blocks."""
    return deltatune.LoRA(r=rank, layers_to_transform="top-2")


def together(work: dict[str, Any], adapters_per_pass: int) -> Result:
    """All settings on one base."""
    shutil.rmtree(RUNS / "together", ignore_errors=True)
    runs = {name: {"method": method(r), "training": {"learning_rate": rate}} for name, (r, rate) in SETTINGS.items()}
    done = deltatune.finetune_many(runs, output_dir=RUNS / "together", adapters_per_pass=adapters_per_pass, **work)
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


def peft_runs(work: dict[str, Any], *, dropout: bool) -> Result:
    """peft and a plain loop for each setting."""
    return {name: peft_run(work, rank, rate, dropout=dropout) for name, (rank, rate) in SETTINGS.items()}


def peft_run(work: dict[str, Any], rank: int, rate: float, *, dropout: bool) -> float:
    """One setting: load, tokenize, train in the batches of our plan, test; the accuracy."""
    settings = TrainingSettings(**work["training"])
    parts = rows_of(work)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(quality.MODEL)
    base = AutoModelForSequenceClassification.from_pretrained(quality.MODEL, num_labels=2)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=16,
        target_modules=["query", "key", "value", "dense"],
        layers_to_transform=[4, 5],
        layers_pattern="layer",
    )
    model = get_peft_model(base, config)
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

    model.train(dropout)
    for step in plan.steps(Position()):
        inputs, labels = batch("train", step[0])
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
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


def write(measured: dict[str, list[float]], accuracies: dict[str, Result], given: argparse.Namespace) -> None:
    """The page: text in front stays, the table is made anew."""
    ours = measured["ours, together"]
    lines = [
        f"{given.rows} rows, {given.epochs} epochs, {given.rounds} rounds, torch {torch.__version__}.",
        "",
        "| way | CPU seconds for all eight | against ours together | test accuracy, least to most |",
        "|---|---:|---:|---:|",
    ]
    for name, seconds in measured.items():
        ratio = statistics.median(other / own for other, own in zip(seconds, ours, strict=True))
        low, high = min(accuracies[name].values()), max(accuracies[name].values())
        lines.append(f"| {name} | {statistics.median(seconds):.1f} | {ratio:.2f} x | {low:.3f} to {high:.3f} |")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- table:start -->\n")
    _, mark, after = rest.partition("<!-- table:end -->")
    PAGE.write_text(before + "<!-- table:start -->\n" + "\n".join(lines) + "\n" + mark + after, encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
