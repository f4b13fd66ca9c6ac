"""Labels: whether held-out labels can be told from the frozen base's features at all, and which look wrong."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from deltatune.core.task import GROUP, Example, Row
from deltatune.rehearsal.clock import affordable
from deltatune.rehearsal.features import features_of, has_features
from deltatune.rehearsal.line import Line, failed, left_out, passed, warned
from deltatune.rehearsal.stage import Stage
from deltatune.rehearsal.suspected import FOLDS, Judged, folds_of, judged_by_others

MOST, TRIED = 3_000, 32
FEWEST = 60
"""Rows from which on held-out labels are judged."""
ENOUGH = 200
"""Rows from which on labels at chance are a fault, not bad luck."""
TELLING = 0.9
"""AUC of held-out labels, from which on single labels are doubted: see docs/check.md."""
MANY = 0.05
"""Share of suspected labels, from which on it is a warning."""
LISTED = 50
SHOWN_CHARACTERS = 80
Pair = tuple[Row, Example, str]
"""A row, how the model reads it, and its class."""


def labels_lines(stage: Stage) -> Iterator[Line]:
    """Cross-validated logistic regression on the mean of the last hidden states of training rows."""
    pairs = _pairs(stage)
    if not pairs:
        yield left_out("signal", "answers are no classes of rows")
        return
    if not has_features(stage):
        yield left_out("signal", "the model has no blocks whose output could be read")
        return
    pairs = frequent(pairs, _affordable(stage, [example for _, example, _ in pairs]))
    names = sorted({label for _, _, label in pairs})
    if len(pairs) < FEWEST or len(names) < 2:
        yield left_out("signal", f"{len(pairs)} rows are too few to judge labels by each other")
        return
    rows = [row for row, _, _ in pairs]
    labels = np.array([names.index(label) for _, _, label in pairs])
    folds = folds_of(labels, [row[GROUP] for row in rows] if all(GROUP in row for row in rows) else None)
    if folds is None:
        yield left_out("signal", "the groups (data.group_column) are too few, or too much alike, to judge each other")
        return
    judged = judged_by_others(features_of(stage, [example for _, example, _ in pairs]), labels, folds)
    signal = signal_line(judged)
    yield signal
    if signal.status == "pass":
        yield _suspects_line(stage, judged, rows, names)


def signal_line(judged: Judged) -> Line:
    """How well held-out labels are ranked, against the same for permuted labels."""
    count, (_, most) = len(judged.labels), Counter(judged.labels.tolist()).most_common(1)[0]
    said = f"{count:,} rows; right on {judged.accuracy:.1%}, the largest class has {most / count:.1%}"
    seen = f"features of the frozen base tell held-out labels with an AUC of {judged.auc:.2f} ({said})"
    details = {"auc": judged.auc, "guessing": judged.guessing, "accuracy": judged.accuracy, "rows": count}
    if judged.auc > judged.guessing:
        return passed("signal", seen, **details)
    fix = (
        "look whether labels and inputs belong together: a shuffled or wrong label column looks like this; or take a "
        "base for this kind of data"
    )
    return (failed if count >= ENOUGH else warned)("signal", f"{seen}: no better than guessing", fix, **details)


def _suspects_line(stage: Stage, judged: Judged, rows: Sequence[Row], names: Sequence[str]) -> Line:
    found = judged.suspected()
    share = len(found) / len(rows)
    listed = [
        {
            "place": stage.place(rows[row]),
            "label": names[judged.labels[row]],
            "likely": names[likely],
            "chance": round(float(judged.chances_NC[row, likely]), 3),
            "input": _shown(stage, rows[row]),
        }
        for row, likely in found[:LISTED]
    ]
    seen = f"{len(found):,} of {len(rows):,} labels look wrong to the other rows"
    if listed:
        first = listed[0]
        seen += f", first {first['place']}: {first['label']!r}, likely {first['likely']!r}"
    if judged.auc < TELLING:
        said = (
            f"{seen}; the features are too weak to trust that (right on {judged.accuracy:.0%}): read the first few only"
        )
        return passed("label errors", said, suspected=listed, share=share)
    fix = "read these rows (--json lists them) and mend the labels that are wrong"
    return (warned if share > MANY else passed)(
        "label errors", seen, *([fix] if share > MANY else []), suspected=listed, share=share
    )


def _pairs(stage: Stage) -> list[Pair]:
    """Training rows with their examples and classes."""
    rows, examples = stage.ground.splits.train, stage.ground.examples["train"]
    found = [(row, example, stage.task.class_of(row)) for row, example in zip(rows, examples, strict=True)]
    return [(row, example, label) for row, example, label in found if label is not None]


def frequent(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """The first so many pairs, of the classes that have a row for every fold among them."""
    counts = Counter(label for _, _, label in pairs[:most])
    return [pair for pair in pairs if counts[pair[2]] >= FOLDS][:most]


def _affordable(stage: Stage, examples: Sequence[Example]) -> int:
    """How many rows the base can read in a part of the time."""
    features_of(stage, examples[:2])
    began = time.perf_counter()
    features_of(stage, examples[:TRIED])
    each = (time.perf_counter() - began) / min(TRIED, len(examples))
    return affordable(stage.clock.share(0.2), each, FEWEST, MOST)


def _shown(stage: Stage, row: Row) -> str:
    """The beginning of an input."""
    asked = stage.task.asked(row)
    text = " | ".join(str(asked[word]) for word in stage.task.key if asked.get(word) is not None)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."
