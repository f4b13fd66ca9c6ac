"""Shown: a test row as a page has it: where it stands, what was asked, wanted and answered, and a picture."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from deltatune.core.amounts import figure
from deltatune.core.errors import DeltatuneError
from deltatune.core.task import GROUP, Row, Task
from deltatune.report.judged import Judged
from deltatune.report.plots import drawn
from deltatune.report.words import in_words

SIDE = 320
"""Longest side of a picture, in pixels."""
COLUMNS = 10
"""Columns of a table's row that are shown."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image inside the page."""

    title: str
    source: str
    """A data URI."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A row for people."""

    file: str
    place: str
    """Name of the file, and line."""
    right: bool
    standing: str
    """Right or not, or how far from it; and how sure the model is."""
    asked: Mapping[str, str]
    wanted: str
    """Empty where pieces, a picture or a plot say it."""
    answered: str
    wanted_pieces: Sequence[tuple[str, str | None]]
    answered_pieces: Sequence[tuple[str, str | None]]
    pictures: Sequence[Picture]
    plot: Markup | None


def shown(task: Task, one: Judged, perfect: float) -> Shown:
    """A row as the task can show it."""
    wanted, name = task.wanted(one.row), Path(one.file).name
    place = f"{name}:{one.line}" if one.line else task.called(one.row)
    pieces, pictures = task.marked(None, one.row), list(_pictures(task, one, wanted))
    plots = type(task).plot is not Task.plot
    plot = drawn(f"answer to {place}", lambda axes: _plotted(axes, task, one), height=1.9) if plots else None
    answered = task.said(one.answer)
    seen = plot is not None and isinstance(answered, list)
    return Shown(
        one.file,
        place,
        one.merit >= perfect,
        _standing(one, perfect),
        {} if pieces else _asked(task, one.row, wanted, with_lists=plot is None),
        "" if seen else in_words(wanted),
        "" if seen else in_words(answered),
        pieces,
        task.marked(one.answer, one.row),
        pictures,
        plot,
    )


def _standing(one: Judged, perfect: float) -> str:
    """How good an answer is, in a few words."""
    if one.merit >= perfect:
        word = "right"
    elif one.merit < 0:
        word = f"error {figure(-one.merit)}"
    else:
        word = f"score {one.merit:.2f}" if one.merit else "not right"
    return word if one.certainty is None else f"{word}, {100 * one.certainty:.0f} % sure"


def _asked(task: Task, row: Row, wanted: Any, *, with_lists: bool) -> dict[str, str]:
    """The words of a row that are not its answer and can be said; of a path the name of the file."""
    files = {word for word, column in task.columns.items() if column.path}
    flat = _flat({word: own for word, own in row.items() if word not in (task.label, GROUP)})
    rest = {word: value for word, value in flat.items() if value is not wanted}
    return {
        word: Path(str(value)).name if word in files else text
        for word, value in rest.items()
        if (text := in_words(value)) and (with_lists or not isinstance(value, Sequence) or isinstance(value, str))
    }


def _flat(row: Row) -> dict[str, Any]:
    """The columns that a word holds as words of their own, the first ones of many."""
    found: dict[str, Any] = {}
    for word, value in row.items():
        if isinstance(value, Mapping):
            found |= {str(name): own for name, own in list(value.items())[:COLUMNS]}
            found |= {"further columns": str(len(value) - COLUMNS)} if len(value) > COLUMNS else {}
        else:
            found[word] = value
    return found


def _plotted(axes: Any, task: Task, one: Judged) -> bool:
    if not task.plot(axes, one.answer, one.row):
        return False
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8)
    return True


def _pictures(task: Task, one: Judged, wanted: Any) -> Iterator[Picture]:
    """The answer and what was wanted drawn on the input, or the input; none where a library for it is missing."""
    try:
        if (answered := task.draw(one.answer, one.row)) is not None:
            yield Picture("answered", _source(answered))
            yield Picture("wanted", _source(task.draw({next(iter(one.answer)): wanted}, one.row)))
        elif (image := task.picture(one.row)) is not None:
            yield Picture("input", _source(image))
    except DeltatuneError:
        return


def _source(image: Any) -> str:
    """A small JPEG as a data URI."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(file, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
