"""Words: where they are in a text, and which tokens of a tokenizer hold them.

The words do not depend on the model: runs of letters, digits and marks; every other visible character is one by itself,
as is every ideograph, for the scripts that have no spaces.
"""

import unicodedata
from collections.abc import Sequence

Range = tuple[int, int]
"""Characters from the first to the last, the last one excluded."""
NOWHERE = -1


def words_of(text: str) -> list[Range]:
    """The words of a text.

    >>> [f"{'Ann-Lee, 北京'[a:b]}" for a, b in words_of("Ann-Lee, 北京")]
    ['Ann', '-', 'Lee', ',', '北', '京']
    """
    found: list[Range] = []
    begun = None
    for index, character in enumerate(f"{text} "):
        inside = _inside(character)
        if inside and begun is None:
            begun = index
        if not inside:
            if begun is not None:
                found.append((begun, index))
                begun = None
            if not character.isspace():
                found.append((index, index + 1))
    return found


def joined(words: Sequence[str]) -> tuple[str, list[Range]]:
    """Words as one text with a space between, and where they are in it.

    >>> joined(["to", "be"])
    ('to be', [(0, 2), (3, 5)])
    """
    ranges: list[Range] = []
    start = 0
    for word in words:
        ranges.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), ranges


def owners(text: str, offsets: Sequence[Range], words: Sequence[Range]) -> list[int]:
    """For every token the first word it holds a part of, for a space the word after it, or `NOWHERE` (special tokens).

    `offsets` are those of a fast tokenizer, which include a space before a word or do not.
    """
    found: list[int] = []
    word = 0
    for start, end in offsets:
        if start >= end:
            found.append(NOWHERE)
            continue
        while start < end and text[start].isspace():
            start += 1
        while word < len(words) and words[word][1] <= start:
            word += 1
        holds = word < len(words) and (start == end or words[word][0] < end)
        found.append(word if holds else NOWHERE)
    return found


def first_tokens(owned: Sequence[int], offsets: Sequence[Range], words: Sequence[Range]) -> list[int]:
    """For every word the first token that holds a part of it, or `NOWHERE`; two words may share a token.

    >>> first_tokens([0, 0, 1], [(0, 2), (2, 4), (4, 6)], [(0, 4), (4, 5), (5, 6), (7, 8)])
    [0, 2, 2, -1]
    """
    found = [NOWHERE] * len(words)
    for token, (word, (_, end)) in enumerate(zip(owned, offsets, strict=True)):
        while NOWHERE < word < len(words) and words[word][0] < end:
            if found[word] == NOWHERE:
                found[word] = token
            word += 1
    return found


def _inside(character: str) -> bool:
    """Part of a longer word."""
    if "\u2e80" <= character <= "\u9fff" or "\uf900" <= character <= "\ufaff" or character >= "\U00020000":
        return False  # ideographs and kana
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
