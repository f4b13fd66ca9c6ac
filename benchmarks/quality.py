"""Every method on one real task: sentences of film reviews, all-MiniLM-L6-v2, default settings, several seeds.

    python benchmarks/quality.py --data DIR [--seeds 3] [--methods lora ia3] [--table]

DIR holds train.csv, validation.csv and test.csv with the columns text and label; the model is the demo's. Each run is a
process of its own in runs/quality/, on the first 4,000 rows of train.csv. What it found is kept in
docs/results/quality.json, by method and seed, and not measured again. `--table` writes docs/results/quality.md,
README.md and the methods' pages from that, without training. Learning rates are the methods' defaults; the test rows
are read once per run.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from pages import keep, known, put

from deltatune.core.amounts import size
from deltatune.core.registry import methods

MODEL = ".cache/models/minilm"
RUNS = Path("runs/quality")
KEPT, PAGE = Path("docs/results/quality.json"), Path("docs/results/quality.md")
STEPS, DECODER = Path("docs/results/step.json"), Path("docs/results/decoder.json")
PAGES = Path("docs/methods")
TRAINING_ROWS = 4_000
TRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 32, "early_stopping_patience": None}

VARIANTS: dict[str, dict[str, Any]] = {
    "adapter, pfeiffer": {"type": "adapter", "placement": "pfeiffer"},
    "adapter, parallel": {"type": "adapter", "placement": "parallel", "scaling": 2.0},
    "compacter++": {"type": "compacter", "sublayers": ["mlp"]},
    "conditional-adapter, hypernet": {"type": "conditional-adapter", "generator": "hypernet"},
}
"""Settings besides every method's defaults."""
COLUMNS = ("method", "test accuracy", "seeds", "trained", "adapter", "CPU time", "peak memory", "step")


def main() -> None:
    """Trains what is missing, writes the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(".cache/data/sentiment"))
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--methods", nargs="*")
    options.add_argument("--table", action="store_true")
    given = options.parse_args()
    chosen = {name: settings for name, settings in rows().items() if not given.methods or name in given.methods}
    if not given.table:
        for seed in range(1, given.seeds + 1):
            for name, settings in chosen.items():
                train(name, settings, seed, given.data)
    write(rows())


def rows() -> dict[str, dict[str, Any]]:
    """Name in the table -> settings: every method by itself, and the variants."""
    plain = {name: {"type": name} for name in methods() if name not in ("mix", "adapter-fusion")}
    return dict(sorted({**plain, **VARIANTS}.items()))


def folder(name: str, seed: int) -> Path:
    """Where a run is kept."""
    return RUNS / f"{name.replace(', ', '-')}-{seed}"


def train(name: str, settings: dict[str, Any], seed: int, data: Path) -> None:
    """One run, unless it is known; a run that fails is said and left out."""
    kept = known(KEPT)
    if str(seed) in kept.get(name, {}):
        return
    place = folder(name, seed)
    config = prepared(place, settings, seed, data)
    before = cpu_seconds()
    again = ["--resume"] if (place / "config.yaml").is_file() else []
    command = [sys.executable, "-m", "deltatune.cli.main", "train", str(config), *again]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if not (place / "results.json").is_file():
        print(f"{name}: {done.stderr[-400:]}", flush=True)
        return
    run = json.loads((place / "results.json").read_text(encoding="utf-8"))
    found = {
        "accuracy": run["test"]["accuracy"],
        "trainable_parameters": run["trainable_parameters"],
        "total_parameters": run["total_parameters"],
        "adapter_bytes": run["adapter_bytes"],
        "peak_memory_bytes": run["train"]["peak_memory_bytes"],
        "cpu_seconds": None if again else round(cpu_seconds() - before, 1),
    }
    kept.setdefault(name, {})[str(seed)] = found
    keep(KEPT, kept)
    print(f"{name}, seed {seed}: {found['accuracy']:.4f}", flush=True)


def prepared(place: Path, settings: dict[str, Any], seed: int, data: Path) -> Path:
    """The config of a run, and its training rows."""
    place.parent.mkdir(parents=True, exist_ok=True)
    config, rows = place.parent / f"{place.name}.yaml", place.parent / "train.csv"
    if not rows.is_file():
        lines = (data / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        rows.write_text("".join(lines[: TRAINING_ROWS + 1]), encoding="utf-8")
    held_out = {part: str(data / f"{part}.csv") for part in ("validation", "test")}
    values = {
        "task": {"type": "text-classification", "max_length": 128},
        "model": MODEL,
        "data": {"train": str(rows), **held_out},
        "method": settings,
        "training": {**TRAINING, "seed": seed},
        "output_dir": str(place),
    }
    config.write_text(json.dumps(values), encoding="utf-8")
    return config


def cpu_seconds() -> float:
    """CPU time of the runs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write(wanted: dict[str, dict[str, Any]]) -> None:
    """The page, best method first."""
    ratios, kept = floors(), known(KEPT)
    found = [(name, list(kept[name].values())) for name in wanted if name in kept]
    lines = [
        (statistics.mean(run["accuracy"] for run in runs), row(name, runs, ratios.get(name))) for name, runs in found
    ]
    lines.sort(key=lambda line: -line[0])
    table = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    table += ["| " + " | ".join(cells) + " |" for _, cells in lines]
    put(PAGE, table)
    put(Path("README.md"), table, "quality")
    for name in methods():
        page = PAGES / f"{name}.md"
        own = [cells for _, cells in lines if wanted[cells[0]]["type"] == name]
        if own:
            put(page, measured(name, own), "measured")


def measured(name: str, own: list[tuple[str, ...]]) -> list[str]:
    """What the page of a method says of it: its rows, and its loss on a decoder."""
    found = known(DECODER)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(cells) + " |" for cells in own]
    said = "[Film reviews, all-MiniLM-L6-v2, 4,000 rows, defaults](../results/quality.md)."
    if name in found:
        one, lora = found[name], found["lora"]
        said += (
            f" [On a decoder](../results/decoder.md) (SmolLM2-135M, {one['steps']} steps) the loss goes from "
            f"{one['before']:.3f} to {one['after']:.3f}, LoRA's to {lora['after']:.3f}."
        )
    return [*lines, "", said]


def floors() -> dict[str, list[float]]:
    """Steps as multiples of the floor that `benchmarks/step.py` measured on MiniLM in bfloat16."""
    measured = [(name, one) for own in known(STEPS).values() for name, one in own.get("minilm, bfloat16", {}).items()]
    return {name: one["floor"] for name, one in measured if "floor" in one}


def row(name: str, runs: list[dict[str, Any]], ratio: list[float] | None) -> tuple[str, ...]:
    """The cells of one method."""
    values = [run["accuracy"] for run in runs]
    seconds = [run["cpu_seconds"] for run in runs if run["cpu_seconds"] is not None]
    first = runs[0]
    share = first["trainable_parameters"] / first["total_parameters"]
    spread = f" ({min(values):.1%} to {max(values):.1%})" if len(values) > 1 else ""
    return (
        name,
        f"{statistics.mean(values):.1%}{spread}",
        str(len(values)),
        f"{first['trainable_parameters']:,} ({share:.2%})",
        size(first["adapter_bytes"]),
        f"{statistics.median(seconds):.0f} s" if seconds else "-",
        size(int(statistics.median(run["peak_memory_bytes"] for run in runs))),
        f"{ratio[1]:.2f} ({ratio[0]:.2f} to {ratio[2]:.2f})" if ratio else "-",
    )


if __name__ == "__main__":
    main()
