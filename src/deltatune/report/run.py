"""The page about a run."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from deltatune.data.check import kind
from deltatune.data.load import Splits
from deltatune.report import calibration, costs, curves, judged, plots, tables
from deltatune.report.forest import forest
from deltatune.report.forgetting import forgetting
from deltatune.report.record import RunRecord
from deltatune.report.shown import shown
from deltatune.report.template import page
from deltatune.report.verdict import said, verdict
from deltatune.store.atomic import write_text
from deltatune.store.run import RunFolder, writing

PAGE = "report.html"
REJECTED = 10
"""Rejected rows that are listed."""


def write(folder: RunFolder, splits: Splits) -> Path:
    """Writes report.html of a finished run; raises `StorageError` when the disk refuses."""
    path = folder.path / PAGE
    text = run_page(RunRecord.read(folder, splits))
    with writing(str(path)):
        write_text(path, text)
    return path


def run_page(record: RunRecord) -> str:
    """A page that needs nothing beside it, for people who were not there."""
    results, rows = record.results, judged.judged(record)
    best, lower = judged.perfect(record, rows), record.metric in record.task.lower_is_better
    found = verdict(results, lower)
    sure = calibration.bins(rows) if "ece" in results["test"] else []
    show, wrong = partial(shown, record.task, perfect=best), judged.most_wrong(rows, best)
    return page(
        "run.html.j2",
        record=record,
        results=results,
        verdict=found,
        forest=plots.drawn(f"{found.metric} with 95 % intervals", *forest(found)),
        curves=_curves(record),
        without_plots=plots.missing(),
        numbers=tables.numbers(results, record.metric),
        listings=tables.listings(results["test"]),
        confusion=tables.confusion(results["test"]),
        bins=sure,
        diagram=plots.drawn("Reliability of confidences", partial(calibration.diagram, found=sure)) if sure else None,
        wrong=[show(one) for one in wrong],
        sure_of_it=bool(wrong) and (wrong[0].certainty or 0.0) >= 0.5,
        uncertain=[show(one) for one in judged.least_certain(rows)],
        looked_at=len(rows),
        costs=costs.costs(results),
        energy=costs.energy(results),
        forgotten=forgetting(results),
        changed=record.changed(),
        accounts=tables.accounts(results),
        reasons=_reasons(record.rejected),
        rejected=record.rejected[:REJECTED],
        commands=_commands(record),
        settings=yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True),
    )


def _curves(record: RunRecord) -> list[Markup]:
    """Loss, metric and learning rate; none without matplotlib."""
    lines, metric = record.lines, record.chosen_by
    lower = metric in record.task.lower_is_better

    def value(axes: Any) -> None:
        curves.values(axes, lines, metric, lower_is_better=lower)
        axes.set_ylabel(said(metric))

    def rate(axes: Any) -> None:
        curves.rates(axes, lines, color="C3")
        axes.set_ylabel("learning rate")

    drawings: Mapping[str, Callable[[Any], None]] = {
        "Loss": lambda axes: curves.losses(axes, lines),
        f"Validation {metric}": value,
        "Learning rate": rate,
    }
    found = [plots.drawn(title, draw) for title, draw in drawings.items()]
    return [one for one in found if one is not None]


def _reasons(rejected: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Rejected rows by reason, the values in it left out."""
    return Counter(kind(str(row["reason"])) for row in rejected).most_common()


def _commands(record: RunRecord) -> list[tuple[str, str]]:
    """What makes the run again, and what uses it, with why."""
    packages = record.environment["packages"]
    pinned = [f"{name}=={version.partition('+')[0]}" for name, version in packages.items() if version]
    folder = str(record.folder)
    return [
        ("the same versions", shlex.join(["pip", "install", *pinned])),
        (
            "the same run",
            shlex.join(["deltatune", "train", f"{folder}/config.yaml", "--output_dir", f"{folder}-again"]),
        ),
        ("the adapter on other rows", f"{shlex.join(['deltatune', 'evaluate', folder])} --data FILE"),
        ("answers", f"{shlex.join(['deltatune', 'predict', folder])} --input FILE"),
    ]
