"""Histories: what users did, as one sequence of items per user in the order of time.

interaction   {user, item, time, rating?}      one row of a file
history       {user, items, known}             the first `known` items are given, those behind them are to be predicted

Leave last out: the last item of a user is the test, the one before it validation, all others are learned from (Kang and
McAuley 2018, arXiv:1808.09781, section 4.1).
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from deltatune.core.errors import DataError
from deltatune.core.labels import names, number
from deltatune.core.task import Row

logger = logging.getLogger("deltatune")

SHOWN = 10
"""Users that a message names."""


def seconds(value: Any) -> float | None:
    """Seconds since 1970 of a date in ISO 8601 (UTC where it names no zone), a number as it is; None: neither.

    >>> seconds("1970-01-02"), seconds("1970-01-01T01:00:00+01:00"), seconds("12"), seconds("soon")
    (86400.0, 0.0, 12.0, None)
    """
    found = number(value)
    if found is not None:
        return found
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        return None
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def name_of(value: Any) -> str:
    """A user or an item by name: whole numbers without a decimal point, whatever file they come from.

    >>> name_of(318), name_of(318.0), name_of(" 318")
    ('318', '318', '318')
    """
    return names(value)[0]


def problem(row: Row, min_rating: float | None) -> str | None:
    """What is wrong with an interaction, or None."""
    for word in ("user", "item"):
        value = row.get(word)
        if isinstance(value, list | dict | bool) or (isinstance(value, float) and number(value) is None):
            return f"{word} is neither a name nor a number ({value!r})"
        if value is None or not name_of(value):
            return f"{word} is missing"
    if row.get("time") in (None, ""):
        return "time is missing"
    if seconds(row["time"]) is None:
        return f"time is neither a number nor a date as in 2018-09-24 or 2018-09-24T14:27:30 ({row['time']!r})"
    if min_rating is not None and number(row.get("rating")) is None:
        return f"rating is not a number ({row.get('rating')!r})"
    return None


@dataclass(frozen=True, slots=True)
class Histories:
    """What every user had, and the interactions that are in no history."""

    items: dict[str, list[str]]
    """By user."""
    left_out: dict[int, str]
    """Number of an interaction, and why."""


def histories(rows: Sequence[Row], *, again: bool, min_rating: float | None) -> dict[str, list[str]]:
    """The items of every user by time, users in the order of the file; at one time the order of the file counts.

    Interactions below `min_rating`, and unless `again` items that the user had before, are left out and counted.
    Raises `DataError` where some times are numbers and some are dates.
    """
    _check_times(rows)
    found = sorted_out(rows, again=again, min_rating=min_rating)
    for reason, count in Counter(found.left_out.values()).items():
        logger.warning("%d of %d interactions left out: %s", count, len(rows), reason)
    return found.items


def sorted_out(rows: Sequence[Row], *, again: bool, min_rating: float | None) -> Histories:
    """The histories and what is in none, for checked rows."""
    found: dict[str, list[str]] = {name_of(row["user"]): [] for row in rows}
    had: set[tuple[str, str]] = set()
    left_out: dict[int, str] = {}
    times = [seconds(row["time"]) or 0.0 for row in rows]
    for place in sorted(range(len(rows)), key=times.__getitem__):  # sorting is stable
        user, item = name_of(rows[place]["user"]), name_of(rows[place]["item"])
        if min_rating is not None and (number(rows[place]["rating"]) or 0.0) < min_rating:
            left_out[place] = f"rated below {min_rating}"
        elif not again and (user, item) in had:
            left_out[place] = "with an item that the user had before"
        else:
            had.add((user, item))
            found[user].append(item)
    return Histories({user: items for user, items in found.items() if items}, left_out)


def _check_times(rows: Sequence[Row]) -> None:
    dates = sum(number(row["time"]) is None for row in rows)
    if 0 < dates < len(rows):
        raise DataError(
            f"time is a number in {len(rows) - dates} rows and a date in {dates}", hint="write all times in one way"
        )


def history(user: str, items: Sequence[str], known: int) -> dict[str, Any]:
    """A row of the task."""
    return {"user": user, "items": list(items), "known": known}


def whole(found: Mapping[str, Sequence[str]], *, asked: bool) -> list[Row]:
    """Every history as one row: asked for what follows, or with all but the first item to be predicted.

    Users without a second item to predict are named in a warning; raises `DataError` when there are no others.
    """
    if asked:
        return [history(user, items, len(items)) for user, items in found.items()]
    single = [user for user, items in found.items() if len(items) < 2]
    if single:
        logger.warning("%d users have one item, with none to predict, and are left out: %s", *_named(single))
    if found and len(single) == len(found):
        raise DataError(
            f"none of the {len(found)} users has two items", hint="are user and item the right columns (data.columns)?"
        )
    return [history(user, items, 1) for user, items in found.items() if len(items) > 1]


def last_out(found: Mapping[str, Sequence[str]], parts: Sequence[str]) -> dict[str, list[Row]]:
    """Histories of `train` and of every part: the last item of a user for the last part, the one before for the first.

    Users with too few items are named in a warning: two are learned from, one is not.

    >>> last_out({"ann": ["a", "b", "c", "d"], "bob": ["d", "a"]}, ["validation", "test"])["validation"]
    [{'user': 'ann', 'items': ['a', 'b', 'c'], 'known': 2}]
    """
    few = [user for user, items in found.items() if len(items) <= len(parts)]
    if few:
        count, shown = _named(few)
        logger.warning("%d users with fewer than %d items are in no part but train: %s", count, len(parts) + 1, shown)
    divided: dict[str, list[Row]] = {name: [] for name in ("train", *parts)}
    for user, items in found.items():
        kept = len(items) if len(items) <= len(parts) else len(items) - len(parts)
        if kept > 1:
            divided["train"].append(history(user, items[:kept], 1))
        for end, part in enumerate(parts if kept < len(items) else (), start=kept + 1):
            divided[part].append(history(user, items[:end], end - 1))
    return divided


def _named(users: Sequence[str]) -> tuple[int, str]:
    """How many they are, and the first of them."""
    more = f" and {len(users) - SHOWN} more" if len(users) > SHOWN else ""
    return len(users), ", ".join(users[:SHOWN]) + more
