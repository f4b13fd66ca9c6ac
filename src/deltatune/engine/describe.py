"""Describe: an anatomy as plain values, equal blocks taken together, for people and for JSON."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from deltatune.core.site import LayerSite
from deltatune.engine.anatomy import Anatomy
from deltatune.engine.blocks import Stack


def describe(anatomy: Anatomy) -> dict[str, Any]:
    """The map as JSON values: counts, stacks with their layers, embeddings, head, norms."""
    count: Counter[str] = Counter()
    for tensor in anatomy.every_parameter:
        count[tensor.role] += math.prod(tensor.shape)
    outside = [layer for layer in anatomy.every_layer if layer.block is None]
    return {
        "model": anatomy.name,
        "parameters": sum(count.values()),
        "by_role": dict(sorted(count.items())),
        "stacks": [_stack(stack, anatomy) for stack in anatomy.stacks],
        "embeddings": [_row([layer], layer.path) for layer in outside if layer.role == "embeddings"],
        "head": {
            "modules": list(anatomy.heads),
            "layers": [_row([layer], layer.path) for layer in outside if layer.role == "head"],
        },
        "other": [_row([layer], layer.path) for layer in outside if layer.role not in ("embeddings", "head")],
        "norms": _norms(anatomy),
    }


def _stack(stack: Stack, anatomy: Anatomy) -> dict[str, Any]:
    """One row per layer of a block; layers at the same place with the same shape are one row."""
    rows: dict[tuple[Any, ...], list[LayerSite]] = {}
    for layer in anatomy.every_layer:
        if layer.block is not None and layer.stack == stack.name:
            place = layer.path.removeprefix(f"{stack.blocks[layer.block]}.")
            key = (place, layer.role, layer.in_features, layer.out_features, layer.kind)
            rows.setdefault(key, []).append(layer)
    attentions = [site for site in anatomy.every_attention if site.stack == stack.name]
    return {
        "name": stack.name,
        "path": pattern(stack.blocks),
        "blocks": len(stack.blocks),
        "heads": [list(pair) for pair in sorted({(site.heads, site.key_value_heads) for site in attentions})],
        "layers": [_row(found, pattern([layer.path for layer in found])) for found in rows.values()],
    }


def _row(found: Sequence[LayerSite], path: str) -> dict[str, Any]:
    layer = found[0]
    values = layer.in_features * layer.out_features * max(1, layer.copies) * math.prod(layer.kernel)
    return {
        "path": path,
        "role": layer.role,
        "packed": list(layer.packed),
        "kind": layer.kind,
        "shape": [*([layer.copies] if layer.copies else []), layer.out_features, layer.in_features, *layer.kernel],
        "blocks": len(found),
        "parameters": values + (layer.out_features if layer.has_bias else 0),
        "tied": list(layer.tied),
    }


def _norms(anatomy: Anatomy) -> list[dict[str, Any]]:
    """Norm tensors by path, those of the blocks of a stack together."""
    rows: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for tensor in anatomy.every_parameter:
        if tensor.role == "norm":
            stack, place = _place(tensor.path, anatomy)
            rows.setdefault((stack, place, tensor.shape), []).append(tensor.path)
    return [{"path": pattern(paths), "shape": list(shape), "count": len(paths)} for (*_, shape), paths in rows.items()]


def _place(path: str, anatomy: Anatomy) -> tuple[str, str]:
    """Stack and path inside the block; no stack and the whole path outside."""
    where = anatomy.block_of(path)
    if where is None:
        return "", path
    name, index = where
    stack = next(stack for stack in anatomy.stacks if stack.name == name)
    return name, path.removeprefix(f"{stack.blocks[index]}.")


def pattern(paths: Sequence[str]) -> str:
    """Paths that differ in numbers as one.

    >>> pattern(["layer.0.fc1", "layer.1.fc1"]), pattern(["layer.0.fc1"])
    ('layer.{i}.fc1', 'layer.0.fc1')
    """
    steps = zip(*(path.split(".") for path in paths), strict=True)
    return ".".join(step[0] if len(set(step)) == 1 else "{i}" for step in steps)
