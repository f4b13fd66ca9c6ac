"""Proteins as letters of amino acids: the same questions as about molecules, answered from the sequence alone.

problem     why a text is no protein                 canonical   capital letters, no spaces
sketch      runs of five letters                     vectors     shares of letters and of pairs of letters
"""

import re
from collections.abc import Collection, Sequence
from itertools import product
from typing import Any

import numpy as np

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
RARE = "BJOUXZ"
"""Two of the twenty that are not told apart, pyrrolysine, selenocysteine, unknown."""
RUN = 5


def problem(text: str) -> str | None:
    """Why a text is no protein, or None.

    >>> problem("MKTAYIAK"), problem("MK1")
    (None, "sequence holds a letter that no amino acid has ('1')")
    """
    letters = canonical(text)
    if not letters:
        return "sequence is empty"
    odd = re.search(f"[^{LETTERS}{RARE}]", letters)
    return None if odd is None else f"sequence holds a letter that no amino acid has ({odd[0]!r})"


def canonical(text: str) -> str:
    """The letters alone, as capitals; a star at the end is the stop of a translation.

    >>> canonical("mkta yiak*")
    'MKTAYIAK'
    """
    return "".join(text.split()).upper().removesuffix("*")


def sketch(text: str) -> Collection[str]:
    """Runs of five letters, or the whole where it is shorter.

    >>> sorted(sketch("MKTAYI"))
    ['KTAYI', 'MKTAY']
    """
    letters = canonical(text)
    return {letters[start : start + RUN] for start in range(max(1, len(letters) - RUN + 1))}


def vectors(texts: Sequence[str]) -> Any:
    """Shares of the twenty letters and their pairs: float32 [proteins, 420]."""
    places = {run: place for place, run in enumerate([*LETTERS, *map("".join, product(LETTERS, LETTERS))])}
    found = np.zeros((len(texts), len(places)), dtype=np.float32)
    for row, letters in enumerate(map(canonical, texts)):
        for run in [*letters, *(letters[start : start + 2] for start in range(len(letters) - 1))]:
            if run in places:
                found[row, places[run]] += 1 / len(letters)
    return found
