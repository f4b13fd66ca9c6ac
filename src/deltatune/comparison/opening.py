"""Opening: the folder of a comparison and what defines it, comparison.yaml."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from deltatune.comparison.entry import Entry
from deltatune.core import registry
from deltatune.core.config import ForgettingSettings, RunSettings, read_yaml
from deltatune.core.errors import SettingsError
from deltatune.finetuning import resolve
from deltatune.store import atomic
from deltatune.store.run import writing

FILE = "comparison.yaml"


Tune = Literal["rates", "settings", "none"]
"""How choices are settled: rates by successive halving, rates and sizes by a search, or every method as it is."""
OLDER = {True: "rates", False: "none"}
"""Words of `tune` in folders of earlier versions."""


def measuring_forgetting(settings: RunSettings) -> RunSettings:
    """The settings of a comparison: what is forgotten is always measured."""
    return settings.model_copy(update={"forgetting": settings.forgetting or ForgettingSettings()})


def folder_of(settings: RunSettings, output_dir: str | Path | None) -> Path:
    """Where a comparison is: by default the config's folder with `-comparison`."""
    return Path(output_dir or f"{settings.output_dir.rstrip('/')}-comparison")


def asked(settings: RunSettings, found: Sequence[Entry], tune: Tune) -> dict[str, Any]:
    """What defines a comparison; budget, seeds and trials may grow when it goes on."""
    methods = {entry.name: {**entry.settings, "learning_rate": entry.centre} for entry in found}
    return {**_base(settings), "methods": methods, "tune": tune}


def open_folder(folder: Path, asked: Mapping[str, Any], *, resume: bool) -> None:
    """Makes the folder, or finds the same comparison there; raises `SettingsError` for another."""
    path = folder / FILE
    if path.is_file() and not resume:
        raise SettingsError(f"{folder} holds a comparison", hint="go on with --resume, or choose another --output")
    if resume and not path.is_file():
        raise SettingsError(f"nothing to resume in {folder}", hint="start without --resume")
    if path.is_file():
        _same(asked, _read(path), folder)
        return
    if folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise SettingsError(f"{folder} is not empty", hint="choose another --output")
    with writing(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, yaml.safe_dump(dict(asked), sort_keys=False, allow_unicode=True))


def opened_before(settings: RunSettings, folder: Path) -> dict[str, Any]:
    """What defines the comparison in a folder; raises `SettingsError` where it is of other rows, model or training."""
    path = folder / FILE
    if not path.is_file():
        raise SettingsError(f"no comparison in {folder}", hint="begin one there: deltatune compare CONFIG --tune")
    before = _read(path)
    _same(_base(settings), before, folder)
    return before


def _base(settings: RunSettings) -> dict[str, Any]:
    """What all runs of a comparison have in common."""
    resolved = resolve(settings, registry.task(settings.task), registry.method(settings.method))
    return {key: resolved[key] for key in ("task", "model", "data", "training", "forgetting")}


def _read(path: Path) -> dict[str, Any]:
    before = read_yaml(path)
    tune = before.get("tune")
    return {**before, "tune": OLDER[tune] if isinstance(tune, bool) else tune}


def _same(asked: Mapping[str, Any], before: Mapping[str, Any], folder: Path) -> None:
    known = set(before) & set(asked)  # an earlier version may have written fewer
    changed = sorted(key for key in known if _plain(asked[key]) != _plain(before[key]))
    if changed:
        raise SettingsError(f"{changed[0]} changed since the comparison in {folder} began", hint="put it back")


def _plain(value: Any) -> Any:
    """As YAML gives it back."""
    return yaml.safe_load(yaml.safe_dump(value))
