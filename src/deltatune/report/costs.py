"""Costs: what a run was forecast to take beside what it took, and its energy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.core.amounts import duration, figure, size
from deltatune.report.verdict import said


@dataclass(frozen=True, slots=True)
class Cost:
    """One quantity as text; the forecast is empty where there was none."""

    name: str
    forecast: str
    measured: str
    note: str


def costs(results: Mapping[str, Any]) -> list[Cost]:
    """Memory and time, each beside its forecast where results have one."""
    forecast, train = results.get("forecast") or {}, results["train"]
    own: list[tuple[str, str, float, Callable[[float], str]]] = [
        ("peak memory", "peak_memory_bytes", train["peak_memory_bytes"], size),
        ("time in training steps", "train_seconds", train["seconds"], duration),
        ("time of a step", "step_seconds", train["seconds"] / max(1, train["steps"]), duration),
    ]
    return [_cost(name, forecast.get(key), measured, write) for name, key, measured, write in own]


def _cost(name: str, forecast: Any, measured: float, write: Callable[[float], str]) -> Cost:
    """A forecast is a range with what is expected."""
    if not isinstance(forecast, Mapping):
        return Cost(name, "", write(measured), "")
    low, expected, high = (float(forecast[word]) for word in ("low", "expected", "high"))
    within = low <= measured <= high
    off = f"{abs(measured / expected - 1):.0%} {'more' if measured > expected else 'less'} than expected"
    text = f"{write(expected)} ({write(low)} to {write(high)})"
    return Cost(name, text, write(measured), f"{'within' if within else 'outside'} the range, {off}")


def energy(results: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """What results say of energy, as they say it."""
    found = results.get("energy") or {}
    return [
        (said(name), figure(value) if isinstance(value, int | float) else str(value))
        for name, value in found.items()
        if value is not None and not isinstance(value, Mapping | list)
    ]
