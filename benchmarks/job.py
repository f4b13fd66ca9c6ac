"""A whole job, from two CSV files to a tested adapter: ours beside transformers' Trainer with peft.

    OMP_NUM_THREADS=1 python benchmarks/job.py [--rows 2000] [--epochs 3] [--rounds 1]

Sentiment of film reviews (the demo's rows), all-MiniLM-L6-v2, LoRA r = 8 on all linear layers, 32 rows a batch, rate
1e-3, linear decay, the best epoch kept, test rows scored once. CPU time of a process of its own with one thread,
imports and tokenisation included; the three alternate, each round has a seed of its own. `peft` is the script that its
documentation shows (Trainer in float32, dropout of 0.1, a collator that pads to the longest row of a batch); `peft,
tuned` brings rows of similar length together, leaves out all dropout, loads the base in bfloat16 where ours does, with
the adapter in the same dtype and eager attention. Rows come in another order in each of them.

Afterwards ours runs once more under cProfile, for the table of its parts. Writes docs/results/job.md and job.svg.
"""

import argparse
import cProfile
import csv
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bars import bars
from pages import put
from step import processor

PAGE, PLOT = Path("docs/results/job.md"), Path("docs/results/job.svg")
MODEL, DATA = ".cache/models/minilm", Path(".cache/data/reviews/reviews.csv")
NAMES = ("deltatune", "peft", "peft, tuned")
BATCH, RATE, RANK = 32, 1e-3, 8
PARTS = {
    "imports": ("<module>",),
    "reading, checking and splitting rows": ("data/load.py:load",),
    "loading the base": ("task.py:load",),
    "tokens": ("usable.py:usable",),
    "attaching": ("adapters.py:attach",),
    "scoring": ("answer.py:answers",),
    "forward of the steps": ("gradient.py:_losses",),
    "backward of the steps": ("accelerator.py:backward",),
    "clipping, optimizer, schedule, guards": ("runner.py:step",),
    "collating batches": ("gradient.py:shared",),
    "log, best adapter and checkpoints": ("records.py:log", "records.py:best", "records.py:checkpoint"),
    "baselines": ("finetuning.py:baselines",),
    "hashes of the base": ("fingerprint.py:exact_hash",),
    "the trunk, once": ("trunk.py:kept",),
    "curves and report": ("finetuning.py:_draw", "finetuning.py:_report"),
}
"""What a part is called -> the functions whose time it is, by the end of file and name."""


def main() -> None:
    """Runs every job in a process of its own, or is that process."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=2000)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--run", choices=NAMES)
    options.add_argument("--folder", type=Path)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--profile", type=Path)
    given = options.parse_args()
    if given.run:
        profile = cProfile.Profile()
        if given.profile:
            profile.enable()
        work = ours if given.run == "deltatune" else theirs
        accuracy = work(given.folder, given.epochs, given.seed, tuned=given.run == "peft, tuned")
        if given.profile:
            profile.dump_stats(given.profile)
        sys.stdout.write(json.dumps({"accuracy": accuracy}) + "\n")
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), given.rows)
        for number in range(given.rounds):
            for name in NAMES:
                found[name].append(measured(name, Path(place), given.epochs, number + 1))
                print(name, found[name][-1], flush=True)
        profile = Path(place) / "profile"
        measured("deltatune", Path(place), given.epochs, 1, profile)
        write(found, given.rows, given.epochs, parts(profile))


def prepare(place: Path, rows: int) -> None:
    """The demo's split, with some of its training rows."""
    from deltatune.core import registry
    from deltatune.core.config import DataSettings
    from deltatune.data.load import load

    splits = load(DataSettings(train=str(DATA), max_rows=rows), registry.task("text-classification"), Path.cwd())
    for name, part in splits.parts.items():
        with (place / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ("text", "label"), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(part)


def measured(name: str, place: Path, epochs: int, seed: int, profile: Path | None = None) -> tuple[float, float]:
    """CPU seconds and test accuracy of one job."""
    command = [sys.executable, __file__, "--run", name, "--folder", str(place), "--epochs", str(epochs)]
    command += ["--seed", str(seed), *(["--profile", str(profile)] if profile else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, json.loads(done.stdout.splitlines()[-1])["accuracy"]


def ours(place: Path, epochs: int, seed: int, *, tuned: bool) -> float:
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
                "seed": seed,
            },
            output_dir=Path(folder) / "run",
        )
    return float(run.results["test"]["accuracy"])


def theirs(place: Path, epochs: int, seed: int, *, tuned: bool) -> float:
    """The script of peft's documentation for sequence classification, on all linear layers as ours."""
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    settings: dict[str, Any] = {"dtype": torch.float32}
    if tuned:
        from deltatune.engine.precision import base_dtype

        settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dtype": base_dtype("auto")}
        if settings["dtype"] == torch.bfloat16:
            settings["attn_implementation"] = "eager"
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2, **settings)
    dropout = 0.0 if tuned else 0.1
    config = LoraConfig(
        task_type="SEQ_CLS", r=RANK, lora_alpha=2 * RANK, lora_dropout=dropout, target_modules="all-linear"
    )
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
            per_device_eval_batch_size=64 if tuned else BATCH,
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
            seed=seed,
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


def parts(profile: Path) -> dict[str, float]:
    """Share of each part of ours in the profiled run, and of the rest."""
    stats: Any = pstats.Stats(str(profile))
    named = {f"{file}:{name}": times for (file, _, name), times in stats.stats.items()}
    found = {}
    for part, functions in PARTS.items():
        if part == "imports":
            seconds = max((times[3] for key, times in named.items() if key.endswith("_find_and_load")), default=0.0)
        else:
            seconds = sum(times[3] for key, times in named.items() if key.endswith(functions))
        found[part] = seconds / stats.total_tt
    return found | {"the rest": 1 - sum(found.values())}


def write(found: dict[str, list[tuple[float, float]]], rows: int, epochs: int, shares: dict[str, float]) -> None:
    """The tables and the plot."""
    own = statistics.median(seconds for seconds, _ in found["deltatune"])
    lines = [f"{rows:,} training rows, {epochs} epochs, {len(found['peft'])} rounds; {processor()}.", ""]
    lines += ["| | CPU seconds | times ours | test accuracy, mean | least to most |", "|---|---:|---:|---:|---|"]
    for name, runs in found.items():
        seconds = statistics.median(one for one, _ in runs)
        accuracy = [one for _, one in runs]
        ends = f"{min(accuracy):.1%} to {max(accuracy):.1%}"
        lines.append(f"| {name} | {seconds:.0f} | {seconds / own:.2f} | {statistics.mean(accuracy):.1%} | {ends} |")
    lines += ["", "| part of ours | share |", "|---|---:|"]
    lines += [f"| {part} | {share:.1%} |" for part, share in sorted(shares.items(), key=lambda pair: -pair[1])]
    medians = {name: statistics.median(seconds for seconds, _ in runs) for name, runs in found.items()}
    bars(PLOT, f"CPU seconds of a whole job, {rows:,} rows, {epochs} epochs", medians, "{:.0f}")
    put(PAGE, lines)


if __name__ == "__main__":
    main()
