"""Advice put to the test: where the first choice of `deltatune advise` stands in `deltatune compare`.

    OMP_NUM_THREADS=1 python benchmarks/advice.py [--tasks tabular-classification ...] [--table]

Five tasks with the model and the data of their examples (examples/<task>.yaml), fewer training rows and the rest of the
advised settings (names and images in fewer epochs). What is compared: the methods that advise puts first, (IA)3, the
linear probe and full fine-tuning; every learning rate is searched (successive halving on the validation rows), two
whole runs each. The first choice holds when its mean on the test rows is among the best two, or when the comparison's
interval of it reaches the second best. Comparisons are kept in docs/results/advice.json and not made again unless their
task is named; `--table` asks advise again, as it is now, and writes docs/results/advice.md.
"""

import argparse
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

from pages import keep, known, put

import deltatune
from deltatune.core.config import read_yaml

EXAMPLES, RUNS = Path("examples"), Path("runs/advice")
KEPT, PAGE = Path("docs/results/advice.json"), Path("docs/results/advice.md")
ROWS = {
    "text-classification": 1000,
    "token-classification": 600,
    "image-classification": 400,
    "molecule-property": 800,
    "tabular-classification": 600,
}
"""Task -> training rows."""
SHORTER = {"token-classification": 4, "image-classification": 4}
"""Task -> epochs, where those that are advised take too long here."""
FIRST, SEEDS = 3, 2
BESIDE = {"ia3": {"type": "ia3"}}
COLUMNS = ("task", "rows", "advise's first", "its place", "its test result", "best", "second", "holds")


def main() -> None:
    """Compares what is missing or named, writes the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tasks", nargs="*", choices=list(ROWS), default=[])
    options.add_argument("--table", action="store_true")
    given = options.parse_args()
    kept = known(KEPT)
    for task in () if given.table else ROWS:
        if task in given.tasks or (task not in kept and not given.tasks):
            kept[task] = compared(task)
            keep(KEPT, kept)
    write(kept)


def values_of(task: str) -> dict[str, Any]:
    """The example's config with fewer training rows, without method and training settings."""
    example = read_yaml(EXAMPLES / f"{task}.yaml")
    return {
        "task": example["task"],
        "model": example["model"],
        "data": {**example["data"], "max_rows": ROWS[task]},
        "training": {key: value for key, value in example["training"].items() if key == "base_dropout"},
    }


def slug(name: str) -> str:
    """A method's name in the table of methods, as a run may be called."""
    return re.sub("[^a-z0-9_-]+", "-", name.lower()).strip("-")


def compared(task: str) -> dict[str, Any]:
    """Results of a comparison of the methods that advise puts first."""
    values = values_of(task)
    advice = deltatune.advise(values)
    first = [one for one in advice["methods"] if one["method"] not in ("full", "linear-probe")][:FIRST]
    methods = {slug(one["name"]): {"type": one["method"], **one["settings"]} for one in first} | BESIDE
    folder = RUNS / task
    shutil.rmtree(folder, ignore_errors=True)
    settings = {key: value for key, value in advice["config"]["training"].items() if key != "learning_rate"}
    settings["num_train_epochs"] = SHORTER.get(task, settings["num_train_epochs"])
    started = time.process_time()
    done = deltatune.compare(methods, **(values | {"training": settings}), output_dir=folder, seeds=SEEDS, quiet=True)
    keys = ("mean", "interval", "learning_rate", "trainable_parameters", "refused", "failed")
    found = {
        "first": slug(advice["methods"][0]["name"]),
        "metric": done.results["metric"],
        "lower_is_better": done.results["lower_is_better"],
        "rows": done.results["rows"],
        "steps": settings,
        "baselines": done.results["baselines"],
        "methods": {
            name: {key: one.get(key) for key in keys if key in one} for name, one in done.results["methods"].items()
        },
        "cpu_seconds": round(time.process_time() - started),
    }
    print(task, json.dumps(found["methods"]), flush=True)
    return found


def line(task: str, found: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one task."""
    first = found["first"]
    sign = -1 if found["lower_is_better"] else 1
    tested = {name: one for name, one in found["methods"].items() if "mean" in one}
    order = sorted(tested, key=lambda name: -sign * tested[name]["mean"])
    best, second = order[:2]
    cells = (task, f"{found['rows']['train']:,}", first)
    if first not in tested:
        return (*cells, "-", "not compared", said(best, tested), said(second, tested), "no")
    low, high = tested[first]["interval"]
    reaches = (high if sign > 0 else -low) >= sign * tested[second]["mean"]
    place = order.index(first) + 1
    holds = "yes" if place <= 2 else "yes, within its interval" if reaches else "no"
    result = f"{tested[first]['mean']:.3f} ({low:.3f} to {high:.3f})"
    return (*cells, f"{place} of {len(order)}", result, said(best, tested), said(second, tested), holds)


def said(name: str, tested: dict[str, Any]) -> str:
    """A method with its mean."""
    return f"{name} {tested[name]['mean']:.3f}"


def write(kept: dict[str, Any]) -> None:
    """The page: the answer for every task, and every mean behind it."""
    lines = [line(task, kept[task]) for task in ROWS if task in kept]
    table = [COLUMNS, ("---",) * len(COLUMNS), *lines]
    held = sum(cells[-1].startswith("yes") for cells in lines)
    text = [f"The first choice holds in {held} of {len(lines)} tasks.", ""]
    text += ["| " + " | ".join(cells) + " |" for cells in table]
    text += ["", "| task, metric | " + "method: mean on the test rows (interval) |", "|---|---|"]
    for task, found in kept.items():
        sign = -1 if found["lower_is_better"] else 1
        tested = sorted(
            ((name, one) for name, one in found["methods"].items() if "mean" in one), key=lambda x: -sign * x[1]["mean"]
        )
        means = [
            f"{name} {one['mean']:.3f} ({one['interval'][0]:.3f} to {one['interval'][1]:.3f})" for name, one in tested
        ]
        simple = [f"*{name}* {value:.3f}" for name, value in found["baselines"].items()]
        text.append(f"| {task}, {found['metric']} | {'; '.join([*means, *simple])} |")
    put(PAGE, text)


if __name__ == "__main__":
    main()
