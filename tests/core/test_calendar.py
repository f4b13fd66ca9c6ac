"""Features of times: against the standard library, by their number."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from deltatune.core.calendar import PLACES, features

TIMES = [
    datetime(1968, 12, 30, 23, 59, 59, tzinfo=UTC) + timedelta(days=61 * k, seconds=4567 * k * k) for k in range(300)
]


def expected(time, name):
    week = time.isocalendar()
    return {
        "second": time.second / 59,
        "minute": time.minute / 59,
        "hour": time.hour / 23,
        "day of week": time.weekday() / 6,
        "day of month": (time.day - 1) / 30,
        "day of year": (time.timetuple().tm_yday - 1) / 365,
        "week of year": (week.week - 1) / 52,
        "month of year": (time.month - 1) / 11,
    }[name] - 0.5


@pytest.mark.parametrize("count", PLACES)
def test_as_many_features_as_asked_and_each_is_its_place_in_the_calendar(count):
    found = features([time.timestamp() for time in TIMES], count)
    assert found.shape == (len(TIMES), count) and found.dtype == np.float32
    for column, name in enumerate(PLACES[count]):
        assert np.allclose(found[:, column], [expected(time, name) for time in TIMES], atol=1e-6)
        assert found[:, column].min() >= -0.5 and found[:, column].max() <= 0.5
    if count:
        assert np.allclose(found[:, -1], np.log10(2 + np.arange(len(TIMES))))
