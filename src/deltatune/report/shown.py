"""Shown: a test row as a page has it: where it stands, what was asked, wanted and answered, and a picture."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from deltatune.core.errors import DeltatuneError
from deltatune.core.task import GROUP, Row, Task
from deltatune.report.judged import Judged
from deltatune.report.plots import drawn
from deltatune.report.words import in_words

SIDE = 320
"""Longest side of a picture, in pixels."""


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
    certainty: float | None
    asked: Mapping[str, str]
    wanted: str
    answered: str
    wanted_pieces: Sequence[tuple[str, str | None]]
    answered_pieces: Sequence[tuple[str, str | None]]
    pictures: Sequence[Picture]
    plot: Markup | None


def shown(task: Task, one: Judged, perfect: float) -> Shown:
    """A row as the task can show it."""
    wanted, name = task.wanted(one.row), Path(one.file).name
    place = f"{name}:{one.line}" if one.line else task.called(one.row)
    pieces = task.marked(None, one.row)
    return Shown(
        one.file,
        place,
        one.merit >= perfect,
        one.certainty,
        {} if pieces else _asked(task, one.row, wanted),
        in_words(wanted),
        in_words(next(iter(one.answer.values()), None)),
        pieces,
        task.marked(one.answer, one.row),
        list(_pictures(task, one, wanted)),
        drawn(f"answer to {place}", lambda axes: _plotted(axes, task, one), height=1.9),
    )


def _asked(task: Task, row: Row, wanted: Any) -> dict[str, str]:
    """The words of a row that are not its answer and can be said."""
    rest = {word: value for word, value in row.items() if word not in (task.label, GROUP) and value is not wanted}
    return {word: text for word, value in rest.items() if (text := in_words(value))}


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
