"""Composition: which adapters act, and how they are combined.

A composition is a name, None (the base), or a tree of `Stack`, `Average` and `Rows` over these. It is plain data;
every site evaluates it with the same function.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from deltatune.core.errors import AdapterError


@dataclass(frozen=True, slots=True)
class Stack:
    """One adapter on top of the other: each sees what is below it as its base."""

    parts: tuple["Node", ...]

    def __init__(self, *parts: "Node") -> None:
        object.__setattr__(self, "parts", parts)


@dataclass(frozen=True, slots=True)
class Average:
    """A weighted sum of the outputs of several adapters on the same base; weights are used as given."""

    weights: tuple[tuple["Node", float], ...]

    def __init__(self, weights: "Mapping[str, float] | Iterable[tuple[Node, float]]") -> None:
        pairs = weights.items() if isinstance(weights, Mapping) else weights
        object.__setattr__(self, "weights", tuple((node, float(weight)) for node, weight in pairs))


@dataclass(frozen=True, slots=True)
class Rows:
    """An adapter for each row of the batch, in training too; None is the base.

    >>> Rows(["a", None, "a"]).groups()
    [('a', [0, 2]), (None, [1])]
    """

    rows: tuple["Node", ...]

    def __init__(self, rows: Sequence["Node"]) -> None:
        object.__setattr__(self, "rows", tuple(rows))

    def groups(self) -> list[tuple["Node", list[int]]]:
        """Distinct adapters with the rows that use them, in order of first use."""
        found: dict[Node, list[int]] = {}
        for index, node in enumerate(self.rows):
            found.setdefault(node, []).append(index)
        return list(found.items())


Node = str | None | Stack | Average | Rows


def names(node: Node) -> Iterator[str]:
    """The adapters a composition uses, each as often as it stands there."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Stack):
        for part in node.parts:
            yield from names(part)
    elif isinstance(node, Average):
        for part, _ in node.weights:
            yield from names(part)
    elif isinstance(node, Rows):
        for part, _ in node.groups():
            yield from names(part)


def without(node: Node, name: str) -> Node:
    """The composition with one adapter taken out.

    >>> without(Stack("a", "b"), "a")
    Stack(parts=('b',))
    """
    if isinstance(node, str):
        return None if node == name else node
    if isinstance(node, Stack):
        parts = [part for part in (without(part, name) for part in node.parts) if part is not None]
        return Stack(*parts) if parts else None
    if isinstance(node, Average):
        return Average([(without(part, name), weight) for part, weight in node.weights])
    if isinstance(node, Rows):
        return Rows([without(part, name) for part in node.rows])
    return None


def replaced(node: Node, by: Callable[[str], Node]) -> Node:
    """The composition with something else in the place of every name.

    >>> replaced(Average({"a": 0.5}), lambda name: Stack(name, "b"))
    Average(weights=((Stack(parts=('a', 'b')), 0.5),))
    """
    if isinstance(node, str):
        return by(node)
    if isinstance(node, Stack):
        return Stack(*(replaced(part, by) for part in node.parts))
    if isinstance(node, Average):
        return Average([(replaced(part, by), weight) for part, weight in node.weights])
    if isinstance(node, Rows):
        return Rows([replaced(part, by) for part in node.rows])
    return None


def expand_rows(node: Rows, size: int, what: str) -> list[tuple[Node, list[int]]]:
    """Groups of a batch dimension of `size`: every row may stand for several consecutive entries.

    Beams, windows and flattened tokens repeat each row in place. Raises `AdapterError` when the size does not fit.
    """
    times, rest = divmod(size, len(node.rows))
    if rest or not times:
        raise AdapterError(
            f"Rows names {len(node.rows)} rows but {what} sees a batch of {size}",
            hint="give one entry per row of the batch; some layers of this model may not see the batch at all",
        )
    if times == 1:
        return node.groups()
    return [(part, [i * times + j for i in rows for j in range(times)]) for part, rows in node.groups()]


T = TypeVar("T")


def evaluate(node: Node, here: Mapping[str, Any], cover: Callable[[Any, T], T], base: T, mix: Callable[..., T]) -> T:
    """The base covered by the adapters of a composition; `Rows` is resolved by the caller, per group of rows.

    `here` are the adapters at this site, `cover(adapter, base)` puts one on top, `mix([(base, weight)])` averages.
    """
    if isinstance(node, str):
        return cover(here[node], base) if node in here else base
    if isinstance(node, Stack):
        for part in node.parts:
            base = evaluate(part, here, cover, base, mix)
        return base
    if isinstance(node, Average):
        if not any(name in here for name in names(node)):
            return base
        return mix([(evaluate(part, here, cover, base, mix), weight) for part, weight in node.weights])
    if isinstance(node, Rows):
        raise AdapterError("Rows inside Stack or Average is not possible", hint="put Rows outside: Rows([Stack(...)])")
    return base


def weighted(pairs: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Sum of weight * tensor, in the tensors' dtype."""
    total = pairs[0][0] * pairs[0][1]
    for tensor, weight in pairs[1:]:
        total = total + tensor * weight
    return total


def by_rows(groups: Sequence[tuple[Node, list[int]]], part: Callable[[Node, list[int]], Tensor], dim: int) -> Tensor:
    """The groups' results put back into the order of the batch: `part(node, rows)` gives one group's."""
    joined = torch.cat([part(node, rows) for node, rows in groups], dim)
    order = [row for _, rows in groups for row in rows]
    if _ascending(order):
        return joined
    return joined.index_select(dim, torch.tensor(order, device=joined.device).argsort())


def chosen(x: Tensor, rows: Sequence[int], dim: int) -> Tensor:
    """Some rows of a tensor; a view where they are neighbours."""
    if _ascending(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return x.narrow(dim, rows[0], len(rows))
    return x.index_select(dim, torch.tensor(rows, device=x.device))


def equal_shares(groups: Sequence[tuple[Node, list[int]]]) -> bool:
    """Whether every adapter has as many rows as the others, side by side."""
    sizes = {len(rows) for _, rows in groups}
    return len(sizes) == 1 and _ascending([row for _, rows in groups for row in rows])


def _ascending(rows: Sequence[int]) -> bool:
    return all(before < after for before, after in pairwise(rows))
