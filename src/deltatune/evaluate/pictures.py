"""Pictures: the answers of a model drawn on what it was asked, one PNG per row."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltatune.core.errors import SettingsError
from deltatune.core.task import Row, Task


def check(task: Task) -> None:
    """Raises `SettingsError` when the task's answers are not drawn."""
    if type(task).draw is Task.draw:
        raise SettingsError(f"answers of {task.type} are not drawn", hint="leave --draw out")


def draw(task: Task, rows: Sequence[Row | None], answers: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Writes `<number>-<name>.png` for every row that has an answer; numbers are those of the answers, from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    word = next((word for word, column in task.columns.items() if column.path), None)
    written = []
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True), 1):
        if row is not None and "error" not in answer:
            name = f"-{Path(str(row[word])).stem}" if word is not None else ""
            written.append(folder / f"{number:05}{name}.png")
            task.draw(answer, row).save(written[-1])
    return written
