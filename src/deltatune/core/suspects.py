"""Suspects: columns of a table that carry no information, name the row, or tell the label by themselves."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

FEW = 20
"""Rows from which on a pattern is no coincidence."""


def is_constant(words: Sequence[str | None]) -> bool:
    """Whether all rows have one value, or none.

    >>> is_constant(["a", "a"]), is_constant([None, None]), is_constant(["a", None])
    (True, True, False)
    """
    return len(set(words)) <= 1


def names_rows(words: Sequence[str | None]) -> bool:
    """Whether nearly every value is a value of its own, as names and numbers of accounts are."""
    given = [word for word in words if word is not None]
    return len(given) >= FEW and len(set(given)) > 0.95 * len(given)


def counts_rows(numbers: Sequence[float | None]) -> bool:
    """Whether whole numbers only grow from row to row, as row numbers and times do."""
    given = [value for value in numbers if value is not None]
    whole = all(value.is_integer() for value in given)
    return len(given) == len(numbers) >= FEW and whole and all(a < b for a, b in pairwise(given))


def tells(words: Sequence[str | None], labels: Sequence[str]) -> bool:
    """Whether the words decide the label in every row, with several rows to a word.

    >>> tells(["x", "y"] * 20, ["a", "b"] * 20), tells(["x", "y"] * 20, ["a", "b", "b", "a"] * 10)
    (True, False)
    """
    found = defaultdict(set)
    for word, label in zip(words, labels, strict=True):
        found[word].add(label)
    return len(labels) >= FEW and 5 * len(found) <= len(labels) and all(len(own) == 1 for own in found.values())


def separates(numbers: Sequence[float | None], labels: Sequence[str]) -> bool:
    """Whether thresholds on the numbers decide the label in every row, one stretch of values per label.

    >>> separates([0.0, 1.0, 2.0, 3.0] * 10, ["a", "a", "b", "b"] * 10)
    True
    """
    of_number = defaultdict(set)
    for number, label in zip(numbers, labels, strict=True):
        if number is not None:
            of_number[number].add(label)
    if len(labels) < FEW or any(len(own) > 1 for own in of_number.values()):
        return False
    ordered = [next(iter(of_number[number])) for number in sorted(of_number)]
    changes = sum(a != b for a, b in pairwise(ordered))
    return len(set(ordered)) > 1 and changes == len(set(ordered)) - 1 and len(set(ordered)) == len(set(labels))
