"""Compare: from a config to a table of methods that stands up to questions.

A comparison folder: comparison.yaml, trials.jsonl, trials/ and runs/ (run folders), results.json,
report.html.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deltatune.comparison.entry import Entry, entries
from deltatune.comparison.study import TRUNK, Study, Watch
from deltatune.comparison.summary import summary
from deltatune.core import registry
from deltatune.core.config import ForgettingSettings, RunSettings, read_yaml
from deltatune.core.errors import SettingsError
from deltatune.finetuning import resolve
from deltatune.report.comparison import comparison_page
from deltatune.store import atomic
from deltatune.store.run import RunFolder, writing
from deltatune.train.signals import Signals

LEAST_BUDGET = 1.0


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
    tune: bool = True,
    output_dir: str | Path | None = None,
    resume: bool = False,
    watch: Watch = lambda study, what: None,
) -> Comparison:
    """Trains, tests and weighs methods and baselines on the rows of `settings`; `budget` in seconds.

    `output_dir` is by default the config's with `-comparison`. Raises `SettingsError` for settings that cannot work and
    for a folder that holds something else, `Stopped` after a signal: what is done is kept, `resume` goes on.
    """
    if seeds < 1:
        raise SettingsError(f"seeds is at least 1 (got {seeds})")
    if budget is not None and budget < LEAST_BUDGET:
        raise SettingsError(f"budget is at least a second (got {budget:g} s)", hint="--budget 30m")
    if settings.training.distillation is not None:
        raise SettingsError(
            "training.distillation: a teacher acts in the base that the runs share", hint="leave it out"
        )
    settings = settings.model_copy(update={"forgetting": settings.forgetting or ForgettingSettings()})
    found = entries(settings, methods)
    folder = Path(output_dir or f"{settings.output_dir.rstrip('/')}-comparison")
    asked = _asked(settings, found, seeds=seeds, tune=tune)
    _open(folder, asked, resume=resume)
    with RunFolder(folder).locked(), Signals() as signals:
        how: dict[str, Any] = {"seeds": seeds, "budget": budget, "tune": tune}
        study = Study(settings, found, folder, **how, watch=watch, signals=signals)
        study.run()
        results = summary(study)
        with writing(str(folder / "results.json")):
            atomic.write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
            atomic.write_text(folder / "report.html", comparison_page(results))
        shutil.rmtree(folder / TRUNK, ignore_errors=True)
    return Comparison(folder, results)


def _asked(settings: RunSettings, found: Sequence[Entry], *, seeds: int, tune: bool) -> dict[str, Any]:
    """What defines a comparison; budget and seeds may grow when it goes on."""
    resolved = resolve(settings, registry.task(settings.task), registry.method(settings.method))
    own = {key: resolved[key] for key in ("task", "model", "data", "training", "forgetting")}
    methods = {entry.name: {**entry.settings, "learning_rate": entry.centre} for entry in found}
    return {**own, "methods": methods, "tune": tune}


def _open(folder: Path, asked: Mapping[str, Any], *, resume: bool) -> None:
    """Makes the folder, or finds the same comparison there; raises `SettingsError` for another."""
    path = folder / "comparison.yaml"
    text = yaml.safe_dump(dict(asked), sort_keys=False, allow_unicode=True)
    if path.is_file() and not resume:
        raise SettingsError(f"{folder} holds a comparison", hint="go on with --resume, or choose another --output")
    if resume and not path.is_file():
        raise SettingsError(f"nothing to resume in {folder}", hint="start without --resume")
    if path.is_file():
        before = read_yaml(path)
        known = set(before) & set(asked)  # an earlier version may have written fewer
        changed = sorted(key for key in known if _plain(asked[key]) != _plain(before[key]))
        if changed:
            raise SettingsError(f"{changed[0]} changed since the comparison in {folder} began", hint="put it back")
        return
    if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise SettingsError(f"{folder} is not empty", hint="choose another --output")
    with writing(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text)


def _plain(value: Any) -> Any:
    """As YAML gives it back."""
    return yaml.safe_load(yaml.safe_dump(value))
