"""Molecules as SMILES: what rdkit says of them; it comes with `deltatune[chem]` and is imported by the first molecule.

    problem     why a text is no molecule                canonical   one text per molecule, however it was written
    group       Bemis-Murcko scaffold                    sketch      circular substructures (Morgan, radius 2)
    vectors     the same folded to 2,048 bits            rewritten   another text of the same molecule

Papers: Weininger et al. 1989; Bemis and Murcko 1996; Rogers and Hahn 2010 (Morgan); Bjerrum 2017, arXiv:1703.07076.
"""

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from deltatune.core.extras import extra

LONGEST = 4_000
"""Characters: rdkit takes time with the square of the atoms, and the longest drugs are a quarter of this."""
RADIUS = 2
BITS = 2_048
KEPT = 1 << 17
"""Molecules whose canonical form is remembered."""


def problem(text: str) -> str | None:
    """Why a text is no molecule, in rdkit's words, or None.

    >>> problem("CCO"), problem("[Na+].[Cl-]"), problem("C1CC")
    (None, None, 'smiles is not valid (unclosed ring)')
    """
    text = text.strip()
    odd = re.search(r"[^\x21-\x7e]", text)
    if not text:
        return "smiles is empty"
    if odd is not None:
        return f"smiles holds a character that is none of SMILES ({odd[0]!r})"
    if len(text) > LONGEST:
        return f"smiles is too long ({len(text)} characters, {LONGEST} at most)"
    return None if _read(text) else f"smiles is not valid ({_reason(text)})"


def canonical(text: str) -> str:
    """The one SMILES of a molecule, with its stereochemistry; the text has no `problem`.

    >>> canonical("OCC"), canonical("C(C)O")
    ('CCO', 'CCO')
    """
    found = _read(text.strip())
    assert found is not None, f"{text!r} was not checked"
    return found


def group(text: str) -> str:
    """SMILES of the scaffold: rings and what links them, without stereochemistry; empty without rings.

    >>> group("CC(=O)Oc1ccccc1C(=O)O"), group("CCO")
    ('c1ccccc1', '')
    """
    molecule = _molecule(text)
    _chem().RemoveStereochemistry(molecule)
    return str(_chem().MolToSmiles(_scaffolds().GetScaffoldForMol(molecule)))


def sketch(text: str) -> Collection[int]:
    """Circular substructures; what two molecules share of them is their Tanimoto similarity."""
    return frozenset(_fingerprints().sparse.GetSparseFingerprint(_molecule(text)).GetOnBits())


def vectors(texts: Sequence[str]) -> Any:
    """Morgan fingerprints: float32 [molecules, 2048] of 0 and 1."""
    found = np.zeros((len(texts), BITS), dtype=np.float32)
    for row, text in enumerate(texts):
        found[row, list(_fingerprints().folded.GetFingerprint(_molecule(text)).GetOnBits())] = 1
    return found


def rewritten(text: str, seed: int) -> str:
    """A SMILES of the same molecule that begins at an atom, and takes branches in an order, drawn by the seed."""
    return str(_chem().MolToRandomSmilesVect(_molecule(text), 1, randomSeed=seed)[0])


def picture(text: str, side: int = 300) -> Any:
    """A Pillow image of a molecule's formula."""
    return extra("rdkit.Chem.Draw", "chem").MolToImage(_molecule(text), size=(side, side))


# -- rdkit


@cache
def _chem() -> Any:
    return extra("rdkit.Chem", "chem")


@cache
def _scaffolds() -> Any:
    return extra("rdkit.Chem.Scaffolds.MurckoScaffold", "chem")


@cache
def _fingerprints() -> SimpleNamespace:
    made = extra("rdkit.Chem.rdFingerprintGenerator", "chem").GetMorganGenerator
    return SimpleNamespace(sparse=made(radius=RADIUS), folded=made(radius=RADIUS, fpSize=BITS))


@lru_cache(KEPT)
def _read(text: str) -> str | None:
    """The canonical form, or None."""
    with _silent():
        molecule = _chem().MolFromSmiles(text)
        return None if molecule is None else str(_chem().MolToSmiles(molecule))


def _molecule(text: str) -> Any:
    with _silent():
        return _chem().MolFromSmiles(canonical(text))


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing of rdkit's log on the screen."""
    with extra("rdkit.rdBase", "chem").BlockLogs():
        yield


def _reason(text: str) -> str:
    """What rdkit writes about a SMILES: the first line without time and input, and the place where it says one."""
    with _heard() as lines:
        _chem().MolFromSmiles(text)
    first = lines[0].partition("] ")[2].splitlines()[0] if lines else "rdkit gives no reason"
    reason = re.split(r" (?:for input|while parsing):", first.removeprefix("SMILES Parse Error: "))[0]
    place = re.search(r"around position (\d+)", "\n".join(lines))
    return " ".join(reason.split()) + (f" around character {place[1]}" if place else "")


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What rdkit writes to its log, instead of the screen."""
    base = extra("rdkit.rdBase", "chem")
    lines: list[str] = []
    logger = logging.getLogger("rdkit")
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Lines(lines)], False
    base.LogToPythonLogger()
    try:
        yield lines
    finally:
        base.LogToCppStreams()
        logger.handlers, logger.propagate = before


class _Lines(logging.Handler):
    """Keeps messages in a list."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """One message more."""
        self.lines.append(record.getMessage())
