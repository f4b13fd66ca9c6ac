"""Series: rows of a long table {time, value, series?} as values in order of time, and windows of them.

    context   the last T values (or changes) a model reads          future   the next H values it is asked for
    log-return   x_t = log(p_t / p_{t-1})    y_h = log(p_{T+h} / p_T)
    difference   x_t = p_t - p_{t-1}         y_h = p_{T+h} - p_T
    none         x_t = p_t                   y_h = p_{T+h} - p_T

x is centred and scaled by its own mean and spread in the window, y is scaled by the same spread: a window does not know
anything but itself.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import numpy as np

from deltatune.core.errors import DataError
from deltatune.core.labels import called, number

Transform = Literal["log-return", "difference", "none"]
Clock = Literal["date", "datetime", "number"]
DAY = 86400.0
MIDNIGHT = datetime.min.time()
FULL_WEEK = 5
"""Weekday of Saturday, from which on a series of working days has no values."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one series in order of time; NaN where a value is missing."""

    name: str
    times: Any
    """Seconds since 1970 in UTC, or numbers as they are; strictly growing, float64."""
    values: Any


def moment(value: Any, form: str | None) -> tuple[float, Clock] | None:
    """A time as a number and what it was written as; None for what is none.

    >>> moment("1970-01-02", None), moment("1970-01-01 00:01", None), moment("1970-01-01 01", None), moment(7, None)
    ((86400.0, 'date'), (60.0, 'datetime'), (3600.0, 'datetime'), (7.0, 'number'))
    >>> moment("1/2/1970", "%m/%d/%Y")
    (86400.0, 'date')
    """
    if isinstance(value, str):
        text = value.strip()
        if form is None and (found := number(text)) is not None and len(text) != len("19700101"):
            return found, "number"
        try:
            read = datetime.strptime(text, form) if form is not None else datetime.fromisoformat(text)
        except ValueError:
            return None
        clock: Clock = "datetime" if ":" in text or read.time() != MIDNIGHT else "date"
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp(), clock
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp(), "datetime"
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp(), "date"
    found = number(value)
    return None if found is None else (found, "number")


def written(time: float, clock: Clock) -> str | float:
    """A time as it was written.

    >>> written(86400.0, "date"), written(60.0, "datetime"), written(7.0, "number")
    ('1970-01-02', '1970-01-01T00:01:00', 7.0)
    """
    if clock == "number":
        return time
    moment = datetime(1970, 1, 1) + timedelta(seconds=time)
    return moment.date().isoformat() if clock == "date" else moment.isoformat()


def gathered(
    rows: Sequence[Mapping[str, Any]], form: str | None, window: int = 0
) -> tuple[list[Series], Clock, list[str]]:
    """The series of good rows, sorted by time, the clock of their times, and what is odd about them, in words.

    A series with fewer values than a window takes gives none, which is said too.

    Raises `DataError` for a time that a series has twice and for times of two kinds.
    """
    of_series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    clocks: Counter[Clock] = Counter()
    for row in rows:
        found = moment(row["time"], form)
        assert found is not None, "rows are checked"
        value = number(row["value"])
        of_series[called(row.get("series"))].append((found[0], math.nan if value is None else value))
        clocks[found[1]] += 1
    if "number" in clocks and len(clocks) > 1:
        raise DataError("some times are numbers and some are dates", hint="write them alike")
    clock: Clock = "datetime" if clocks["datetime"] else clocks.most_common(1)[0][0]
    found_series: list[Series] = []
    notes: list[str] = []
    for name, points in of_series.items():
        times = np.array([time for time, _ in points])
        order = np.argsort(times, kind="stable")
        own = Series(name, times[order], np.array([value for _, value in points])[order])
        notes += _oddities(own, clock, times[1:][np.diff(times) < 0])
        if len(times) < window:
            notes.append(f"series {name!r} has {len(times)} values, a window takes {window}: nothing of it is used")
        found_series.append(own)
    return found_series, clock, notes


def _oddities(series: Series, clock: Clock, back: Any) -> Iterator[str]:
    """Disorder and gaps, for a notice; raises `DataError` for a repeated time. `back` are times that stand too late."""
    steps, title = np.diff(series.times), f"series {series.name!r}" if series.name else "the series"
    if (steps == 0).any():
        twice = written(float(series.times[int(np.argmin(steps))]), clock)
        raise DataError(f"{title} has {twice} twice", hint="a series has one value at a time; name it in `series`")
    if len(back):
        first = written(float(back[0]), clock)
        yield f"{title}: {len(back)} rows are not in order of time, the first is that of {first}; they are sorted"
    if len(steps) and (wide := steps > 5 * np.median(steps)).any():
        place = int(np.argmax(steps))
        ends = " to ".join(str(written(float(t), clock)) for t in series.times[place : place + 2])
        count = int(wide.sum())
        yield f"{title}: {count} gaps of more than five steps, the longest from {ends}; values are taken in turn"
    if missing := int(np.isnan(series.values).sum()):
        yield f"{title}: {missing} values are missing and are masked"


def following(times: Any, count: int, clock: Clock) -> list[float]:
    """The next times of a series: by its usual step; days of the week that it never has are left out.

    >>> friday = 2 * DAY  # 1970-01-02 to 1970-01-09 without a weekend
    >>> [written(t, "date") for t in following([x * DAY for x in (1, 4, 5, 6, 7, 8)], 2, "date")]
    ['1970-01-12', '1970-01-13']
    """
    given, step = np.asarray(times, dtype=np.float64), _usual_step(times, clock)
    week = {_weekday(t) for t in given}
    working = clock == "date" and step == DAY and len(given) > FULL_WEEK and not week & {FULL_WEEK, FULL_WEEK + 1}
    found: list[float] = []
    last = float(given[-1])
    while len(found) < count:
        last += step
        if not working or _weekday(last) < FULL_WEEK:
            found.append(last)
    return found


def preceding(times: Any, count: int, clock: Clock) -> list[float]:
    """Times in front of a series, by its usual step.

    >>> preceding([5.0, 7.0, 9.0], 2, "number")
    [1.0, 3.0]
    """
    step = _usual_step(times, clock)
    return [float(times[0]) - step * back for back in range(count, 0, -1)]


def _usual_step(times: Any, clock: Clock) -> float:
    """The median step; one day, or 1, for a single time."""
    return float(np.median(np.diff(times))) if len(times) > 1 else (1.0 if clock == "number" else DAY)


def _weekday(time: float) -> int:
    """Monday is 0; 1970-01-01 was a Thursday."""
    return int(time // DAY + 3) % 7


def read(values: Any, transform: Transform) -> Any:
    """What a model reads of values [n]: as many numbers, or one less where they are changes."""
    if transform == "none":
        return np.asarray(values, dtype=np.float64)
    return np.diff(np.log(values) if transform == "log-return" else values)


def change(origin: Any, values: Any, transform: Transform) -> Any:
    """y: how far values are from the last known one."""
    return np.log(values / origin) if transform == "log-return" else values - origin


def level(origin: Any, changes: Any, transform: Transform) -> Any:
    """Values that are so far from the last known one.

    >>> float(level(100.0, change(100.0, 110.0, "log-return"), "log-return"))
    110.00000000000001
    """
    return origin * np.exp(changes) if transform == "log-return" else origin + changes


def spread(read_values: Any) -> tuple[float, float]:
    """Mean and standard deviation of what is known; the deviation is 0 for a constant."""
    known = read_values[~np.isnan(read_values)]
    return (float(known.mean()), float(known.std())) if len(known) else (0.0, 0.0)


def bridged(values: Any) -> Any:
    """Values [n] with those that are missing on the line between their neighbours, or as the next one at an end.

    >>> bridged(np.array([np.nan, 1.0, np.nan, 3.0])).tolist()
    [1.0, 1.0, 2.0, 3.0]
    """
    places, known = np.arange(len(values)), ~np.isnan(values)
    return np.interp(places, places[known], values[known]) if known.any() else values


def enough(read_values: Any) -> bool:
    """Whether at least half of what a model would read is known."""
    return bool(np.isnan(read_values).mean() <= 0.5)


def windows(
    series: Series, context: int, horizon: int, stride: int, first: int, last: int, transform: Transform
) -> Iterator[dict[str, Any]]:
    """Windows whose future lies in the places first..last-1 of the series, each `stride` steps after the one before.

    `context` counts values. A window knows its series, its times, the values behind it and those in front of it; one
    with less than half of its context known, no known last value or an unknown future is left out.
    """
    for start in range(max(first, context), last - horizon + 1, stride):
        past, future = series.values[start - context : start], series.values[start : start + horizon]
        if not enough(read(past, transform)) or np.isnan(past[-1]) or np.isnan(future).all():
            continue
        yield {
            "series": series.name,
            "times": series.times[start - context : start + horizon].tolist(),
            "context": past.tolist(),
            "future": future.tolist(),
        }


def last(series: Series, context: int, horizon: int, clock: Clock) -> dict[str, Any]:
    """What is behind the last known value of a history, filled up with missing values in front."""
    known = np.flatnonzero(~np.isnan(series.values))
    end = int(known[-1]) + 1 if len(known) else len(series.values)
    start = max(0, end - context)
    short = context - (end - start)
    padded = np.concatenate([np.full(short, np.nan), series.values[start:end]])
    before, times = preceding(series.times[:end], short, clock), series.times[start:end].tolist()
    times = [*before, *times, *following(series.times[:end], horizon, clock)]
    return {"series": series.name, "times": times, "context": padded.tolist(), "clock": clock}


def too_short(found: Sequence[Series], window: int) -> str:
    """What to say where no series has the values of a window."""
    longest = max(found, key=lambda own: len(own.values))
    return (
        f"the longest series ({longest.name or 'without a name'}) has {len(longest.values)} values; a window takes "
        f"{window}, and every part needs some"
    )


def borders(count: int, shares: Mapping[str, float], gap: int) -> dict[str, tuple[int, int]]:
    """First and last place (excluded) of the futures of `train` and of every part, in order of time.

    Between two parts lie `gap` steps that belong to none.

    >>> borders(100, {"validation": 0.2, "test": 0.1}, gap=5)
    {'train': (0, 65), 'validation': (70, 85), 'test': (90, 100)}
    """
    cuts = [count - round(count * share) for share in np.cumsum(list(shares.values())[::-1])][::-1]
    names = ["train", *shares]
    ends = [cut - gap for cut in cuts] + [count]
    return {name: (start, end) for name, start, end in zip(names, [0, *cuts], ends, strict=True)}
