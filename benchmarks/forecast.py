"""What a run says it will take beside what it took: peak memory and time, methods x models x batches.

    python benchmarks/forecast.py [--name PART] [--fit] [--table]

Every case is a training of a few steps in a process of its own, as `deltatune train` starts it; what docs/results/
forecast.json has already is not run again. The forecast is that of the run itself, made before its first step.
`--fit` writes the constants of the forecasts (src/deltatune/advise/evidence.json) from these runs, `--table` the page
docs/results/forecast.md and its picture, from the sizes that the runs recorded and the constants of now.
Models and data: examples/models.py minilm smollm2 dinov2-small; examples/data.py reviews, ner, chat, blood-cells.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pages import put
from scipy.optimize import minimize

from deltatune.advise.evidence import Constants
from deltatune.advise.machine import Machine
from deltatune.advise.memory import Sizes, peak
from deltatune.advise.passes import Pass
from deltatune.advise.time import seconds_of
from deltatune.core.amounts import size

FILE, PAGE = Path("docs/results/forecast.json"), Path("docs/results/forecast.md")
PICTURE = Path("docs/results/forecast.png")
EVIDENCE = Path("src/deltatune/advise/evidence.json")
UNFITTED = {"products": 1.2, "moving": 1.0, "calls": 3.0}
"""Their proportions: products of a small encoder run below the probe's rate, a call through modules costs three."""
BATCHES = "per_device_train_batch_size"

STEPS, FIRST = 8, 600

REVIEWS = {
    "task": {"type": "text-classification", "max_length": 128},
    "model": ".cache/models/minilm",
    "data": {"train": ".cache/data/reviews/reviews.csv"},
}
NAMES = {
    "task": "token-classification",
    "model": ".cache/models/minilm",
    "data": {part: f".cache/data/ner/{part}.conll" for part in ("train", "validation", "test")},
}
CHAT = {
    "task": {"type": "chat", "max_length": 384, "generate_rows": 1, "max_new_tokens": 4},
    "model": ".cache/models/smollm2",
    "data": {part: f".cache/data/chat/{part}.jsonl" for part in ("train", "validation", "test")} | {"max_rows": 60},
}
CELLS = {
    "task": {"type": "image-classification", "image_size": 98},
    "model": ".cache/models/dinov2-small",
    "data": {"train": ".cache/data/blood-cells/cells.csv", "group_column": "image", "max_rows": 200},
}
WHERE = {"reviews": REVIEWS, "names": NAMES, "chat": CHAT, "cells": CELLS}
FITTED = ("reviews", "cells")
"""The runs that the constants are fitted to; the others say how good they are elsewhere."""
CASES = [
    ("reviews", "ia3", 4, True),
    ("reviews", "lora", 32, True),
    ("reviews", "lora", 128, True),
    ("reviews", "lora", 32, False),
    ("reviews", "adapter", 64, True),
    ("reviews", "ia3", 64, False),
    ("reviews", "prefix", 64, True),
    ("reviews", "prompt", 32, False),
    ("reviews", "bitfit", 128, True),
    ("reviews", "full", 32, False),
    ("reviews", "linear-probe", 64, True),
    ("reviews", "dora", 64, False),
    ("reviews", "ladder", 64, True),
    ("names", "lora", 2, False),
    ("names", "lora", 16, True),
    ("names", "compacter", 32, False),
    ("names", "full", 16, True),
    ("chat", "lora", 1, True),
    ("chat", "lora", 4, True),
    ("chat", "ia3", 2, True),
    ("chat", "adapter", 2, True),
    ("chat", "prefix", 2, False),
    ("chat", "layernorm", 4, True),
    ("chat", "full", 1, True),
    ("cells", "lora", 16, True),
    ("cells", "adapter", 64, False),
    ("cells", "bitfit", 32, True),
    ("cells", "full", 16, False),
]


def main() -> None:
    """Runs what is missing, fits, writes the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--name", default="")
    options.add_argument("--fit", action="store_true")
    options.add_argument("--table", action="store_true")
    given = options.parse_args()
    found = json.loads(FILE.read_text()) if FILE.is_file() else {}
    for where, method, batch, bf16 in CASES if not (given.fit or given.table) else ():
        name = f"{where}, {method}, {batch} rows, {'bfloat16' if bf16 else 'float32'}"
        if name not in found and given.name in name:
            found[name] = measured(WHERE[where], method, batch, bf16)
            print(name, json.dumps(found[name]["measured"]), flush=True)
            FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if given.fit:
        fit(found)
    if given.fit or given.table:
        write(found)


def measured(where: dict[str, Any], method: str, batch: int, bf16: bool) -> dict[str, Any]:
    """Forecast and measurement of one run of a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        training = {"max_steps": STEPS, BATCHES: batch, "per_device_eval_batch_size": 32, "bf16": bf16}
        training |= {"eval_steps": STEPS, "watts_per_core": 1.0}  # of one watt, joules are CPU seconds
        config = {**where, "method": method, "training": training, "output_dir": f"{folder}/run"}
        if "reviews" in config["data"]["train"]:  # a part of the file: its test rows are scored in every run
            lines = Path(config["data"]["train"]).read_text().splitlines()[: 1 + FIRST]
            (Path(folder) / "reviews.csv").write_text("\n".join(lines))
            config["data"] = {"train": f"{folder}/reviews.csv"}
        path = Path(folder) / "run.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "deltatune.cli.main", "train", str(path), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        results = json.loads(Path(f"{folder}/run/results.json").read_text())
    took = {name: results["train"][name] for name in ("peak_memory_bytes", "seconds", "steps")}
    took |= {"adapter_bytes": results["adapter_bytes"], "cpu_seconds": results["energy"]["joules"]}
    return {"measured": took, "forecast": results["forecast"]}


def expected(one: dict[str, Any], fitted: Constants) -> float:
    """Bytes of the peak with some constants."""
    return peak(Sizes(**one["forecast"]["parts_bytes"]), one["forecast"]["device"], fitted).expected


def fit(found: dict[str, Any]) -> None:
    """The constants that bring the forecasts nearest to the measurements, by the sum of squared relative errors."""
    found = {name: one for name, one in found.items() if name.startswith(FITTED)}
    file = json.loads(EVIDENCE.read_text())
    names = ("libraries", "slack", "loading")
    scales = np.array([1e8, 1.0, 1.0])

    def constants_of(values: np.ndarray) -> Constants:
        own = dict(zip(names, map(float, values * scales), strict=True))
        return Constants.parse({**file["constants"], **own}, "constants")

    def error(values: np.ndarray) -> float:
        fitted = constants_of(values)
        wrong = [expected(one, fitted) / one["measured"]["peak_memory_bytes"] - 1 for one in found.values()]
        return float(np.square(wrong).sum() + 100 * np.square(np.minimum(values, 0)).sum())

    best = minimize(error, np.array([1.5, 1.3, 1.0]), method="Nelder-Mead", options={"maxiter": 4000}).x
    fitted = constants_of(np.maximum(best, 0)).model_dump()
    fitted |= times(found, fitted)
    fitted["process"] = float(np.median([one["forecast"]["parts_bytes"]["process"] for one in found.values()]))
    file["constants"] = {name: float(f"{value:.3g}") for name, value in fitted.items()}
    EVIDENCE.write_text(json.dumps(file, indent=1, sort_keys=True) + "\n")
    print(file["constants"])


def times(found: dict[str, Any], fitted: dict[str, float]) -> dict[str, float]:
    """The constants of time, all by the factor that is right in the middle, and how far nine of ten are from it.

    The runs are timed by CPU seconds of their steps and one evaluation: other programs do not count.
    """
    start = Constants.parse({**fitted, **UNFITTED}, "constants")
    whole = [one for one in found.values() if not trunk(one)]
    ratios = np.array([one["measured"]["cpu_seconds"] / said_seconds(one, start) for one in whole])
    factor = float(np.median(ratios))
    spread = float(np.exp(np.quantile(np.abs(np.log(ratios / factor)), 0.9)))
    return {name: value * factor for name, value in UNFITTED.items()} | {"time_spread": spread}


def said_seconds(one: dict[str, Any], fitted: Constants) -> float:
    """Seconds of the steps and of one evaluation, by the passes and the rates that the run recorded.

    A run with a trunk is counted whole: its steps are hardly anything, and its rows have passed the trunk before.
    """
    work, rates = one["forecast"]["work"], Machine(**one["forecast"]["machine"])
    step = seconds_of(Pass(**work["step"]), rates, fitted) * work["step_share"]
    scored = seconds_of(Pass(**work["evaluation"]), rates, fitted) * work["evaluation_share"]
    return step * one["forecast"]["steps"] + scored * work["evaluation_batches"] * fitted.evaluation


def trunk(one: dict[str, Any]) -> bool:
    """Whether frozen blocks below ran once per row only."""
    return bool(one["forecast"]["parts_bytes"]["trunk"])


def write(found: dict[str, Any]) -> None:
    """The page and its picture."""
    fitted = Constants.parse(json.loads(EVIDENCE.read_text())["constants"], "constants")
    points = {
        name: (expected(one, fitted), one["measured"]["peak_memory_bytes"]) for name, one in sorted(found.items())
    }
    rows = []
    for name, (said, took) in points.items():
        time = "-" if trunk(found[name]) else f"{said_seconds(found[name], fitted):.1f} s"
        own = f"{found[name]['measured']['cpu_seconds']:.1f} s"
        rows.append(f"| {name} | {size(said)} | {size(took)} | {said / took - 1:+.1%} | {own} | {time} |")
    errors = {name: abs(said / took - 1) for name, (said, took) in points.items()}
    apart = [error for name, error in errors.items() if not name.startswith(FITTED)]
    head = ["| run | forecast | measured | off by | CPU time | forecast |", "|---|---:|---:|---:|---:|---:|"]
    told = (
        f"{sum(error <= 0.15 for error in errors.values())} of {len(errors)} forecasts are within 15 % of the measured "
        f"peak, the middle one is off by {np.median([*errors.values()]):.1%}, the worst by {max(errors.values()):.1%}; "
        f"of the {len(apart)} runs that nothing was fitted to, {sum(error <= 0.15 for error in apart)}."
    )
    put(PAGE, [told, "", *head, *rows])
    print(told)
    draw(points)


def draw(points: dict[str, tuple[float, float]]) -> None:
    """Forecast against measured peak; the band is 15 %."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    said, took = (np.array([pair[side] for pair in points.values()]) / 1e9 for side in (0, 1))
    ends = np.array([0.9 * took.min(), 1.1 * took.max()])
    axes.fill_between(ends, 0.85 * ends, 1.15 * ends, alpha=0.15, linewidth=0, label="15 %")
    axes.plot(ends, ends, linewidth=1)
    axes.scatter(took, said, s=14)
    axes.set_xlabel("measured peak, GB")
    axes.set_ylabel("forecast, GB")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
