"""Tables and numbers as the commands print them."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def as_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int] = (),
    whole: Sequence[int] = (),
    marked: Sequence[int] = (),
) -> None:
    """A table on stdout: `right` are columns of numbers, `whole` those never broken, `marked` the rows in colour."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(columns):
        shown.add_column(name, justify="right" if index in right else "left", overflow="fold", no_wrap=index in whole)
    for index, row in enumerate(rows):
        shown.add_row(*(str(cell).replace("[", r"\[") for cell in row), style="green" if index in marked else None)
    Console().print(shown)


def measured(metrics: Mapping[str, Any], name: str) -> str:
    """A metric with its interval.

    >>> measured({"accuracy": 0.81234, "interval": [0.78, 0.84]}, "accuracy")
    '0.8123 (0.7800 to 0.8400)'
    """
    low, high = metrics.get("interval", (None, None))
    return f"{metrics[name]:.4f}" + (f" ({low:.4f} to {high:.4f})" if low is not None else "")
