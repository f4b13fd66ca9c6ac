"""The demo: one pretrained encoder, real reviews, LoRA against a linear probe and full fine-tuning.

python examples/demo.py                  trains what is not trained yet and prints the table
python examples/demo.py --seeds 3        the same over three training seeds
python examples/demo.py --readme         also writes the table into README.md
python examples/demo.py --fresh          trains everything again
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import data
import models
from deltatune.cli.show import table
from deltatune.core.amounts import size

METHODS = {
    "linear-probe": ["--method", "linear-probe", "--training.learning_rate", "0.1"],  # best on the validation rows
    "lora": [],
    "full": ["--method", "full"],
}
TITLES = {"lora": "LoRA, r = 8, all linear layers", "linear-probe": "Linear probe", "full": "Full fine-tuning"}
RUNS = Path("runs/demo")
COLUMNS = ("", "trained parameters", "adapter", "training", "peak memory", "test accuracy (95 % interval)")


def main() -> None:
    """Makes the files, trains, prints."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--readme", action="store_true")
    options.add_argument("--fresh", action="store_true")
    given = options.parse_args()
    if given.fresh:
        shutil.rmtree(RUNS, ignore_errors=True)
    models.make("minilm")
    data.make("reviews")
    results = {name: [_result(name, seed) for seed in range(42, 42 + given.seeds)] for name in METHODS}
    rows = _rows(results)
    table("Sentiment of film reviews, all-MiniLM-L6-v2 (22.7 M parameters)", COLUMNS, rows, right=(1, 2, 3, 4))
    print(f"Run folders: {RUNS}/   Next: deltatune predict {RUNS}/lora-42 --text 'A quiet triumph.'")
    if given.readme:
        _write_readme(rows)


def _result(name: str, seed: int) -> dict[str, Any]:
    """results.json of a run, trained in a process of its own so that its peak memory is its own."""
    folder = RUNS / f"{name}-{seed}"
    if not (folder / "results.json").is_file():
        again = ["--resume"] if (folder / "config.yaml").is_file() else []
        print(f"\n{TITLES[name]}, seed {seed}", flush=True)
        command = [
            sys.executable,
            "-m",
            "deltatune.cli.main",
            "train",
            "examples/text-classification.yaml",
            *METHODS[name],
            "--training.seed",
            str(seed),
            "--output_dir",
            str(folder),
            *again,
        ]
        subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def _rows(results: dict[str, list[dict[str, Any]]]) -> list[tuple[str, ...]]:
    first = results["lora"][0]
    rows = [
        (f"{first['baseline']['name'].capitalize()}", "0", "-", "-", "-", f"{first['baseline']['accuracy']:.1%}"),
        ("Untouched base, untrained head", "0", "-", "-", "-", _accuracy(first["before"])),
    ]
    for name, runs in results.items():
        last = runs[0]
        share = last["trainable_parameters"] / last["total_parameters"]
        rows.append(
            (
                TITLES[name],
                f"{last['trainable_parameters']:,} ({share:.2%})",
                size(last["adapter_bytes"]),
                f"{last['train']['seconds']:.0f} s",
                size(last["train"]["peak_memory_bytes"]),
                _over(runs),
            )
        )
    return rows


def _over(runs: list[dict[str, Any]]) -> str:
    if len(runs) == 1:
        return _accuracy(runs[0]["test"])
    values = [run["test"]["accuracy"] for run in runs]
    return f"{statistics.mean(values):.1%} (mean of {len(values)} seeds, {min(values):.1%} to {max(values):.1%})"


def _accuracy(metrics: dict[str, Any]) -> str:
    low, high = metrics["interval"]
    return f"{metrics['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def _write_readme(rows: list[tuple[str, ...]]) -> None:
    """The table between the two marks of README.md."""
    path = Path("README.md")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * 4 + "---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    before, _, rest = path.read_text(encoding="utf-8").partition("<!-- demo:start -->\n")
    _, mark, after = rest.partition("<!-- demo:end -->")
    text = before + "<!-- demo:start -->\n" + "\n".join(lines) + "\n" + mark + after
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
