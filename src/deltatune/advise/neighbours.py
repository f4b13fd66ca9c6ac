"""Neighbours: what the labels of the most similar training rows already answer, without any model.

Rows are compared by the features of their task's sketch (words, substructures, a hash of an image), weighted by how
rare they are:  s(a, b) = sum idf^2 over common features / (|a| |b|); the three nearest vote.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from deltatune.core.task import Row, Task

MOST_TRAINING, MOST_HELD_OUT = 2000, 200
VOTES = 3


def agreement(task: Task, train: Sequence[Row], held_out: Sequence[Row]) -> tuple[float, float, int] | None:
    """Share of held-out rows that the neighbours answer, that of the commonest answer, and how many rows were asked.

    None where rows have no single label, or where the task sketches nothing.
    """
    label = task.label
    if label is None or task.predicts != "classes":
        return None
    train, held_out = train[:MOST_TRAINING], held_out[:MOST_HELD_OUT]
    answers = [row.get(label) for row in train]
    if not held_out or not all(isinstance(answer, Hashable) for answer in answers):
        return None
    known, asked = _vectors([list(task.sketch(row)) for row in train], [list(task.sketch(row)) for row in held_out])
    if known.nnz == 0:
        return None
    near = (asked @ known.T).toarray()
    order = np.argsort(-near, axis=1, kind="stable")[:, :VOTES]
    common = Counter(answers).most_common(1)[0][0]
    right = usual = 0
    for row, nearest, scores in zip(held_out, order, near, strict=True):
        votes: defaultdict[Any, float] = defaultdict(float)
        for index in nearest:
            votes[answers[index]] += float(scores[index])
        guess = max(votes, key=votes.__getitem__) if max(votes.values()) > 0 else common
        right += guess == row.get(label)
        usual += common == row.get(label)
    return right / len(held_out), usual / len(held_out), len(held_out)


def _vectors(train: list[list[Hashable]], asked: list[list[Hashable]]) -> tuple[Any, Any]:
    """Unit rows over the features of the training rows."""
    counts = Counter(feature for row in train for feature in set(row))
    place = {feature: index for index, feature in enumerate(counts)}
    rarity = np.array([math.log(len(train) / count) for count in counts.values()])

    def matrix(rows: list[list[Hashable]]) -> Any:
        columns = [sorted({place[feature] for feature in row if feature in place}) for row in rows]
        starts = np.cumsum([0, *map(len, columns)])
        flat = np.array([column for row in columns for column in row], dtype=int)
        found = sparse.csr_matrix((rarity[flat], flat, starts), shape=(len(rows), len(place)))
        norms = np.sqrt(np.asarray(found.multiply(found).sum(1))).ravel()
        return sparse.diags(1 / np.where(norms > 0, norms, 1)) @ found

    return matrix(train), matrix(asked)
