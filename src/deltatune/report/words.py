"""Words: any value of a row or an answer as a short text for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from deltatune.core.amounts import figure

LONGEST = 400
"""Characters of a text that are shown."""
ITEMS = 8
"""Entries of a list that are shown."""


def in_words(value: Any) -> str:
    """A value as text; empty for nothing and for objects that are no plain values.

    >>> in_words(0.25), in_words(["a", "b"]), in_words({"age": 31, "job": "none"})
    ('0.2500', 'a, b', 'age = 31, job = none')
    >>> in_words([{"label": "cell", "box": [0, 0, 1, 1]}, {"label": "cell", "box": [1, 1, 2, 2]}])
    '2 x cell'
    """
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[:LONGEST]} …"
    if isinstance(value, int | float):
        return figure(value)
    if isinstance(value, Mapping):
        return _shortened([f"{name} = {in_words(own)}" for name, own in value.items() if in_words(own)])
    return _list(value) if isinstance(value, Sequence) else ""


def setting(value: Any) -> str:
    """A setting's value as a config file would have it, in one line.

    >>> setting(2.0), setting(0.0005), setting({"crop": 0.5, "flip": None}), setting("all-linear")
    ('2', '0.0005', 'crop: 0.5, flip: none', 'all-linear')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {setting(own)}" for name, own in value.items())
    if isinstance(value, list | tuple):
        return _shortened([setting(own) for own in value])
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list(values: Sequence[Any]) -> str:
    if not values:
        return "none"
    if all(isinstance(value, Mapping) for value in values):
        return _mappings(values)
    return _shortened([in_words(value) or "-" for value in values])


def _mappings(values: Sequence[Mapping[str, Any]]) -> str:
    """Turns of a conversation, things with labels, or the first word of each."""
    if all("role" in value for value in values):
        return in_words("\n".join(f"{value['role']}: {value.get('content') or ''}" for value in values))
    if all("label" in value for value in values):
        counts = Counter(str(value["label"]) for value in values)
        return ", ".join(f"{count} x {label}" for label, count in counts.most_common(ITEMS))
    return _shortened([in_words(next(iter(value.values()), None)) for value in values])


def _shortened(texts: Sequence[str]) -> str:
    if len(texts) <= 2 * ITEMS:
        return ", ".join(texts)
    return f"{', '.join(texts[:ITEMS])}, … {', '.join(texts[-2:])} ({len(texts)} in all)"
