"""Forgetting: what the base knew, before and after; adapter on, off and merged.

Two measures: how alike the base's representations of rows are (CKA, any model with blocks), and its loss on texts
(where its checkpoint has a language-model head).
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from deltatune.core.config import ForgettingSettings
from deltatune.core.errors import DataError, DeltatuneError
from deltatune.core.task import Example, Row, Task
from deltatune.data.read import read
from deltatune.engine.handle import Handle
from deltatune.evaluate.language import Language
from deltatune.evaluate.representations import represented
from deltatune.ops.similarity import cka


def forgotten(
    handle: Handle,
    task: Task,
    processor: Any,
    examples: Sequence[Example],
    texts: Sequence[str],
    base: str,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Agreement with the base on examples, and losses on texts; a measure that cannot be taken says why.

    `merged` is None for a method that cannot be merged.
    """
    return {
        "rows": len(examples),
        "texts": len(texts),
        "agreement": _agreement(handle, partial(represented, handle.model, task, processor, examples, batch_size)),
        "language": _language(handle, texts, base),
    }


def _agreement(handle: Handle, vectors: Callable[[], Tensor]) -> dict[str, Any]:
    try:
        found = _states(handle, vectors)
        return {name: None if own is None else cka(found["off"], own) for name, own in found.items()}
    except (DeltatuneError, ValueError) as error:
        return {"why": str(error)}


def _language(handle: Handle, texts: Sequence[str], base: str) -> dict[str, Any]:
    if not texts:
        return {"why": "there are no texts"}
    try:
        language = Language.around(handle.model, base)
    except DeltatuneError as error:
        return {"why": str(error)}
    return {"kind": language.kind, **_states(handle, lambda: language.loss(texts))}


def _states(handle: Handle, measure: Callable[[], Any]) -> dict[str, Any]:
    """What is measured with the adapter off, on, and merged into the base, which is then put back."""
    with handle.roster.activated(None):
        off = measure()
    with handle.roster.activated(handle.name):
        on = measure()
        if not handle.method.can.merge:
            return {"off": off, "on": on, "merged": None}
        handle.merge()
        try:
            return {"off": off, "on": on, "merged": measure()}
        finally:
            handle.unmerge()


def general_texts(asked: ForgettingSettings, rows: Sequence[Row], task: Task) -> list[str]:
    """The texts of the file that is named, else those that the rows themselves have.

    Raises `DataError` for a file without a column `text`.
    """
    if asked.texts is None:
        found = [" ".join(row[word] for word in task.key if isinstance(row.get(word), str)) for row in rows]
        return [text for text in found if text]
    table = read(asked.texts, Path.cwd())
    if "text" not in table.columns:
        raise DataError(f"{asked.texts} has no column text", hint=f"it has {', '.join(table.columns)}")
    texts = [record.values.get("text") for record in table.records if record.problem is None]
    return [text for text in texts if isinstance(text, str) and text.strip()][: asked.rows]
