"""Summary: results.json of a comparison, from its finished runs.

The method is chosen by the mean of its seeds on the validation rows; the test rows only say what the choice is worth.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from deltatune.comparison import significance
from deltatune.comparison.choice import Tried
from deltatune.comparison.fronts import front
from deltatune.comparison.study import Contender, Study
from deltatune.comparison.verdict import verdict
from deltatune.finetuning import Run
from deltatune.report.comparison import COSTS
from deltatune.store.run import RunFolder


def summary(study: Study) -> dict[str, Any]:
    """Everything a comparison found, ready for JSON."""
    ground = study.base.ground
    task = ground.splits.task
    runs = {one.entry.name: _runs(study, one) for one in study.contenders}
    tested = {name: own for name, own in runs.items() if own}
    tests = {name: [run.results["test"][study.metric] for run in own] for name, own in tested.items()}
    validations = {name: [run.results["validation"][study.metric] for run in own] for name, own in tested.items()}
    drawn = _drawn(study, tested)
    methods = {one.entry.name: _method(study, one, runs[one.entry.name]) for one in study.contenders}
    for name, values in tests.items():
        methods[name]["mean"] = statistics.mean(values)
        methods[name]["interval"] = significance.interval(drawn[name])
    best = max(tested, key=lambda name: study.sign * statistics.mean(validations[name]), default=None)
    found: dict[str, Any] = {
        "task": task.type,
        "base_model": study.settings.model,
        "metric": study.metric,
        "lower_is_better": study.sign < 0,
        "rows": {part: len(rows) for part, rows in ground.splits.parts.items()},
        "data_sha256": ground.splits.fingerprint,
        "budget_seconds": study.clock.budget,
        "spent_seconds": round(study.clock.spent, 1),
        "methods": methods,
        "baselines": _baselines(study),
        "chosen": best,
        "best_run": _best_run(tested[best], validations[best], study.sign) if best else None,
        "against": _against(study, best, tests, drawn) if best else {},
        "fronts": _fronts(methods, study.sign),
        "left_out": study.left_out,
    }
    return found | {"verdict": verdict(found)}


def _runs(study: Study, contender: Contender) -> list[Run]:
    """Its finished whole runs, by seed."""
    folder = study.folder / "runs"
    return [Run.read(folder / f"{contender.entry.name}-seed{seed}") for seed in contender.runs]


def _drawn(study: Study, tested: Mapping[str, list[Run]]) -> dict[str, Any]:
    splits = study.base.ground.splits
    if not tested:
        return {}
    answers = {
        name: [[line["answer"] for line in RunFolder(run.folder).read_answers()] for run in runs]
        for name, runs in tested.items()
    }
    return significance.draws(splits.task, study.metric, splits.test, answers)


def _method(study: Study, contender: Contender, runs: list[Run]) -> dict[str, Any]:
    results = [run.results for run in runs]
    found: dict[str, Any] = {
        "type": contender.entry.settings["type"],
        "settings": {**contender.entry.settings, **contender.choice.changes},
        "learning_rate": contender.choice.rate,
        "changes": dict(contender.choice.changes),
        "rates": [_trial(study, one) for one in contender.tried],
        "seeds": contender.runs,
        "failed": {seed: outcome.error for seed, outcome in contender.seeds.items() if outcome.error},
        "validation": [one["validation"][study.metric] for one in results],
        "test": [one["test"][study.metric] for one in results],
        "trainable_parameters": contender.trainable,
        "refused": contender.refused,
    }
    if results:
        seconds = [one["answering"]["seconds"] / one["answering"]["rows"] for one in results]
        found |= {
            "total_parameters": results[0]["total_parameters"],
            "adapter_bytes": results[0]["adapter_bytes"],
            "peak_memory_bytes": max(one["train"]["peak_memory_bytes"] for one in results),
            "train_seconds": statistics.median(one["train"]["seconds"] for one in results),
            "answering_seconds_per_row": min(seconds),
            "forgetting": _forgetting(results),
            **_old_task(results),
            **_energy(results),
            "language": _language(results),
        }
    return found


def _energy(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Joules of a training, median over the seeds, and what counted them; None where nothing did.

    A run that was resumed knows only what came after.
    """
    told = [one.get("energy", {}) for one in results if not one["train"]["resumed_at"]]
    known = [energy for energy in told if "joules" in energy]
    if not known:
        return {"joules": None, "energy_source": None}
    sources = dict.fromkeys(energy["source"] for energy in known)
    return {"joules": statistics.median(energy["joules"] for energy in known), "energy_source": "; ".join(sources)}


def _forgetting(results: list[dict[str, Any]]) -> float | None:
    """1 minus the agreement with the base's representations, mean over the seeds; None where it has no blocks."""
    agreements = [one["forgetting"]["agreement"].get("on") for one in results]
    known = [value for value in agreements if value is not None and math.isfinite(value)]
    return 1 - statistics.mean(known) if len(known) == len(agreements) else None


def _language(results: list[dict[str, Any]]) -> dict[str, float] | None:
    """The base's loss on texts before, and after with the adapter on, mean over the seeds; None without such a head."""
    losses = [one["forgetting"]["language"] for one in results]
    if any("why" in one for one in losses):
        return None
    return {"before": losses[0]["off"], "after": statistics.mean(one["on"] for one in losses)}


def _old_task(results: list[dict[str, Any]]) -> dict[str, Any]:
    """An old task's metric before and after, mean over the seeds, and what was lost of it; None where none is known."""
    found = [one["forgetting"].get("old", {}) for one in results]
    if not all("on" in one for one in found):
        return {"old_task": None, "old_task_lost": None}
    first, after = found[0], statistics.mean(one["on"] for one in found)
    lost = after - first["off"] if first["lower_is_better"] else first["off"] - after
    about = {key: first[key] for key in ("task", "metric", "rows", "rejected")}
    return {"old_task": {**about, "before": first["off"], "after": after}, "old_task_lost": lost}


def _trial(study: Study, tried: Tried) -> dict[str, Any]:
    """A choice that was tried; `value` is None where training diverged."""
    return {
        "learning_rate": tried.choice.rate,
        "changes": dict(tried.choice.changes),
        "share": tried.share,
        "value": study.sign * tried.score if math.isfinite(tried.score) else None,
    }


def _baselines(study: Study) -> dict[str, float]:
    """Of the answer that never looks, and of simple models of the field."""
    found = study.base.ground.baselines
    named = {found["baseline"]["name"]: found["baseline"], **found["baselines"]}
    return {name: metrics[study.metric] for name, metrics in named.items() if study.metric in metrics}


def _best_run(runs: list[Run], validations: list[float], sign: float) -> str:
    place = max(range(len(runs)), key=lambda index: sign * validations[index])
    return str(runs[place].folder)


def _against(
    study: Study, best: str, tests: Mapping[str, list[float]], drawn: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The chosen method minus each other one: difference, interval, corrected p, and what that says."""
    others = [name for name in tests if name != best]
    apart = {name: statistics.mean(tests[best]) - statistics.mean(tests[name]) for name in others}
    p = {name: significance.p_value(apart[name], drawn[best] - drawn[name]) for name in others}
    corrected = significance.holm(p)
    words = {True: "the chosen one is better", False: "the chosen one is worse"}
    return {
        name: {
            "difference": apart[name],
            "interval": significance.interval(drawn[best] - drawn[name]),
            "p": p[name],
            "p_corrected": corrected[name],
            "verdict": words[study.sign * apart[name] > 0] if corrected[name] < 0.05 else "no difference shown",
        }
        for name in others
    }


def _fronts(methods: Mapping[str, Mapping[str, Any]], sign: float) -> dict[str, list[str]]:
    tested = {name: one for name, one in methods.items() if "mean" in one}
    return {
        cost: front({name: (float(one[cost]), sign * one["mean"]) for name, one in tested.items()})
        for cost in COSTS
        if all(one[cost] is not None for one in tested.values())
    }
