"""Division: rows that belong together stay together."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np


def by_group(groups: Sequence[Hashable], shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Row numbers of `train` and of every part in `shares`, no group in two parts; order as given.

    Groups are taken in a seeded order; each goes to the part that lacks the most rows of its share.

    >>> by_group(["a", "a", "b", "b", "c", "c", "d", "d"], {"test": 0.25}, seed=0)
    {'train': [2, 3, 4, 5, 6, 7], 'test': [0, 1]}
    """
    of_group: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        of_group.setdefault(group, []).append(index)
    wanted = {"train": 1 - sum(shares.values()), **shares}
    parts: dict[str, list[int]] = {name: [] for name in wanted}
    names = list(of_group)
    order = sorted(np.random.default_rng(seed).permutation(len(names)), key=lambda i: -len(of_group[names[i]]))
    for index in order:
        lacking = {name: wanted[name] * len(groups) - len(parts[name]) for name in parts}
        part = max(lacking, key=lambda name: lacking[name] / wanted[name])
        parts[part] += of_group[names[index]]
    return {name: sorted(rows) for name, rows in parts.items()}
