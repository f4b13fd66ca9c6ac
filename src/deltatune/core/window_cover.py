"""Window cover: which values of a file the windows hold, and why others are in none."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.core.labels import called
from deltatune.core.series import moment


def held(windows: Sequence[Mapping[str, Any]]) -> defaultdict[str, set[float]]:
    """The different times of the windows of every series.

    >>> sorted(held([{"series": "a", "times": [1.0, 2.0]}, {"series": "a", "times": [2.0, 3.0]}])["a"])
    [1.0, 2.0, 3.0]
    """
    found: defaultdict[str, set[float]] = defaultdict(set)
    for window in windows:
        found[window["series"]].update(window["times"])
    return found


def outside(
    rows: Sequence[Mapping[str, Any]], windows: Sequence[Mapping[str, Any]], form: str | None, size: int
) -> dict[int, str]:
    """Numbers of the rows whose values are in no window of so many, and why; times are written in `form`."""
    times, names = held(windows), [called(row.get("series")) for row in rows]
    counts = Counter(names)
    found = {}
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        told = moment(row["time"], form)
        if told is not None and told[0] in times[name]:
            continue
        short = f"series {name!r} has {counts[name]} values, a window takes {size}"
        between = "in no window: it lies between two parts, or too little is known around it"
        found[place] = short if counts[name] < size else between
    return found
