"""Blocks: the repeated layers of a network, found from structure alone.

A list of modules is a stack when its elements repeat a class and each holds a norm and at least two linear maps. The
innermost such lists count (Swin's stages hold the lists that matter); lists that differ only in numbers in their
path are one stack.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks in the order they run."""

    name: str
    """`encoder`, `decoder` or `model`; the path of the list where that is not unique."""
    lists: tuple[str, ...]
    """Paths of the module lists."""
    blocks: tuple[str, ...]
    """Paths of the blocks."""


def stacks(model: nn.Module) -> list[Stack]:
    """The stacks of a model, in the order of its modules; empty when nothing repeats."""
    found = [path for path, module in model.named_modules() if _is_stack(module)]
    inner = [
        path
        for path in found
        if not any(other.startswith(f"{path}." if path else "") and other != path for other in found)
    ]
    groups: dict[str, list[str]] = {}
    for path in inner:
        groups.setdefault(re.sub(r"\d+", "{i}", path), []).append(path)
    names = [_name(pattern) for pattern in groups]
    return [
        Stack(name if names.count(name) == 1 else lists[0], tuple(lists), tuple(_blocks(model, lists)))
        for name, lists in zip(names, groups.values(), strict=True)
    ]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, by its class name: every family brings its own."""
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _is_stack(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
        return False
    elements = list(module)
    repeats = len({type(element) for element in elements}) < len(elements) or len(elements) == 1
    return repeats and all(_is_block(element) for element in elements)


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList) or is_norm(module):
        return False
    inside = list(module.modules())
    matrices = sum(isinstance(m, LINEAR) for m in inside) + sum(
        parameter.dim() >= 3 or name == "in_proj_weight"
        for m in inside
        if not isinstance(m, nn.modules.conv._ConvNd)
        for name, parameter in m.named_parameters(recurse=False)
    )
    return matrices >= 2 and any(is_norm(m) for m in inside)


def _blocks(model: nn.Module, lists: list[str]) -> Iterator[str]:
    for path in lists:
        for name, _ in model.get_submodule(path).named_children():
            yield f"{path}.{name}" if path else name


def _name(pattern: str) -> str:
    words = re.split(r"[._]", pattern)
    return next((word for word in ("decoder", "encoder") if word in words), "model")
