"""Shapes made by script: points on bodies, tubes and ribbons, and on several of them that stand together.

Nothing of them is anyone's data; what they teach is how points lie on surfaces and along strokes.
"""

from collections.abc import Callable

import numpy as np

Chance = np.random.Generator
Points = np.ndarray
MOST_PARTS = 3


def shape(chance: Chance, count: int) -> Points:
    """Points of one shape of up to three parts, turned at random [count, 3] in float32."""
    parts = int(chance.integers(1, MOST_PARTS + 1))
    sizes = chance.multinomial(count, chance.dirichlet(np.full(parts, 4.0)))
    made = [_placed(chance, KINDS[chance.integers(len(KINDS))](chance, size), parts > 1) for size in sizes if size]
    points = np.concatenate(made) @ _turn(chance).T
    noise = chance.uniform(0, 0.015) * chance.normal(size=points.shape)
    return (points + noise).astype(np.float32)


def _placed(chance: Chance, points: Points, moved: bool) -> Points:
    """A part, stretched, turned and moved."""
    stretched = points * chance.uniform(0.4, 1.0, 3)
    return stretched @ _turn(chance).T + (chance.uniform(-0.8, 0.8, 3) if moved else 0)


def _turn(chance: Chance) -> np.ndarray:
    """A random rotation (or its mirror image)."""
    matrix, _ = np.linalg.qr(chance.normal(size=(3, 3)))
    return matrix


def _ellipsoid(chance: Chance, count: int) -> Points:
    points = chance.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _box(chance: Chance, count: int) -> Points:
    points = chance.uniform(-1, 1, (count, 3))
    points[np.arange(count), chance.integers(3, size=count)] = chance.choice([-1.0, 1.0], count)
    return points


def _cylinder(chance: Chance, count: int) -> Points:
    angle, height = chance.uniform(0, 2 * np.pi, count), chance.uniform(-1, 1, count)
    top = chance.uniform(0, 1) if chance.random() < 0.5 else 1.0  # a cone, cut off or not
    radius = 1 - (1 - top) * (height + 1) / 2
    lid = chance.random(count) < 0.25
    height[lid] = np.sign(height[lid])
    radius[lid] = np.sqrt(chance.random(lid.sum())) * np.where(height[lid] > 0, top, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1)


def _torus(chance: Chance, count: int) -> Points:
    around, inside = chance.uniform(0, 2 * np.pi, (2, count))
    thick = chance.uniform(0.1, 0.5)
    radius = 1 - thick + thick * np.cos(inside)
    return np.stack([radius * np.cos(around), radius * np.sin(around), thick * np.sin(inside)], 1)


def _tube(chance: Chance, count: int) -> Points:
    """Points around a smooth curve in space."""
    middle = _curve(chance, chance.uniform(0, 1, count), 3)
    around = chance.normal(size=(count, 3))
    return middle + chance.uniform(0.03, 0.2) * around / np.linalg.norm(around, axis=1, keepdims=True)


def _ribbon(chance: Chance, count: int) -> Points:
    """Points along a pen stroke on a sheet, which may be bent."""
    flat = _curve(chance, chance.uniform(0, 1, count), 2)
    flat += chance.uniform(0.03, 0.2) * chance.uniform(-1, 1, (count, 2))
    height = chance.uniform(-0.3, 0.3) * flat[:, :1] ** 2 + chance.uniform(0, 0.2) * chance.uniform(-1, 1, (count, 1))
    return np.concatenate([flat, height], 1)


def _curve(chance: Chance, along: np.ndarray, dimensions: int) -> Points:
    """Places on a sum of a line and a few waves, closed or open."""
    ends = chance.uniform(-1, 1, (2, dimensions)) * chance.choice([0.0, 1.0])
    waves = np.arange(1, 4)
    height = chance.normal(size=(3, dimensions, 2)) / waves[:, None, None] ** 1.5
    phase = 2 * np.pi * waves * chance.uniform(0.3, 1.0) * along[:, None]
    curve = ends[0] + along[:, None] * (ends[1] - ends[0])
    curve = curve + np.sin(phase) @ height[..., 0] + np.cos(phase) @ height[..., 1]
    return curve / max(1e-6, np.abs(curve).max())


KINDS: tuple[Callable[[Chance, int], Points], ...] = (
    _ellipsoid,
    _box,
    _cylinder,
    _torus,
    _tube,
    _tube,
    _ribbon,
    _ribbon,
)
