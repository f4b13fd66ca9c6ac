"""Scores of spans: precision, recall and F1 of entities that must agree in first word, last word and type.

Checked against seqeval's default mode; the macro average is over the types that were wanted or given, as there.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from deltatune.core.tags import Span


def span_scores(wanted: Sequence[Collection[Span]], given: Sequence[Collection[Span]]) -> dict[str, Any]:
    """Micro precision, recall and F1, macro F1, and the table `per_type`; a ratio without cases is 0.

    >>> span_scores([[Span(0, 1, "PER"), Span(2, 3, "LOC")]], [[Span(0, 1, "PER")]])["micro_f1"]
    0.6666666666666666
    """
    there, answered, right = Counter[str](), Counter[str](), Counter[str]()
    for truth, answer in zip(wanted, given, strict=True):
        there.update(span.type for span in truth)
        answered.update(span.type for span in answer)
        right.update(span.type for span in set(truth) & set(answer))
    per_type: list[dict[str, Any]] = [
        {"label": kind, **_ratios(right[kind], answered[kind], there[kind]), "spans": there[kind]}
        for kind in sorted(there.keys() | answered.keys())
    ]
    micro = _ratios(right.total(), answered.total(), there.total())
    return {
        **{f"micro_{name}": value for name, value in micro.items()},
        "macro_f1": sum(row["f1"] for row in per_type) / max(1, len(per_type)),
        "per_type": per_type,
    }


def counted(truth: Collection[Span], answer: Collection[Span]) -> tuple[int, int, int]:
    """Spans of a row that are right, that were answered, and that are there; sums of them make `micro_f1`."""
    return len(set(truth) & set(answer)), len(answer), len(truth)


def micro_f1(right: int, answered: int, there: int) -> float:
    """F1 of the counts of all rows together.

    >>> micro_f1(*counted([Span(0, 1, "PER"), Span(2, 3, "LOC")], [Span(0, 1, "PER")]))
    0.6666666666666666
    """
    return _ratios(right, answered, there)["f1"]


def _ratios(right: int, answered: int, there: int) -> dict[str, float]:
    precision, recall = right / max(1, answered), right / max(1, there)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if right else 0.0,
    }
