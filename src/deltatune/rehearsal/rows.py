"""Rows: a config's rows as a training would see them, all of them, without a training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltatune.core import registry
from deltatune.core.config import RunSettings, override, read_yaml
from deltatune.core.errors import SettingsError
from deltatune.core.task import Task
from deltatune.data.load import Splits
from deltatune.data.load import load as load_splits
from deltatune.data.usable import usable


def check_config(path: str | Path, overrides: Mapping[str, str] | None = None, *, show_mask: int = 0) -> dict[str, Any]:
    """Reads, checks, splits and encodes the rows of a YAML file as a training would, and trains nothing.

    `rows` and `truncated` count every part, `accounts` says where every row went, `rejected` lists those that are bad,
    `noted` those that are good and not used, not used whole or near a training row, and `shown` has the first
    `show_mask` training rows in pieces of text that the loss counts or not. Raises what a training would raise.
    """
    settings = RunSettings.parse(override(read_yaml(Path(path)), overrides or {}), "")
    registry.method(settings.method)
    splits = load_splits(settings.data, registry.task(settings.task), Path.cwd())
    task = splits.task
    processor = task.load(settings.model).processor
    splits, examples = usable(splits, processor, settings.data.max_rejected)
    return {
        "task": task.type,
        "rows": {name: len(rows) for name, rows in splits.parts.items()},
        "rejected": [row.as_json() for row in splits.rejected],
        "accounts": splits.accounts.as_json(),
        "noted": [note.as_json() for note in splits.notes],
        "truncated": {name: task.truncated(found) for name, found in examples.items()},
        "near_duplicates": splits.near,
        "shown": masked(splits, task, processor, show_mask),
    }


def masked(splits: Splits, task: Task, processor: Any, count: int) -> list[dict[str, Any]]:
    """The first training rows in pieces of text that the loss counts or not, with their places.

    Raises `SettingsError` when the task reads no text of which the loss counts a part.
    """
    shown = [(splits.places[id(row)], task.shown(row, processor)) for row in splits.train[:count]]
    if shown and not any(pieces for _, pieces in shown):
        raise SettingsError(f"{task.type} reads no text of which the loss counts a part", hint="leave show_mask out")
    return [
        {
            "file": place.file,
            "line": place.line,
            "pieces": [{"text": text, "learned": learned} for text, learned in pieces],
        }
        for place, pieces in shown
    ]
