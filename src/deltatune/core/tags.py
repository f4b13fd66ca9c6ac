"""Tags: entities of a sentence written word by word, under any of the usual schemes, and back.

    io       I-PER I-PER O          neighbours of one type run together; plain PER PER O is read too
    iob1     I-PER B-PER O          B- only between neighbours of one type (CoNLL-2003 as published)
    bio      B-PER I-PER O          B- at every start
    bioes    B-PER E-PER S-LOC      ends and single words are marked too; BILOU and BMES are read as this

A sequence is valid under a scheme when it is exactly what the scheme writes for the spans it is read as.
Reading is that of conlleval and of seqeval's default mode: a tag that cannot continue a span starts one.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

Scheme = Literal["io", "iob1", "bio", "bioes"]
OUTSIDE = "O"
PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I"}
"""Marks in files -> ours."""


class Span(NamedTuple):
    """An entity: words `first` to `last`, the last one excluded."""

    first: int
    last: int
    type: str


def parse(tag: str) -> tuple[str, str]:
    """Mark and type of a tag; a tag without a mark is the type of a word inside an entity.

    >>> parse("B-PER"), parse("U-ORG"), parse("O"), parse("LOC"), parse("I-work-of-art")
    (('B', 'PER'), ('S', 'ORG'), ('O', ''), ('I', 'LOC'), ('I', 'work-of-art'))
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    mark, dash, kind = tag.partition("-")
    return (PREFIXES[mark], kind) if dash and kind and mark in PREFIXES else ("I", tag)


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities of tags under any scheme, invalid ones as conlleval reads them.

    >>> spans_of(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [Span(first=0, last=2, type='PER'), Span(first=3, last=4, type='LOC'), Span(first=4, last=5, type='LOC')]
    """
    found: list[Span] = []
    first = 0
    parsed = [(OUTSIDE, ""), *map(parse, tags), (OUTSIDE, "")]
    for index, (before, here) in enumerate(pairwise(parsed)):
        joined = before[1] == here[1] and before[0] not in "ESO" and here[0] not in "BSO"
        if joined:
            continue
        if before[0] != OUTSIDE:
            found.append(Span(first, index, before[1]))
        first = index
    return found


def tags_of(spans: Iterable[Span], count: int, scheme: Scheme) -> list[str]:
    """The tags of `count` words; spans must not overlap.

    >>> tags_of([Span(0, 2, "PER"), Span(2, 3, "PER")], 4, "iob1")
    ['I-PER', 'I-PER', 'B-PER', 'O']
    """
    tags = [OUTSIDE] * count
    end, kind = 0, ""
    for span in sorted(spans):
        touches = span.first == end and span.type == kind
        start = scheme in ("bio", "bioes") or (scheme == "iob1" and touches)
        marks = ["B" if start else "I", *"I" * (span.last - span.first - 1)]
        if scheme == "bioes":
            marks[-1] = "E" if len(marks) > 1 else "S"
        tags[span.first : span.last] = [f"{mark}-{span.type}" for mark in marks]
        end, kind = span.last, span.type
    return tags


def wrong(tags: Sequence[str], scheme: Scheme) -> str | None:
    """The first tag that is not possible where it stands, or None."""
    expected = tags_of(spans_of(tags), len(tags), scheme)
    for number, (tag, better) in enumerate(zip(tags, expected, strict=True), 1):
        if parse(tag) != parse(better):
            before = f"after {tags[number - 2]}" if number > 1 else "at the start"
            return f"tag is not possible in {scheme} (word {number}: {tag} {before}; {better} would be)"
    return None


def scheme_of(rows: Sequence[Sequence[str]]) -> Scheme:
    """The scheme that rows of tags are written in: by their marks; bio or iob1 by what fits more rows.

    >>> scheme_of([["I-PER", "O"]]), scheme_of([["B-PER", "I-PER"]]), scheme_of([["S-PER", "O"]])
    ('io', 'bio', 'bioes')
    """
    marks = {parse(tag)[0] for tags in rows for tag in tags}
    if marks & {"E", "S"}:
        return "bioes"
    if "B" not in marks:
        return "io"
    invalid = {scheme: sum(wrong(tags, scheme) is not None for tags in rows) for scheme in ("bio", "iob1")}
    return "iob1" if invalid["iob1"] < invalid["bio"] else "bio"


def all_tags(types: Iterable[str], scheme: Scheme) -> tuple[str, ...]:
    """Every tag that can occur, outside first.

    >>> all_tags(["PER"], "bio"), all_tags(["PER"], "io")
    (('O', 'B-PER', 'I-PER'), ('O', 'I-PER'))
    """
    marks = {"io": "I", "iob1": "BI", "bio": "BI", "bioes": "BIES"}[scheme]
    return (OUTSIDE, *(f"{mark}-{kind}" for kind in types for mark in marks))
