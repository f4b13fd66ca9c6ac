"""Verdict: what a test metric says against what it is compared with, in words that claim no more than was shown.

Two intervals that do not overlap are a difference; a rival without an interval is one where it lies outside of ours.
Everything else is "no difference shown".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deltatune.core.amounts import figure
from deltatune.core.interval import PROPORTIONS, wilson

Standing = Literal["better", "no difference shown", "worse"]
"""Of the trained adapter against a rival."""


@dataclass(frozen=True, slots=True)
class Rival:
    """Something simple that a run is compared with."""

    name: str
    value: float
    interval: tuple[float, float] | None
    standing: Standing


@dataclass(frozen=True, slots=True)
class Verdict:
    """A metric with its interval, and how it stands."""

    metric: str
    value: float
    interval: tuple[float, float]
    rows: int
    lower: bool
    """Less of it is better."""
    rivals: Sequence[Rival]

    @property
    def tone(self) -> Literal["good", "open", "bad"]:
        """Better than all, worse than some, or neither."""
        found = {rival.standing for rival in self.rivals}
        return "bad" if "worse" in found else "open" if "no difference shown" in found else "good"

    @property
    def headline(self) -> str:
        """The whole in one sentence."""
        if self.tone == "good":
            return "Better than everything simple it was compared with."
        if self.tone == "open":
            return f"No better than {_names(self, 'no difference shown')} shown."
        return f"{_capital(_names(self, 'worse'))} did better."

    @property
    def _why_open(self) -> str:
        known = all(rival.interval is not None for rival in self.rivals if rival.standing == "no difference shown")
        return "the intervals overlap" if known else "what is known of them lies within the interval or overlaps it"

    @property
    def sentences(self) -> list[str]:
        """What was measured, then the rivals by how they stand."""
        low, high = self.interval
        found = [
            f"On {self.rows:,} test rows {said(self.metric)} is {figure(self.value)}; the 95 % interval goes from "
            f"{figure(low)} to {figure(high)}."
        ]
        if names := _names(self, "better", with_values=True):
            found.append(f"Better than {names}.")
        if names := _names(self, "no difference shown", with_values=True):
            found.append(f"No difference from {names} is shown: {self._why_open}.")
        if names := _names(self, "worse", with_values=True):
            found.append(f"Worse than {names}.")
        return found


def verdict(results: Mapping[str, Any], lower: bool) -> Verdict:
    """The verdict on results.json; `lower`: less of the metric is better."""
    metric, test = results["metric"], results["test"]
    value, interval = float(test[metric]), (float(test["interval"][0]), float(test["interval"][1]))
    found: dict[str, Rival] = {}
    simple = {results["baseline"]["name"]: results["baseline"], **results["baselines"]}
    for name, metrics in {**simple, "the model before training": results["before"]}.items():
        if isinstance(metrics.get(metric), int | float):
            theirs = float(metrics[metric])
            own = _interval(metrics, metric, theirs, test["rows"])
            found[name] = Rival(name, theirs, own, _standing(interval, theirs, own, lower))
    return Verdict(metric, value, interval, test["rows"], lower, list(found.values()))


def said(metric: str) -> str:
    """A metric's name for people.

    >>> said("micro_f1")
    'micro f1'
    """
    return metric.replace("_", " ")


def _interval(metrics: Mapping[str, Any], metric: str, value: float, rows: int) -> tuple[float, float] | None:
    if "interval" in metrics:
        low, high = metrics["interval"]
        return float(low), float(high)
    return wilson(value, rows) if metric in PROPORTIONS else None


def _standing(ours: tuple[float, float], value: float, theirs: tuple[float, float] | None, lower: bool) -> Standing:
    low, high = theirs or (value, value)
    above, below = ours[0] > high, ours[1] < low
    if above or below:
        return "better" if above != lower else "worse"
    return "no difference shown"


def _names(verdict: Verdict, standing: Standing, *, with_values: bool = False) -> str:
    own = [rival for rival in verdict.rivals if rival.standing == standing]
    names = [f'"{rival.name}"' if "," in rival.name else rival.name for rival in own]
    values = [f" ({figure(rival.value)})" if with_values else "" for rival in own]
    texts = [name + value for name, value in zip(names, values, strict=True)]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
