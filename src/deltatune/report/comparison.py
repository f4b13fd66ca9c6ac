"""The page about a comparison of methods."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from markupsafe import Markup

from deltatune.core.amounts import count, duration, figure, joules, size
from deltatune.report.forest import Line, forest_of
from deltatune.report.plots import INK, MUTED, drawn, missing
from deltatune.report.tables import Listing
from deltatune.report.template import page
from deltatune.report.verdict import said
from deltatune.report.words import setting

COSTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "trainable_parameters": ("trained parameters", count),
    "adapter_bytes": ("adapter file", size),
    "peak_memory_bytes": ("peak memory", size),
    "train_seconds": ("training time", duration),
    "answering_seconds_per_row": ("time per answer", duration),
    "joules": ("energy", joules),
    "forgetting": ("forgetting (1 - agreement with the base)", "{:.3f}".format),
    "old_task_lost": ("lost of the old task", "{:+.4f}".format),
}
"""What quality is weighed against -> in words, and how it is written."""
ASKED = ("old_task_lost",)
"""Costs that are only measured where somebody asks for them; the others have a column always."""
SMALL = (2.9, 2.1)
"""Inches of a plot among many."""
NAMED = 8
"""Methods whose names stand in a plot; of more only those that nothing beats."""


def comparison_page(results: Mapping[str, Any]) -> str:
    """A page that needs nothing beside it, from results.json of a comparison."""
    tested = {name: own for name, own in results["methods"].items() if "mean" in own}
    ranked = sorted(tested, key=lambda name: tested[name]["mean"], reverse=not results["lower_is_better"])
    return page(
        "comparison.html.j2",
        results=results,
        methods=tested,
        chosen=tested.get(results["chosen"]),
        tone=_tone(results, tested),
        forest=_forest(results, ranked),
        without_plots=missing(),
        table=_table(results, ranked),
        energy_sources=energy_sources(tested),
        old_task=old_task(tested),
        differences=_differences(results),
        fronts=list(_fronts(results, tested)),
        rates=list(_rates(results)),
        trials=_trials(results),
        refused={name: own["refused"] for name, own in results["methods"].items() if own.get("refused")},
        failed={name: own["failed"] for name, own in results["methods"].items() if own.get("failed")},
        commands=_commands(results),
    )


def _tone(results: Mapping[str, Any], tested: Mapping[str, Any]) -> Literal["good", "open", "bad"]:
    """How the chosen method stands against the simple models."""
    if results["chosen"] is None:
        return "bad"
    low, high = tested[results["chosen"]]["interval"]
    lower, values = results["lower_is_better"], results["baselines"].values()
    if any(value < low if lower else value > high for value in values):
        return "bad"
    return "open" if any(low <= value <= high for value in values) else "good"


def _forest(results: Mapping[str, Any], ranked: Sequence[str]) -> Markup | None:
    methods, metric = results["methods"], said(results["metric"])
    lines = [
        Line(name, own["mean"], tuple(own["interval"]), own["test"], ours=name == results["chosen"])
        for name in ranked
        if (own := methods[name])
    ]
    lines += [Line(f"{name} (baseline)", value) for name, value in results["baselines"].items()]
    return drawn(f"{metric} of the methods", *forest_of(lines, f"test {metric}")) if lines else None


def _table(results: Mapping[str, Any], ranked: Sequence[str]) -> Listing:
    """The tested methods with what they reach and what they take."""
    metric = said(results["metric"])
    columns = ["method", f"test {metric}", "95 % interval", "validation", "seeds", "learning rate"]
    costs = {cost: own for cost, own in COSTS.items() if cost not in ASKED or old_task(results["methods"])}
    columns += [words.partition(" (")[0] for words, _ in costs.values()]
    lines = []
    for name in ranked:
        own = results["methods"][name]
        low, high = own["interval"]
        validation = sum(own["validation"]) / max(1, len(own["validation"]))
        lines.append(
            [
                f"{name} (chosen)" if name == results["chosen"] else name,
                figure(own["mean"]),
                f"{figure(low)} to {figure(high)}",
                figure(validation),
                str(len(own["test"])),
                _choice(own["learning_rate"], own.get("changes", {})),
                *(write(own[cost]) if own.get(cost) is not None else "-" for cost, (_, write) in costs.items()),
            ]
        )
    blank = ["-"] * (len(columns) - 2)
    lines += [[f"{name} (baseline)", figure(value), *blank] for name, value in results["baselines"].items()]
    return Listing("Methods by their mean on the test rows", columns, lines)


def old_task(tested: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The old task whose metric was measured, where one was."""
    return next((own["old_task"] for own in tested.values() if own.get("old_task")), None)


def energy_sources(tested: Mapping[str, Any]) -> list[str]:
    """What counted the energy of these methods."""
    found = dict.fromkeys(own.get("energy_source") for own in tested.values())
    return [source for source in found if source is not None]


def _differences(results: Mapping[str, Any]) -> Listing | None:
    """The chosen method against each other one."""
    if not results["against"]:
        return None
    lines = [
        [
            name,
            f"{own['difference']:+.4f}",
            f"{own['interval'][0]:+.4f} to {own['interval'][1]:+.4f}",
            _chance(own["p_corrected"]),
            own["verdict"].removeprefix("the chosen one is "),
        ]
        for name, own in results["against"].items()
    ]
    columns = ["against", "difference", "95 % interval", "p, corrected", "verdict"]
    return Listing(f"{results['chosen']} minus each other method, on the same rows", columns, lines)


def _chance(p: float) -> str:
    """A p-value for people; the exact ones, before and after correction, are in results.json."""
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def _fronts(
    results: Mapping[str, Any], tested: Mapping[str, Any]
) -> Iterator[tuple[str, Sequence[str], Markup | None]]:
    """For every cost: its name, the methods that nothing beats, and the plot."""
    metric = said(results["metric"])
    for cost, names in results["fronts"].items():
        known = {name: own for name, own in tested.items() if own.get(cost) is not None}

        def draw(axes: Any, cost: str = cost, names: Sequence[str] = names, known: Any = known) -> None:
            _front(axes, {name: (float(own[cost]), own["mean"]) for name, own in known.items()}, names, results)
            axes.set(xlabel=words_of(cost), ylabel=f"test {metric}")
            axes.xaxis.set_major_formatter(lambda value, _: write_of(cost)(value))

        if known:
            yield words_of(cost), names, drawn(f"{metric} against {words_of(cost)}", draw)


def words_of(cost: str) -> str:
    """A cost's name for people."""
    return COSTS[cost][0] if cost in COSTS else said(cost)


def write_of(cost: str) -> Callable[[float], str]:
    """What writes an amount of a cost."""
    return COSTS[cost][1] if cost in COSTS else figure


def _front(
    axes: Any, points: Mapping[str, tuple[float, float]], names: Sequence[str], results: Mapping[str, Any]
) -> None:
    """Quality over cost; what nothing beats is joined."""
    for name, (cost, value) in points.items():
        colour = "C0" if name in names else MUTED
        axes.plot([cost], [value], "D" if name == results["chosen"] else "o", color=colour, ms=6)
        if len(points) <= NAMED or name in names:
            axes.annotate(name, (cost, value), xytext=(4, 4), textcoords="offset points", fontsize=8, color=INK)
    joined = [points[name] for name in names if name in points]
    axes.plot(*zip(*joined, strict=True), color="C0", lw=1, alpha=0.6)
    costs = [cost for cost, _ in points.values()]
    if min(costs) > 0 and max(costs) > 5 * min(costs):
        _log(axes)
    axes.margins(0.18)


def _log(axes: Any) -> None:
    """A logarithmic scale below, its numbers written out at powers of ten or, within one, at a few steps."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _rates(results: Mapping[str, Any]) -> Iterator[tuple[str, Markup | None]]:
    """For every method with trials: the metric over the learning rate, a line for each length of the trials."""
    metric = said(results["metric"])
    for name, own in results["methods"].items():
        trials = [trial for trial in own["rates"] if trial["value"] is not None]

        def draw(axes: Any, trials: Sequence[Mapping[str, Any]] = trials, own: Mapping[str, Any] = own) -> None:
            for length in dict.fromkeys(_length(trial) for trial in trials):
                points = sorted((t["learning_rate"], t["value"]) for t in trials if _length(t) == length)
                sized = any(trial.get("changes") for trial in trials)  # neighbours differ in more than the rate
                axes.plot(*zip(*points, strict=True), marker="o", ls="" if sized else "-", label=length)
            if own["learning_rate"] is not None:
                axes.axvline(own["learning_rate"], color="0.6", lw=1, ls="--", zorder=0)
            if len({trial["learning_rate"] for trial in trials}) > 1:
                _log(axes)
            axes.set(xlabel="learning rate", ylabel=metric)
            if len({_length(trial) for trial in trials}) > 1:
                axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(-0.1, 1), ncols=3, handlelength=1)

        if trials:
            yield name, drawn(f"learning rates of {name}", draw, *SMALL)


def _trials(results: Mapping[str, Any]) -> Listing | None:
    """Every trial of a search that changed more than rates, the best of a method first."""
    if not any(one.get("changes") for own in results["methods"].values() for one in own["rates"]):
        return None
    sign = 1 if results["lower_is_better"] else -1
    lines = []
    for name, own in results["methods"].items():
        known = sorted(own["rates"], key=lambda one: (-one["share"], _rank(one, sign)))
        lines += [[name, _choice(one["learning_rate"], one["changes"]), _length(one), _value(one)] for one in known]
    return Listing("Trials", ["method", "learning rate and size", "training", said(results["metric"])], lines)


def _rank(trial: Mapping[str, Any], sign: int) -> float:
    return float("inf") if trial["value"] is None else sign * trial["value"]


def _value(trial: Mapping[str, Any]) -> str:
    return "diverged" if trial["value"] is None else figure(trial["value"])


def _choice(rate: float, changes: Mapping[str, Any]) -> str:
    """A learning rate and what of the method is not as it is by itself."""
    return ", ".join([setting(rate), *(f"{name} = {setting(value)}" for name, value in changes.items())])


def _length(trial: Mapping[str, Any]) -> str:
    """How long a trial was, as results say it."""
    return f"{trial['share']:.0%}" if "share" in trial else f"{trial.get('steps', 'all')} steps"


def _commands(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the best run is good for."""
    if (run := results["best_run"]) is None:
        return []
    return [
        ("answers of the best run", f"{shlex.join(['deltatune', 'predict', str(run)])} --input FILE"),
        ("its metrics on other rows", f"{shlex.join(['deltatune', 'evaluate', str(run)])} --data FILE"),
    ]
