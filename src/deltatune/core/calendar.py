"""Calendar: features of times for models that read when a value was, as GluonTS makes them (Alexandrov et al. 2020).

Each place in the calendar is scaled to -0.5..0.5. How many features there are says which, as the usual step does there:

    1 age          2 month of year         3 day of month, week of year      4 day of week, day of month, day of year
    5 hour, as 4   6 minute, hour, as 4    7 second, minute, hour, as 4      the age is always the last one

The age is log10(2 + i) of the i-th value; GluonTS counts it from the start of the series, here it is the window's own.
"""

from typing import Any

import numpy as np

DAYS = ("day of week", "day of month", "day of year")
PLACES: dict[int, tuple[str, ...]] = {
    0: (),
    1: (),
    2: ("month of year",),
    3: ("day of month", "week of year"),
    4: DAYS,
    5: ("hour", *DAYS),
    6: ("minute", "hour", *DAYS),
    7: ("second", "minute", "hour", *DAYS),
}
"""Places in the calendar, by the number of features with the age."""
DAY, HOUR, MINUTE = 86400, 3600, 60
THURSDAY = 3


def features(times: Any, count: int) -> Any:
    """Features [T, count] of times [T] in seconds since 1970, float32.

    >>> print(features([0.0, 31 * 86400.0], 2).round(3))  # January and February
    [[-0.5    0.301]
     [-0.409  0.477]]
    """
    seconds = np.floor(np.asarray(times, dtype=np.float64)).astype(np.int64)
    places = _places(seconds)
    ages = [np.log10(2.0 + np.arange(len(seconds)))] if count else []
    found = [*(places[name] for name in PLACES[count]), *ages]
    return np.array(found, dtype=np.float32).reshape(count, len(seconds)).T


def _places(seconds: Any) -> dict[str, Any]:
    """Where times are in a minute, an hour, ..., a year, from -0.5 to 0.5."""
    day = seconds // DAY
    weekday = (day + THURSDAY) % 7  # 1970-01-01 was a Thursday
    month = day.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) % 12
    week = _since(day - weekday + THURSDAY, "Y") // 7  # that of its Thursday (ISO 8601)
    return {
        "second": seconds % MINUTE / 59 - 0.5,
        "minute": seconds % HOUR // MINUTE / 59 - 0.5,
        "hour": seconds % DAY // HOUR / 23 - 0.5,
        "day of week": weekday / 6 - 0.5,
        "day of month": _since(day, "M") / 30 - 0.5,
        "day of year": _since(day, "Y") / 365 - 0.5,
        "week of year": week / 52 - 0.5,
        "month of year": month / 11 - 0.5,
    }


def _since(day: Any, unit: str) -> Any:
    """Days since the first one of the month or year."""
    dates = day.astype("datetime64[D]")
    return (dates - dates.astype(f"datetime64[{unit}]").astype("datetime64[D]")).astype(np.int64)
