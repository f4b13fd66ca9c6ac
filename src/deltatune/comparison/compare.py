"""Compare: from a config to a table of methods that stands up to questions.

A comparison folder: comparison.yaml, trials.jsonl, trials/ and runs/ (run folders), results.json,
report.html.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from deltatune.comparison.entry import entries
from deltatune.comparison.halving import halve
from deltatune.comparison.opening import Tune, asked, folder_of, measuring_forgetting, open_folder
from deltatune.comparison.search import Search
from deltatune.comparison.searching import Searching
from deltatune.comparison.study import TRUNK, Study, Tuning, Watch, as_it_is
from deltatune.comparison.summary import summary
from deltatune.core.config import RunSettings
from deltatune.core.errors import SettingsError, did_you_mean
from deltatune.report.comparison import comparison_page
from deltatune.store import atomic
from deltatune.store.run import RunFolder, writing
from deltatune.train.signals import Signals

LEAST_BUDGET = 1.0
TRIALS = 12
"""Short trials of every method in a search."""


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: its folder and the content of results.json."""

    folder: Path
    results: dict[str, Any]


def compare(
    settings: RunSettings,
    methods: Sequence[str] | Mapping[str, Any],
    *,
    seeds: int = 3,
    budget: float | None = None,
    tune: Tune = "rates",
    trials: int | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    watch: Watch = lambda study, what: None,
) -> Comparison:
    """Trains, tests and weighs methods and baselines on the rows of `settings`; `budget` in seconds.

    `trials` (12) are the short ones of every method, where `tune` searches its settings.
    `output_dir` is by default the config's with `-comparison`. Raises `SettingsError` for settings that cannot work and
    for a folder that holds something else, `Stopped` after a signal: what is done is kept, `resume` goes on.
    """
    if seeds < 1:
        raise SettingsError(f"seeds is at least 1 (got {seeds})")
    if tune not in get_args(Tune):
        raise SettingsError(f"unknown tune: {tune!r}", hint=did_you_mean(str(tune), get_args(Tune)))
    if trials is not None and trials < 1:
        raise SettingsError(f"trials is at least 1 (got {trials})")
    if trials is not None and tune != "settings":
        raise SettingsError("trials is the number of a search's", hint='tune="settings", on the command line --tune')
    if budget is not None and budget < LEAST_BUDGET:
        raise SettingsError(f"budget is at least a second (got {budget:g} s)", hint="--budget 30m")
    if settings.training.distillation is not None:
        raise SettingsError(
            "training.distillation: a teacher acts in the base that the runs share", hint="leave it out"
        )
    settings = measuring_forgetting(settings)
    found = entries(settings, methods)
    folder = folder_of(settings, output_dir)
    open_folder(folder, asked(settings, found, tune), resume=resume)
    with RunFolder(folder).locked(), Signals() as signals:
        study = Study(settings, found, folder, seeds=seeds, budget=budget, watch=watch, signals=signals)
        study.run(_tuning(tune, trials or TRIALS, folder, settings.training.seed))
        results = summary(study)
        with writing(str(folder / "results.json")):
            atomic.write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
            atomic.write_text(folder / "report.html", comparison_page(results))
        shutil.rmtree(folder / TRUNK, ignore_errors=True)
    return Comparison(folder, results)


def _tuning(tune: Tune, trials: int, folder: Path, seed: int) -> Tuning:
    """What settles the choices."""
    if tune == "settings":
        return Searching(Search(folder, seed), trials)
    return halve if tune == "rates" else as_it_is
