"""Labels: what stands in a label column, as class names or numbers."""

import math
from collections.abc import Sequence
from typing import Any, Literal

Problem = Literal["single", "multi-label", "regression"]
"""One class per row, several, or a number."""


def problem_of(values: Sequence[Any]) -> Problem:
    """Lists are several labels, fractions are numbers, everything else is a class.

    >>> problem_of(["1", "2"]), problem_of([0.5, 1]), problem_of([["a"], []])
    ('single', 'regression', 'multi-label')
    """
    if any(isinstance(value, list) for value in values):
        return "multi-label"
    numbers = [number(value) for value in values]
    if all(n is not None for n in numbers) and any(n != int(n) for n in numbers if n is not None):
        return "regression"
    return "single"


def names(value: Any) -> list[str]:
    """Class names of a label; whole numbers without a decimal point, whatever file they come from.

    >>> names(3.0), names([" a", True])
    (['3'], ['a', 'True'])
    """
    values = value if isinstance(value, list) else [value]
    return [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v).strip() for v in values]


def number(value: Any) -> float | None:
    """The finite number a value is or spells, or None."""
    if isinstance(value, bool | list | dict):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def natural(name: str) -> tuple[int, float, str]:
    """Sorting key: numbers by value, before words.

    >>> sorted(["b", "10", "9", "a"], key=natural)
    ['9', '10', 'a', 'b']
    """
    found = number(name)
    return (0, found, name) if found is not None else (1, 0.0, name)
