"""The panel: as wide as there is room, in letters that the terminal has, one training or several."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deltatune.train.live import BARS, MOST, Curve, View, sparkline


def view(*labels):
    found = View(200, "images", step=50)
    for number, label in enumerate(labels):
        track = found.track(label)
        track.metric_name, track.best = "accuracy", "best 0.8000 at step 40"
        track.rate, track.per_second, track.left = 1e-3, 120.0, 75.0 + number
        for value in range(30):
            track.loss.add(3 / (1 + value))
            track.metric.add(value / 40)
    return found


def rendered(shown, width, encoding="utf-8"):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=file, width=width, force_terminal=True, color_system=None).print(shown)
    file.flush()
    return raw.getvalue().decode(encoding)


def test_everything_is_there():
    text = rendered(view(""), 100)
    for word in (
        "50/200",
        "1 min 15 s left",
        "0.1000",
        "0.7250",
        "best 0.8000 at step 40",
        "rate 0.001",
        "120 images/s",
    ):
        assert word in text
    assert "memory" in text and "peak" in text and BARS[-1] in text and text.count("\n") == 6


@pytest.mark.parametrize("width", [12, 30, 44, 55, 56, 57, 80, 200])
@pytest.mark.parametrize("labels", [("",), ("a", "lora-with-a-rather-long-name-that-never-ends")])
def test_no_line_is_wider_than_the_terminal(width, labels):
    lines = rendered(view(*labels), width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 40


def test_several_trainings_have_their_names_and_their_speeds_add_up():
    text = rendered(view("lora", "ia3"), 100)
    assert "lora" in text and "ia3" in text and "240 images/s" in text and "1 min 16 s left" in text
    assert "rate" not in text


def test_letters_that_the_terminal_has():
    assert "loss" in rendered(view(""), 80, "ascii") and "@" in rendered(view(""), 80, "ascii")


def test_nothing_yet():
    assert "0/9" in rendered(View(9, "tokens"), 60)


@given(st.lists(st.floats(allow_nan=True), max_size=200), st.integers(0, 60))
def test_a_sparkline_fits_whatever_the_values(values, width):
    found = sparkline(values, width)
    assert len(found) == min(width, len(values)) and set(found) <= {*BARS, " "}


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=60, unique=True))
def test_higher_values_have_higher_bars(values):
    bars = [BARS.index(letter) for letter in sparkline([float(value) for value in values], len(values))]
    pairs = sorted(zip(values, bars, strict=True))
    assert [bar for _, bar in pairs] == sorted(bars) and pairs[0][1] == 0 and pairs[-1][1] == len(BARS) - 1


def test_a_curve_of_any_length_takes_bounded_room_and_keeps_its_end():
    curve = Curve()
    for value in range(10 * MOST):
        curve.add(float(value))
    assert len(curve.values) <= MOST and curve.values[-1] == 10 * MOST - 1 and curve.values == sorted(curve.values)
