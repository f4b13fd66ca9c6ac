"""Exact match: the part of an answer that has to be right.

number      behind the last ####, else the last number; 1,000.0 is 1000
line        the last line that is not empty, white space squeezed
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal

Extractor = Literal["none", "number", "line"]
MARK = "####"
NUMBER = re.compile(r"(?<!\d)-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def number(answer: str) -> str | None:
    """The number that an answer comes to, or None.

    >>> number("6 * 7 = 42, so #### 1,042.50 in all of 3"), number("from 7-3, about -0.0"), number("none")
    ('1042.5', '0', None)
    """
    behind = NUMBER.findall(answer.rpartition(MARK)[2]) if MARK in answer else []
    found = behind[:1] or NUMBER.findall(answer)[-1:]
    return _plain(found[0]) if found else None


def line(answer: str) -> str | None:
    r"""The last line that says something, or None.

    >>> line("First.  \n So  it is. \n\n")
    'So it is.'
    """
    lines = [" ".join(each.split()) for each in answer.splitlines()]
    return next((each for each in reversed(lines) if each), None)


def _plain(digits: str) -> str:
    """A number without commas, zeros at its ends, or a sign before zero."""
    whole, _, rest = digits.replace(",", "").lstrip("-").partition(".")
    rest = rest.rstrip("0")
    found = (whole.lstrip("0") or "0") + (f".{rest}" if rest else "")
    return f"-{found}" if digits.startswith("-") and found != "0" else found


EXTRACTORS: Mapping[str, Callable[[str], str | None]] = {"number": number, "line": line}


def matches(extractor: Extractor, answer: str, wanted: str) -> bool:
    """Whether the parts of two answers are there and equal."""
    found = EXTRACTORS[extractor](answer)
    return found is not None and found == EXTRACTORS[extractor](wanted)
