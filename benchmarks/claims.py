"""The claims made for tuning few parameters, each beside what our runs say of it.

    python benchmarks/claims.py

Reads what other benchmarks have kept in docs/results (quality.json, curves.json, forgetting.json, old-task.json) and
writes docs/evidence.md and docs/results/curves.svg; trains nothing. A claim is confirmed when the 95 % interval of the
difference (Student's t over seeds, the same rows and seeds for both) lies on its side of zero, contradicted when it
lies on the other, not shown when it holds zero.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pages import known, put
from scipy import stats

from deltatune.core.amounts import size

RESULTS, PAGE, PLOT = Path("docs/results"), Path("docs/evidence.md"), Path("docs/results/curves.svg")
FULL = "full"
METHODS = ("lora", "adapter, parallel", "adapter", "dora", "ia3", "bitfit", "prefix", "prompt")
"""Those that a claim about cost is shown for; the ranges are over all."""


def main() -> None:
    """Writes the page."""
    parts = {
        "cost": cost(read("quality")),
        "curves": curves(read("curves")),
        "forgetting": forgetting(read("forgetting"), "agreement", "agreement with the base"),
        "old-task": old_task(read("old-task")),
    }
    for name, lines in parts.items():
        put(PAGE, lines, name)


def read(name: str) -> dict[str, Any]:
    """What a benchmark has kept."""
    return known(RESULTS / f"{name}.json")


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean with the ends of its 95 % interval.

    >>> [round(value, 3) for value in interval([0.1, 0.2, 0.3])]
    [0.2, -0.048, 0.448]
    """
    mean, count = statistics.mean(differences), len(differences)
    half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    return mean, mean - half, mean + half


def verdict(low: float, high: float) -> str:
    """What an interval of a difference says, more being better for the claim.

    >>> verdict(0.1, 0.2), verdict(-0.1, 0.2), verdict(-0.2, -0.1)
    ('confirmed', 'not shown', 'contradicted')
    """
    return "confirmed" if low > 0 else "contradicted" if high < 0 else "not shown"


def points(difference: tuple[float, float, float]) -> str:
    """A difference of two shares in points."""
    mean, low, high = (100 * value for value in difference)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def cost(kept: dict[str, Any]) -> list[str]:
    """Parameters, file, memory, time and accuracy against full fine-tuning, seed for seed."""
    full = kept[FULL]
    table = [
        "| method | trained | file | peak memory | CPU time | accuracy, points |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in METHODS:
        own = kept[name]
        one = own["1"]
        seeds = sorted(own.keys() & full.keys())
        memory = statistics.median(own[s]["peak_memory_bytes"] / full[s]["peak_memory_bytes"] for s in seeds)
        timed = [s for s in seeds if own[s]["cpu_seconds"] and full[s]["cpu_seconds"]]
        time = statistics.median(own[s]["cpu_seconds"] / full[s]["cpu_seconds"] for s in timed)
        apart = interval([own[s]["accuracy"] - full[s]["accuracy"] for s in seeds])
        share = one["trainable_parameters"] / one["total_parameters"]
        smaller = full["1"]["adapter_bytes"] / one["adapter_bytes"]
        cells = (name, f"{share:.2%}", f"{size(one['adapter_bytes'])}, {smaller:,.0f} x smaller", f"{memory:.2f} x")
        table.append("| " + " | ".join((*cells, f"{time:.2f} x", points(apart))) + " |")
    return [*table, "", *said_of_cost(kept)]


def said_of_cost(kept: dict[str, Any]) -> list[str]:
    """The claims about cost and accuracy, over all methods."""
    others = {name: own for name, own in kept.items() if name != FULL}
    full = kept[FULL]
    shares = {name: own["1"]["trainable_parameters"] / own["1"]["total_parameters"] for name, own in others.items()}
    files = {name: own["1"]["adapter_bytes"] for name, own in others.items()}
    memory = {name: own["1"]["peak_memory_bytes"] / full["1"]["peak_memory_bytes"] for name, own in others.items()}
    apart = {
        name: interval([own[s]["accuracy"] - full[s]["accuracy"] for s in sorted(own.keys() & full.keys())])
        for name, own in others.items()
    }
    behind = [name for name, (_, _, high) in apart.items() if high < 0]
    under, light = [n for n, s in shares.items() if s < 0.01], [n for n, ratio in memory.items() if ratio < 1]
    heavy = sorted(set(memory) - set(light))
    count = len(others)
    return [
        f"- *Fewer parameters*: {len(under)} of {count} methods train less than 1 % of the base, the middle one "
        f"{statistics.median(shares.values()):.2%}.",
        f"- *Smaller files*: from {size(min(files.values()))} to {size(max(files.values()))}, "
        f"full fine-tuning {size(full['1']['adapter_bytes'])}.",
        f"- *Less memory*: {len(light)} of {count} methods, the middle one {statistics.median(memory.values()):.2f} x "
        f"full fine-tuning's peak, Python and libraries included, which is most of it with so small a base"
        + (f"; not {', '.join(heavy)}." if heavy else "."),
        f"- *As good*: {len(behind)} of {count} methods are behind full fine-tuning on these rows, "
        f"all but {', '.join(sorted(set(others) - set(behind)))}.",
    ]


def curves(kept: dict[str, Any]) -> list[str]:
    """Accuracy by training rows, and the differences to full fine-tuning at the better of its two rates."""
    arms = list(next(iter(next(iter(kept.values())).values())))
    fulls, others = [arm for arm in arms if arm.startswith(FULL)], [arm for arm in arms if not arm.startswith(FULL)]
    head = ["rows", *arms, *(f"{arm} against full, points" for arm in others), "better with so few"]
    table = ["| " + " | ".join(head) + " |", "|---:|" + "---:|" * (len(head) - 1)]
    for rows, seeds in sorted(kept.items(), key=lambda item: int(item[0])):
        means = {arm: statistics.mean(one[arm] for one in seeds.values()) for arm in arms}
        best = max(fulls, key=lambda arm: means[arm])
        apart = {arm: interval([one[arm] - one[best] for one in seeds.values()]) for arm in others}
        cells = [f"{int(rows):,}", *(f"{means[arm]:.1%}" for arm in arms), *(points(apart[arm]) for arm in others)]
        words = [f"{arm}: {verdict(*apart[arm][1:])}" for arm in others]
        table.append("| " + " | ".join([*cells, "; ".join(words)]) + " |")
    plot(kept, arms)
    return [*table, "", f"Seeds: {min(len(seeds) for seeds in kept.values())}. ![Learning curves](results/curves.svg)"]


def plot(kept: dict[str, Any], arms: Sequence[str]) -> None:
    """Mean and range over the seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": PLOT.name, "font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(6.5, 3.4), layout="constrained")
        axes = figure.subplots()
        rows = sorted(kept, key=int)
        for arm in arms:
            found = [[one[arm] for one in kept[size].values()] for size in rows]
            x = [int(size) for size in rows]
            (line,) = axes.plot(x, [statistics.mean(values) for values in found], marker="o", ms=4, label=arm)
            axes.fill_between(x, list(map(min, found)), list(map(max, found)), color=line.get_color(), alpha=0.12, lw=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{size:,}" for size in x])
        axes.set(xlabel="training rows", ylabel="test accuracy")
        axes.spines["right"].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(PLOT, metadata={"Date": None})


def old_task(kept: dict[str, Any]) -> list[str]:
    """What is left of an old task's metric, and what it was before."""
    one = next(iter(next(iter(kept.values())).values()))
    lines = forgetting(kept, "after", "F1 of entities after")
    return [*lines[:-1], f"F1 before: {one['before']:.3f}, on {one['rows']:,} sentences. {lines[-1]}"]


def forgetting(kept: dict[str, Any], key: str, words: str) -> list[str]:
    """What is left of the base by a measure, and whether full fine-tuning leaves less: at each of its rates."""
    arms = list(next(iter(kept.values())))
    kept = {seed: own for seed, own in kept.items() if len(own) == len(arms)}  # a seed that is under way waits
    fulls = [arm for arm in arms if arm.startswith(FULL)]
    head = ["method", "test accuracy", words, *(f"more than {arm}'s" for arm in fulls)]
    table = ["| " + " | ".join([*head, "forgets less"]) + " |", "|---|" + "---:|" * (len(head) - 1) + "---|"]
    for arm in arms:
        mean = {name: statistics.mean(one[arm][name] for one in kept.values()) for name in ("accuracy", key)}
        cells, verdicts = [arm, f"{mean['accuracy']:.1%}", f"{mean[key]:.3f}"], []
        for full in fulls:
            if arm in fulls:
                cells.append("-")
                continue
            apart = interval([one[arm][key] - one[full][key] for one in kept.values()])
            cells.append(f"{apart[0]:+.3f} ({apart[1]:+.3f} to {apart[2]:+.3f})")
            verdicts.append(f"than {full}: {verdict(*apart[1:])}")
        table.append("| " + " | ".join([*cells, "; ".join(verdicts) or "-"]) + " |")
    return [*table, "", f"Seeds: {len(kept)}."]


if __name__ == "__main__":
    main()
