"""Bars: numbers of a table as an SVG beside its page."""

from collections.abc import Mapping
from pathlib import Path


def bars(path: Path, title: str, values: Mapping[str, float], form: str = "{:.1f}") -> None:
    """One bar per entry, the first one ours; `form` is how a value is written beside its bar."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": path.name, "font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(6.5, 0.6 + 0.32 * len(values)), layout="constrained")
        axes = figure.subplots()
        colours = ["tab:blue" if "ours" in name or name == "deltatune" else "0.7" for name in values]
        drawn = axes.barh([name.replace("`", "") for name in values], list(values.values()), color=colours)
        axes.bar_label(drawn, [form.format(value) for value in values.values()], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.spines["right"].set_visible(False)
        axes.set_title(title, fontsize=10, loc="left")
        figure.savefig(path, metadata={"Date": None})
