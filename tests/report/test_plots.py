"""Plots inside a page: texts stay texts, colours are the page's, nothing is from elsewhere."""

import pytest

from deltatune.report.forest import Line, forest_of
from deltatune.report.plots import COLOURS, drawn
from report.pages import read


def test_colours_are_names_of_the_page():
    found = drawn("a title", lambda axes: axes.plot([0, 1], [1, 0], label="line") and axes.legend())
    assert not any(colour in found for colour in COLOURS) and "var(--blue)" in found and "var(--ink)" in found
    assert ">line</text>" in found
    page = read(f"<main>{found}</main>")
    assert page.named("svg")[0]["aria-label"] == "a title" and page.named("style") == page.named("metadata") == []


def test_texts_are_no_formulas_and_no_elements():
    evil = "$\\frac{<script>alert(1)</script> & \u6f22\u5b57"
    found = drawn(evil, *forest_of([Line(evil, 1.0, (0.5, 1.5))], evil))
    page = read(f"<main>{found}</main>")
    assert evil in page.text and page.named("svg")[0]["aria-label"] == evil


def test_two_plots_share_no_ids():
    one, two = (drawn(title, lambda axes: axes.plot([0, 1], [0, 1], marker="o")) for title in ("one", "two"))
    read(f"<main>{one}{two}</main>")


def test_the_same_plot_twice_is_the_same_text():
    one, two = (drawn("t", lambda axes: axes.plot([0, 1], [0, 1], marker="o")) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("count", [1, 7])
def test_a_forest_has_a_line_for_each(count):
    lines = [Line(f"line {n}", n, (n - 1, n + 1), dots=[n, n]) for n in range(count)]
    draw, width, height = forest_of(lines, "accuracy")
    page = read(f"<main>{drawn('forest', draw, width, height)}</main>")
    assert all(f"line {n}" in page.text for n in range(count)) and "accuracy" in page.text


def test_nothing_is_drawn_where_there_is_nothing():
    assert drawn("t", lambda axes: False) is None
