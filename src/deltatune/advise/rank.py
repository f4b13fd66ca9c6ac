"""Rank: methods in the order of a goal, with the measurements that say so.

Accuracies of one table that differ by less than its interval are not told apart: among those the cheaper one is first.
Where methods were compared on a task of the same kind, what is behind there stands behind here too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from deltatune.advise.evidence import evidence
from deltatune.advise.forecast import Forecast
from deltatune.core.method import Method

Goal = Literal["quality", "memory", "speed", "smallest-file", "many-tasks", "serve-vllm", "serve-onnx"]
GOALS: tuple[Goal, ...] = get_args(Goal)
FAR = 2
"""Intervals behind the best from which on a method is only taken for a goal that nothing else meets."""
VLLM = ("LORA",)
"""Formats of peft that vLLM serves; it takes no other trained modules beside them."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a method elsewhere."""

    name: str
    """As in the table: a method, or a variant of one."""
    settings: dict[str, Any]
    accuracy: float
    behind: float
    """Accuracy below the best of the table."""
    seeds: int
    on_task: int = 0
    """As `tier`, by a comparison on a task of the same kind; 0 where there is none."""

    @property
    def tier(self) -> int:
        """0: not told apart from the best; then one per further interval."""
        return max(self.on_task, int(self.behind / evidence()["quality"]["half_width"]))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method on the model of the config."""

    measured: Measured
    method: Method
    forecast: Forecast
    merges: bool
    serves_on_vllm: bool


def table(task: str) -> list[Measured]:
    """Every method that was measured on the same rows, the best first, for a type of task."""
    quality = evidence()["quality"]
    best = max(one["accuracy"] for one in quality["methods"].values())
    found = [
        Measured(
            name,
            dict(one["settings"]),
            one["accuracy"],
            round(best - one["accuracy"], 4),
            one["seeds"],
            _tier_on(task, name),
        )
        for name, one in quality["methods"].items()
    ]
    return sorted(found, key=lambda one: one.behind)


def _tier_on(task: str, name: str) -> int:
    """Intervals, the wider one of the two, by which a method is behind the best of a comparison on such a task."""
    compared = evidence()["compared"].get(task)
    if compared is None or name not in compared["methods"]:
        return 0
    best, own = _best(compared), compared["methods"][name]
    return int(abs(best["mean"] - own["mean"]) / max(best["half_width"], own["half_width"]))


def _best(compared: Mapping[str, Any]) -> Mapping[str, Any]:
    """The method with the best mean of a comparison."""
    sign = -1 if compared["lower_is_better"] else 1
    best: Mapping[str, Any] = max(compared["methods"].values(), key=lambda one: sign * one["mean"])
    return best


def shortlist(goal: Goal, known: Sequence[Measured], trained: Mapping[str, int], most: int) -> list[Measured]:
    """The methods worth a closer look for a goal, by what is known without a pass through the model.

    `trained` has the methods that have a place in the model, with the values they would train.
    """
    there = [one for one in known if one.name in trained]
    keys: dict[str, Callable[[Measured], tuple[float, ...]]] = {
        "quality": lambda one: (one.tier, step_of(one)),
        "memory": lambda one: (one.tier >= FAR, step_of(one)),
        "speed": lambda one: (one.tier >= FAR, step_of(one)),
        "smallest-file": lambda one: (one.tier >= FAR, trained[one.name]),
        "many-tasks": lambda one: (one.tier >= FAR, one.tier, trained[one.name]),
        "serve-vllm": lambda one: (one.tier, step_of(one)),
        "serve-onnx": lambda one: (one.tier, step_of(one)),
    }
    return sorted(there, key=keys[goal])[:most]


def step_of(one: Measured) -> float:
    """Time of a step as a multiple of the floor: the latest measurement of a method, twice where there is none."""
    latest = [methods[one.name]["time"] for methods in evidence()["step"].values() if one.name in methods]
    return float(latest[0] if latest else evidence()["quality"]["methods"][one.name]["step"] or 2.0)


def ranked(goal: Goal, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates in the order of the goal, the best first."""
    keys: dict[str, Callable[[Candidate], tuple[float, ...]]] = {
        "quality": lambda one: (one.measured.tier, cost(one)),
        "memory": lambda one: (one.measured.tier >= FAR, one.forecast.peak_memory_bytes.expected),
        "speed": lambda one: (one.measured.tier >= FAR, one.forecast.total_seconds.expected),
        "smallest-file": lambda one: (one.measured.tier >= FAR, one.forecast.adapter_bytes),
        "many-tasks": lambda one: (one.measured.tier >= FAR, one.measured.tier, one.forecast.adapter_bytes),
        "serve-vllm": lambda one: (not one.serves_on_vllm, one.measured.tier, cost(one)),
        "serve-onnx": lambda one: (not one.merges, one.measured.tier, cost(one)),
    }
    return sorted(candidates, key=keys[goal])


def cost(one: Candidate) -> float:
    """Byte seconds: what the training occupies, how long."""
    return one.forecast.peak_memory_bytes.expected * one.forecast.total_seconds.expected


def meets(goal: Goal, method: Method, trains_head: bool) -> str | None:
    """Why a method cannot meet a goal at all, or None."""
    if goal == "serve-vllm":
        if method.peft_type not in VLLM or method.type != "lora":
            return "vLLM serves LoRA only"
        if trains_head:
            return "this task trains a head beside the adapter, which vLLM does not load"
    if goal == "serve-onnx" and not method.can.merge:
        return "it does not merge into the weights, and the exported graph would have to hold it"
    if goal == "many-tasks" and not method.can.rows:
        return "one batch cannot mix it with others on one base"
    return None


def reasons(one: Candidate, goal: Goal, task: str, others: Sequence[Candidate]) -> list[str]:
    """Why it stands where it stands, each with the numbers."""
    quality = evidence()["quality"]
    interval = f"± {100 * quality['half_width']:.1f} points"
    accuracy = f"{100 * one.measured.accuracy:.1f} % ({interval}, {_seeds(one.measured.seeds)}) on {quality['where']}"
    found = [
        f"not told apart from the best of {len(quality['methods'])} methods: {accuracy}"
        if one.measured.behind < quality["half_width"]
        else f"{100 * one.measured.behind:.1f} points behind the best: {accuracy}"
    ]
    compared = evidence()["compared"].get(task)
    if compared is not None and one.measured.name in compared["methods"]:
        own, best = compared["methods"][one.measured.name], _best(compared)["mean"]
        found.append(
            f"{'behind' if one.measured.on_task else 'not told apart from'} the best of a comparison on {task}, "
            f"{compared['rows']:,} rows: {compared['metric']} {own['mean']:.3f} ± {own['half_width']:.3f}, "
            f"the best {best:.3f} (docs/results/advice.md)"
        )
    tried = evidence()["tasks"].get(task, {}).get(one.method.type)
    if tried is not None and "loss" in tried:
        before, after = tried["loss"]
        found.append(
            f"{one.method.type} learns on {task}: loss {before:.3g} to {after:.3g} in 12 steps (docs/results/tasks.md)"
        )
    least = {
        "memory": ("least memory", lambda c: c.forecast.peak_memory_bytes.expected),
        "time": ("shortest training", lambda c: c.forecast.total_seconds.expected),
        "file": ("smallest file", lambda c: c.forecast.adapter_bytes),
    }
    found += [f"{word} of those looked at" for word, key in least.values() if min(others, key=key) is one]
    if goal == "serve-onnx" and one.merges:
        found.append("merges exactly into the weights: the exported model is as fast as the base")
    return found


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
