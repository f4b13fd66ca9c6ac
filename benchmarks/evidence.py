"""What `deltatune advise` cites, gathered from docs/results into the package, so that installed users have it.

    python benchmarks/evidence.py

Reads what the other benchmarks write (quality.md, step.json, tasks.json, advice.json) and writes their numbers into
src/deltatune/advise/evidence.json; the constants of the forecasts there are those of `benchmarks/forecast.py --fit`.
"""

import json
import re
from pathlib import Path
from typing import Any

from advice import slug
from pages import inside
from quality import rows as settings_of_rows

RESULTS, EVIDENCE = Path("docs/results"), Path("src/deltatune/advise/evidence.json")


def main() -> None:
    """Writes the file."""
    found = json.loads(EVIDENCE.read_text())
    found["quality"] = quality(RESULTS / "quality.md")
    found["step"] = step(json.loads((RESULTS / "step.json").read_text()))
    found["tasks"] = tasks(json.loads((RESULTS / "tasks.json").read_text()))
    found["compared"] = compared(json.loads((RESULTS / "advice.json").read_text()))
    EVIDENCE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def quality(page: Path) -> dict[str, Any]:
    """Accuracy of every method on the reviews, with the half width of its interval, and what it says of the set-up."""
    head, _, *rows = [line.strip("|").split("|") for line in inside(page) if line.startswith("|")]
    place = {name.strip(): index for index, name in enumerate(head)}
    methods, every = {}, settings_of_rows()
    for row in rows:
        cell = {name: row[index].strip() for name, index in place.items()}
        methods[cell["method"]] = {
            "accuracy": round(number(cell["test accuracy"]) / 100, 4),
            "settings": every[cell["method"]],
            "seeds": int(number(cell["seeds"])),
            "step": number(cell["step"]) if cell["step"] != "-" else None,
        }
    interval = re.search(r"interval of one accuracy is about ±([0-9.]+) points", page.read_text())
    assert interval is not None, "quality.md does not say how wide its intervals are"
    return {
        "methods": methods,
        "half_width": round(float(interval[1]) / 100, 4),
        "where": "4,000 film reviews, all-MiniLM-L6-v2, 250 steps (docs/results/quality.md)",
    }


def step(found: dict[str, Any]) -> dict[str, Any]:
    """Time and saved bytes of a step of every method as multiples of the floor, by machine and model."""
    return {
        f"{model}; {machine}": {
            method: {"time": one["floor"][1], "saved": one["saved"]}
            for method, one in methods.items()
            if "floor" in one
        }
        for machine, models in found.items()
        for model, methods in models.items()
    }


def tasks(found: dict[str, Any]) -> dict[str, Any]:
    """Loss before and after twelve steps by task and method, or why there was none."""
    return {
        task: {
            method: {"refused": one["refused"]} if "refused" in one else {"loss": [one["before"], one["after"]]}
            for method, one in methods.items()
        }
        for task, methods in found.items()
    }


def compared(found: dict[str, Any]) -> dict[str, Any]:
    """Test results by task and method, with the half widths of their intervals, where methods were compared."""
    names = {slug(name): name for name in settings_of_rows()}
    return {
        task: {
            "metric": one["metric"],
            "lower_is_better": one["lower_is_better"],
            "rows": one["rows"]["train"],
            "methods": {
                names[method]: {
                    "mean": round(own["mean"], 4),
                    "half_width": round((own["interval"][1] - own["interval"][0]) / 2, 4),
                }
                for method, own in one["methods"].items()
                if "mean" in own
            },
        }
        for task, one in found.items()
    }


def number(text: str) -> float:
    """The first number in a cell."""
    match = re.search(r"[0-9][0-9,]*\.?[0-9]*", text)
    assert match is not None, text
    return float(match[0].replace(",", ""))


if __name__ == "__main__":
    main()
