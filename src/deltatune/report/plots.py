"""Plots: figures of matplotlib as SVG inside a page, in the colours of the page, light or dark."""

import io
import re
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from markupsafe import Markup, escape

COLOURS: Mapping[str, str] = {
    "#010a01": "var(--ink)",
    "#010a02": "var(--muted)",
    "#010a03": "var(--rule)",
    "#010a10": "var(--blue)",
    "#010a11": "var(--orange)",
    "#010a12": "var(--green)",
    "#010a13": "var(--violet)",
    "#010a14": "var(--red)",
}
"""What stands for a colour while matplotlib draws, and the page's name of it."""
INK, MUTED, RULE, BLUE, ORANGE, GREEN, VIOLET, RED = COLOURS
WIDTH, HEIGHT = 4.4, 2.9
"""Inches; with letters of 10 points it can be read on a phone."""


def missing() -> bool:
    """Whether matplotlib is not installed (extra `report`)."""
    return find_spec("matplotlib") is None


def drawn(title: str, draw: Callable[[Any], Any], width: float = WIDTH, height: float = HEIGHT) -> Markup | None:
    """An SVG of what `draw` puts on the axes; None without matplotlib, or where `draw` says False.

    Texts are texts in it: the page's letters, selectable, and no formulas whatever they hold.
    """
    if missing():
        return None
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style(title)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # only measured; the browser has the letters
        figure = Figure(figsize=(width, height), layout="constrained")
        if draw(figure.subplots()) is False:
            return None
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(file.getvalue(), title)


def _style(salt: str) -> dict[str, Any]:
    from matplotlib.rcsetup import cycler

    return {
        "font.size": 10,
        "text.color": INK,
        "text.parse_math": False,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, VIOLET, RED]),
        "grid.color": RULE,
        "grid.linewidth": 0.7,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "figure.facecolor": "none",
        "lines.linewidth": 1.8,
        "lines.markersize": 4,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
    }


def _inline(document: str, title: str) -> Markup:
    """The `svg` element alone, without what a page has already, its ids its own."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    head, rest = body[4 : body.index(">")], body[body.index(">") :]
    (box,) = re.findall(r'viewBox="[^"]*"', head)
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    rest = re.sub(r"font: (?:\w+ )?([\d.]+)px [^;\"]*", r"font-size: \1px", rest)
    for placeholder, name in COLOURS.items():
        rest = rest.replace(placeholder, name)
    return Markup(f'<svg class="plot" role="img" aria-label="{escape(title)}" {box}{rest}')
