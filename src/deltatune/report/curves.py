"""Curves of a training: loss, learning rate and validation metric, on axes of matplotlib; as one PNG too."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Lines = Sequence[Mapping[str, Any]]
"""Those of metrics.jsonl."""


def read(metrics: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def draw(lines: Lines, png: Path, metric: str, *, lower_is_better: bool = False) -> None:
    """Draws a picture of all; raises `ModuleNotFoundError` without matplotlib (extra `report`)."""
    from matplotlib.figure import Figure  # without pyplot: no backend of the machine's, nothing to close

    figure = Figure(figsize=(10, 3.6))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.14, top=0.91, wspace=0.45)
    left, right = figure.subplots(1, 2)
    losses(left, lines)
    left.set_title("Loss")
    rate = left.twinx()
    rates(rate, lines, color="0.7", lw=1, ls="--")
    rate.set_ylabel("learning rate (dashed)", color="0.5")
    kept = values(right, lines, metric, lower_is_better=lower_is_better)
    right.set_title(f"Validation {metric}" + (f", kept: {kept[1]:.4f} at step {kept[0]}" if kept else ""))
    figure.savefig(png, dpi=130)


def losses(axes: Any, lines: Lines) -> None:
    """Loss of the training and of the validation rows."""
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if points:
        axes.plot(*zip(*points, strict=True), color="C0", label="training")
    points = [(line["step"], line["validation"].get("loss")) for line in lines if "validation" in line]
    points = [(step, loss) for step, loss in points if loss is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color="C1", marker="o", label="validation")
    axes.set(ylabel="loss")
    _steps(axes)
    axes.legend(loc="upper right", frameon=False)


def rates(axes: Any, lines: Lines, **style: Any) -> None:
    """The learning rate."""
    points = [(line["step"], line["learning_rate"]) for line in lines if "loss" in line]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
    axes.set_ylim(bottom=0)
    _steps(axes)


def values(axes: Any, lines: Lines, metric: str, *, lower_is_better: bool) -> tuple[int, float] | None:
    """A metric of the validation rows; step and value of the best one, which is marked."""
    points = [(line["step"], line["validation"][metric]) for line in lines if "validation" in line]
    axes.set(ylabel=metric)
    _steps(axes)
    if not points:
        return None
    axes.plot(*zip(*points, strict=True), color="C2", marker="o")
    step, value = (min if lower_is_better else max)(points, key=lambda point: point[1])
    axes.axvline(step, color="0.7", lw=1, zorder=0)
    axes.margins(0.15)
    return step, value


def _steps(axes: Any) -> None:
    """Steps below, which are whole numbers."""
    axes.set(xlabel="optimizer step")
    axes.locator_params(axis="x", integer=True)
