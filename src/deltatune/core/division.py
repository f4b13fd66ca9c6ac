"""Division: rows that belong together stay together."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np


def by_group(groups: Sequence[Hashable], shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Row numbers of `train` and of every part in `shares`, no group in two parts; order as given.

    Groups are taken in a seeded order; each goes to the part that lacks the most rows of its share.

    >>> by_group(["a", "a", "b", "b", "c", "c", "d", "d"], {"test": 0.25}, seed=0)
    {'train': [2, 3, 4, 5, 6, 7], 'test': [0, 1]}
    """
    wanted = {"train": 1 - sum(shares.values()), **shares}
    parts: dict[str, list[int]] = {name: [] for name in wanted}
    for rows in _largest_first(groups, seed):
        lacking = {name: wanted[name] * len(groups) - len(parts[name]) for name in parts}
        part = max(lacking, key=lambda name: lacking[name] / wanted[name])
        parts[part] += rows
    return {name: sorted(rows) for name, rows in parts.items()}


def by_size(groups: Sequence[Hashable], shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """The same with the largest groups in `train` and the rarest in the last part: the test asks for what is new.

    Groups are taken from the largest on, in a seeded order where sizes are equal; each goes to the first part that has
    room for it, and to `train` where none has (Wu et al. 2018, MoleculeNet, whose ties follow the file).

    >>> by_size(["a", "b", "b", "c", "c", "c", "c", "c"], {"validation": 0.25, "test": 0.125}, seed=0)
    {'train': [3, 4, 5, 6, 7], 'validation': [1, 2], 'test': [0]}
    """
    sizes = {name: round(share * len(groups)) for name, share in shares.items()}
    sizes = {"train": len(groups) - sum(sizes.values()), **sizes}
    parts: dict[str, list[int]] = {name: [] for name in sizes}
    for rows in _largest_first(groups, seed):
        part = next((name for name in parts if len(parts[name]) + len(rows) <= sizes[name]), "train")
        parts[part] += rows
    return {name: sorted(rows) for name, rows in parts.items()}


def _largest_first(groups: Sequence[Hashable], seed: int) -> list[list[int]]:
    """The row numbers of every group, groups of equal size in a seeded order."""
    of_group: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        of_group.setdefault(group, []).append(index)
    found = list(of_group.values())
    return sorted((found[i] for i in np.random.default_rng(seed).permutation(len(found))), key=lambda rows: -len(rows))
