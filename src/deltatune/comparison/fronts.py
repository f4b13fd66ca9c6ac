"""Fronts: what no other option beats in quality and cost at once (Pareto)."""

from collections.abc import Mapping


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names that nothing dominates, the cheapest first; a point is (cost, less is better; quality, more is better).

    >>> front({"a": (1, 0.7), "b": (2, 0.9), "c": (3, 0.8), "d": (2, 0.9)})
    ['a', 'b', 'd']
    """
    kept = [
        name
        for name, (cost, quality) in points.items()
        if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points.values())
    ]
    return sorted(kept, key=lambda name: points[name])
