"""Transcripts: texts of speech as they are compared, and how far answers are from them.

    WER   (substitutions + deletions + insertions) / words of the transcripts
    CER   the same over characters, spaces included

Both over all rows together, by jiwer, and above 1 where an answer is much too long. Two texts are compared without
what nobody hears: case and punctuation.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from deltatune.core.extras import extra

Normalization = Literal["simple", "none"]
REMEMBERED = 1 << 20
"""Texts, and pairs of them, that are remembered as they are compared: a bootstrap asks again with every draw."""
APOSTROPHES = "'\u2019\u02bc"
INSIDE_NUMBERS = ".,:"

Distance = tuple[int, int, int, int]
"""Substitutions, deletions, insertions, and the length of the transcript."""


@lru_cache(REMEMBERED)
def normalized(text: str, how: Normalization = "simple") -> str:
    """A text as it is compared; `none` changes white space only.

    Simple: compatibility forms unified (NFKC), lower case, punctuation and symbols as spaces. An apostrophe between
    letters stays, and so do point, comma and colon between digits; numbers are not spelled out.

    >>> normalized("“Don’t panic!” she said - at 3.5 km, No. 7.")
    "don't panic she said at 3.5 km no 7"
    """
    if how == "none":
        return " ".join(text.split())
    plain = unicodedata.normalize("NFKC", text).lower()
    return " ".join("".join(_kept(plain, place) for place in range(len(plain))).split())


def _kept(text: str, place: int) -> str:
    """A character, or what stands for it."""
    own, before, after = text[place], text[max(0, place - 1) : place], text[place + 1 : place + 2]
    if own in APOSTROPHES:
        return "'" if before.isalpha() and after.isalpha() else " "
    if unicodedata.category(own)[0] in "LMN":
        return own
    return own if own in INSIDE_NUMBERS and before.isdigit() and after.isdigit() else " "


def transcript_scores(answers: Sequence[str], texts: Sequence[str], how: Normalization) -> dict[str, float]:
    """WER with its three kinds of errors, CER, and the share of answers without any error."""
    pairs = [(normalized(text, how), normalized(answer, how)) for text, answer in zip(texts, answers, strict=True)]
    words = _sum([words_between(*pair) for pair in pairs])
    characters = _sum([characters_between(*pair) for pair in pairs])
    return {
        "wer": sum(words[:3]) / max(1, words[3]),
        "cer": sum(characters[:3]) / max(1, characters[3]),
        "exact_match": sum(text == answer for text, answer in pairs) / len(pairs),
        "substitutions": words[0] / max(1, words[3]),
        "deletions": words[1] / max(1, words[3]),
        "insertions": words[2] / max(1, words[3]),
    }


def _sum(distances: Sequence[Distance]) -> Distance:
    return tuple(map(sum, zip(*distances, strict=True)))  # type: ignore[return-value]


@lru_cache(REMEMBERED)
def words_between(text: str, answer: str) -> Distance:
    """Word errors of an answer, by jiwer."""
    if not text:  # jiwer wants something to compare with
        return 0, 0, len(answer.split()), 0
    found = extra("jiwer", "audio").process_words(text, answer)
    return found.substitutions, found.deletions, found.insertions, len(text.split())


@lru_cache(REMEMBERED)
def characters_between(text: str, answer: str) -> Distance:
    """Character errors of an answer, by jiwer."""
    if not text:
        return 0, 0, len(answer), 0
    found = extra("jiwer", "audio").process_characters(text, answer)
    return found.substitutions, found.deletions, found.insertions, len(text)
