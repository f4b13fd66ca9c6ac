"""Curves: loss, validation metric and learning rate of a run as one PNG."""

import json
from pathlib import Path
from typing import Any


def draw(metrics: Path, png: Path, metric: str, *, lower_is_better: bool = False) -> None:
    """Draws metrics.jsonl; raises `ModuleNotFoundError` without matplotlib (extra `report`)."""
    from matplotlib.figure import Figure  # without pyplot: no backend of the machine's, nothing to close

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(10, 3.6))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.14, top=0.91, wspace=0.45)
    left, right = figure.subplots(1, 2)
    _losses(left, lines)
    _metric(right, lines, metric, min if lower_is_better else max)
    figure.savefig(png, dpi=130)


def _losses(axes: Any, lines: list[dict[str, Any]]) -> None:
    steps = [line["step"] for line in lines if "loss" in line]
    axes.plot(steps, [line["loss"] for line in lines if "loss" in line], color="tab:blue", label="training loss")
    points = [(line["step"], line["validation"].get("loss")) for line in lines if "validation" in line]
    points = [(step, loss) for step, loss in points if loss is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color="tab:orange", marker="o", label="validation loss")
    rate = axes.twinx()
    rate.plot(steps, [line["learning_rate"] for line in lines if "loss" in line], color="0.7", lw=1, ls="--")
    rate.set_ylabel("learning rate (dashed)", color="0.5")
    rate.set_ylim(bottom=0)
    axes.set(xlabel="optimizer step", ylabel="loss", title="Loss")
    axes.legend(loc="upper right", frameon=False)


def _metric(axes: Any, lines: list[dict[str, Any]], metric: str, best: Any) -> None:
    points = [(line["step"], line["validation"][metric]) for line in lines if "validation" in line]
    axes.set(xlabel="optimizer step", ylabel=metric, title=f"Validation {metric}")
    if not points:
        return
    axes.plot(*zip(*points, strict=True), color="tab:green", marker="o")
    step, value = best(points, key=lambda point: point[1])
    axes.axvline(step, color="0.8", lw=1, zorder=0)
    axes.set_title(f"Validation {metric}, kept: {value:.4f} at step {step}")
    axes.margins(0.15)
