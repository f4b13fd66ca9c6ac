"""Labels: what stands in a label column, as class names or numbers.

Several labels are a list of the names that hold (all others do not), or a mapping from names to 1, 0 or nothing, where
nothing means that it is not known.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

Problem = Literal["single", "multi-label", "regression"]
"""One class per row, several, or a number."""
MARKS = {
    **dict.fromkeys(("1", "1.0", "true"), True),
    **dict.fromkeys(("0", "0.0", "false"), False),
    **dict.fromkeys(("", "none", "nan"), None),
}
"""What stands under the name of a class, as text, and what it means."""


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is named twice, and every class has one output")
    return names


Labels = Annotated[tuple[str, ...], AfterValidator(_each_once)]
"""Names of classes in the order of the model's outputs, each once."""


def is_blank(value: Any) -> bool:
    """Whether nothing stands there: no value, or a text of white space.

    >>> is_blank(None), is_blank(" "), is_blank(0)
    (True, True, False)
    """
    return value is None or (isinstance(value, str) and not value.strip())


def problem_of(values: Sequence[Any]) -> Problem:
    """Lists and mappings are several labels, fractions are numbers, everything else is a class.

    >>> problem_of(["1", "2"]), problem_of([0.5, 1]), problem_of([["a"], []]), problem_of([{"a": 1}])
    ('single', 'regression', 'multi-label', 'multi-label')
    """
    if any(isinstance(value, list | dict) for value in values):
        return "multi-label"
    numbers = [number(value) for value in values]
    if all(n is not None for n in numbers) and any(n != int(n) for n in numbers if n is not None):
        return "regression"
    return "single"


def names(value: Any) -> list[str]:
    """Class names of a label; whole numbers without a decimal point, whatever file they come from.

    >>> names(3.0), names([" a", True]), names({"a": 1, "b": 0, "c": None})
    (['3'], ['a', 'True'], ['a'])
    """
    if isinstance(value, Mapping):
        return [name for name, mark in value.items() if said(mark)]
    values = value if isinstance(value, list) else [value]
    return [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v).strip() for v in values]


def called(value: Any) -> str:
    """A speaker or a series by name, as a class is; empty where nothing stands there.

    >>> called(0), called(2.0), called(None), called(" ")
    ('0', '2', '', '')
    """
    return "" if is_blank(value) or value != value else names([value])[0]


def mentioned(value: Any) -> list[str]:
    """Class names that a label says something about, true or not."""
    return list(value) if isinstance(value, Mapping) else names(value)


def said(mark: Any) -> bool | None:
    """Whether a class holds, by the mark under its name; None: not known. Raises `ValueError` for other marks.

    >>> said("1"), said(False), said(0.0), said(""), said(None)
    (True, False, False, None, None)
    """
    text = str(mark).strip().casefold()
    if text not in MARKS:
        raise ValueError(f"{mark!r} is neither 1 nor 0")
    return MARKS[text]


def marks(value: Any, labels: Sequence[str]) -> list[float]:
    """1, 0, or NaN where it is not known, for every label.

    >>> marks(["a"], ["a", "b"]), marks({"b": 1}, ["a", "b"])
    ([1.0, 0.0], [nan, 1.0])
    """
    if isinstance(value, Mapping):
        found = [said(value.get(label)) for label in labels]
        return [math.nan if mark is None else float(mark) for mark in found]
    held = names(value)
    return [float(label in held) for label in labels]


def number(value: Any) -> float | None:
    """The finite number a value is or spells, or None."""
    if isinstance(value, bool | list | dict):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):  # OverflowError: an integer of hundreds of digits
        return None
    return found if math.isfinite(found) else None


def natural(name: str) -> tuple[int, float, str]:
    """Sorting key: numbers by value, before words.

    >>> sorted(["b", "10", "9", "a"], key=natural)
    ['9', '10', 'a', 'b']
    """
    found = number(name)
    return (0, found, name) if found is not None else (1, 0.0, name)
