"""A whole job, from two CSV files to a tested adapter: ours beside transformers' Trainer with peft.

    OMP_NUM_THREADS=1 python benchmarks/job.py [--rows 2000] [--epochs 2] [--rounds 1]

Sentiment of film reviews, all-MiniLM-L6-v2, LoRA r = 8 on all linear layers, 32 rows a batch, rate 1e-3, linear decay,
the best epoch kept, test rows scored once. CPU time of a process of its own with one thread, imports and tokenisation
included; the three alternate. `peft` is the script that its documentation shows (Trainer, a collator that
pads to the longest row of a batch); `peft, tuned` also brings rows of similar length together, leaves out the base's
dropout and keeps the adapter in the base's dtype. Rows come in another order in each of them, the first two draw it.
Writes docs/results/job.md.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from step import processor

PAGE = Path("docs/results/job.md")
MODEL, DATA = ".cache/models/minilm", Path(".cache/data/sentiment")
NAMES = ("deltatune", "peft", "peft, tuned")
SEED, BATCH, RATE, RANK = 1, 32, 1e-3, 8


def main() -> None:
    """Runs every job in a process of its own, or is that process."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=2000)
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--run", choices=NAMES)
    options.add_argument("--folder", type=Path)
    given = options.parse_args()
    if given.run:
        work = ours if given.run == "deltatune" else theirs
        accuracy = work(given.folder, given.epochs, tuned=given.run == "peft, tuned")
        sys.stdout.write(json.dumps({"accuracy": accuracy}) + "\n")
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), given.rows)
        for _ in range(given.rounds):
            for name in NAMES:
                found[name].append(measured(name, Path(place), given.epochs))
                print(name, found[name][-1], flush=True)
    write(found, given.rows, given.epochs)


def prepare(place: Path, rows: int) -> None:
    """The first training rows, and the other parts whole."""
    lines = (DATA / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (place / "train.csv").write_text("".join(lines[: rows + 1]), encoding="utf-8")
    for part in ("validation", "test"):
        (place / f"{part}.csv").write_bytes((DATA / f"{part}.csv").read_bytes())


def measured(name: str, place: Path, epochs: int) -> tuple[float, float]:
    """CPU seconds and test accuracy of one job."""
    command = [sys.executable, __file__, "--run", name, "--folder", str(place), "--epochs", str(epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, json.loads(done.stdout.splitlines()[-1])["accuracy"]


def ours(place: Path, epochs: int, *, tuned: bool) -> float:
    """As in the README; nothing is tuned."""
    import deltatune

    with tempfile.TemporaryDirectory() as folder:
        run = deltatune.finetune(
            task={"type": "text-classification", "max_length": 128},
            model=MODEL,
            data={part: str(place / f"{part}.csv") for part in ("train", "validation", "test")},
            method=deltatune.LoRA(r=RANK, target_modules="all-linear"),
            training={
                "num_train_epochs": epochs,
                "per_device_train_batch_size": BATCH,
                "learning_rate": RATE,
                "seed": SEED,
            },
            output_dir=Path(folder) / "run",
        )
    return float(run.results["test"]["accuracy"])


def theirs(place: Path, epochs: int, *, tuned: bool) -> float:
    """The script of peft's documentation for sequence classification."""
    import numpy as np
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    settings: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if tuned else {}
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2, **settings)
    config = LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    model = get_peft_model(model, config, autocast_adapter_dtype=not tuned)
    parts = {}
    for part in ("train", "validation", "test"):
        with (place / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = sorted({row["label"] for row in rows})
        encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=128)["input_ids"]
        parts[part] = [
            {"input_ids": ids, "labels": names.index(row["label"])} for ids, row in zip(encoded, rows, strict=True)
        ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            learning_rate=RATE,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=64,
            num_train_epochs=epochs,
            weight_decay=0.01,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            train_sampling_strategy="group_by_length" if tuned else "random",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=parts["train"],
            eval_dataset=parts["validation"],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda found: {"accuracy": float((np.argmax(found[0], -1) == found[1]).mean())},
        )
        trainer.train()
        return float(trainer.predict(parts["test"]).metrics["test_accuracy"])


def write(found: dict[str, list[tuple[float, float]]], rows: int, epochs: int) -> None:
    """The table."""
    own = statistics.median(seconds for seconds, _ in found["deltatune"])
    lines = [f"{rows:,} training rows, {epochs} epochs; {processor()}.", ""]
    lines += ["| | CPU seconds | times ours | test accuracy |", "|---|---:|---:|---:|"]
    for name, runs in found.items():
        seconds = statistics.median(one for one, _ in runs)
        accuracy = statistics.mean(one for _, one in runs)
        lines.append(f"| {name} | {seconds:.0f} | {seconds / own:.2f} | {accuracy:.1%} |")
    begin, end = "<!-- table:start -->\n", "<!-- table:end -->"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(before + begin + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
