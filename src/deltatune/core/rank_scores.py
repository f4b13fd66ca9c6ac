"""Rank scores: how far in front the wanted item stands among all items, and simple models that rank them.

    hr@k    share of ranks up to k            ndcg@k   mean of 1 / log2(rank + 1) over ranks up to k, else 0
    mrr     mean of 1 / rank

Every item that may be recommended is ranked, none is sampled: sampled ranks order models differently (Krichene and
Rendle 2020, doi:10.1145/3394486.3403226). Ties count against the wanted item. An item that a model cannot recommend
has no rank and counts 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from deltatune.core.task import Row

NEIGHBOURS = 20
"""Items that an item recommends."""

Scores = np.ndarray[Any, Any]


def rank_scores(ranks: Sequence[int | None], k: int) -> dict[str, float]:
    """The metrics of ranks from 1; None: cannot be recommended.

    >>> rank_scores([1, 3, None, 20], 10)
    {'hr@10': 0.5, 'ndcg@10': 0.375, 'mrr': 0.3458333333333333}
    """
    found = np.array([np.inf if rank is None else rank for rank in ranks], dtype=float)
    gains = np.where(found <= k, 1 / np.log2(np.minimum(found, k) + 1), 0.0)
    return {f"hr@{k}": float((found <= k).mean()), f"ndcg@{k}": float(gains.mean()), "mrr": float((1 / found).mean())}


@dataclass(frozen=True)
class Ranker:
    """A simple model that scores every item of the training rows."""

    columns: Mapping[str, int]
    """Item -> its place in the scores."""
    scores: Callable[[Sequence[int]], Scores]
    """From the places of the items of a history, in their order."""

    def rank(self, given: Sequence[str], wanted: str, again: bool) -> int | None:
        """The rank of an item behind a history, among those that are not in it unless `again`."""
        if wanted not in self.columns:
            return None
        had = [self.columns[item] for item in given if item in self.columns]
        found = self.scores(had)
        others = np.ones(len(found), dtype=bool)
        others[had] = again
        return int((found[others] >= found[self.columns[wanted]]).sum())


def popularity(train: Sequence[Row]) -> Ranker:
    """Items by the number of users that had them."""
    had, columns = _matrix(train)
    users = np.asarray(had.sum(0)).ravel()
    return Ranker(columns, lambda _: users)


def item_knn(train: Sequence[Row], recent: int | None = None) -> Ranker:
    """Items by their similarity to those of the history, or to its `recent` last ones.

    cos(i, j) = |users of i and j| / sqrt(|users of i| |users of j|), for the 20 nearest i of every j (Deshpande and
    Karypis 2004, doi:10.1145/963770.963776).
    """
    had, columns = _matrix(train)
    scale = sparse.diags_array(1 / np.sqrt(np.asarray(had.sum(0)).ravel()))
    cosine = sparse.csr_array(scale @ (had.T @ had) @ scale)
    cosine.setdiag(0)
    for start, end in zip(cosine.indptr, cosine.indptr[1:], strict=False):
        nearest = cosine.data[start:end]  # a view
        nearest[np.argsort(-nearest, kind="stable")[NEIGHBOURS:]] = 0
    cosine.eliminate_zeros()

    def scores(items: Sequence[int]) -> Scores:
        chosen = list(items if recent is None else items[-recent:])
        return np.asarray(cosine[chosen].sum(0)).ravel() if chosen else np.zeros(len(columns))

    return Ranker(columns, scores)


def _matrix(train: Sequence[Row]) -> tuple[Any, dict[str, int]]:
    """Which user had which item [users, items] as ones, and the columns of the items."""
    columns = {item: column for column, item in enumerate(sorted({item for row in train for item in row["items"]}))}
    pairs = [(user, columns[item]) for user, row in enumerate(train) for item in set(row["items"])]
    users, items = np.array(pairs).T
    return sparse.csr_array((np.ones(len(pairs)), (users, items)), shape=(len(train), len(columns))), columns
