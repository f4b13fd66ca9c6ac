"""Blocks: the repeated layers of a network, found from structure alone.

A list of modules is a stack when its elements repeat a class and each holds a norm and at least two matrices. Where
such lists are nested the inner ones count if they hold most of the matrices (Swin's stages do, MobileBERT's extra
feed-forwards do not). Lists whose paths differ only in numbers are one stack.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)
CONVOLUTION = nn.modules.conv._ConvNd
DELTAS = "deltas"
"""The child under which the engine keeps adapters; it is no part of the base."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks in the order they run."""

    name: str
    """`encoder`, `decoder` or `model`; the path of the list where that is not unique."""
    lists: tuple[str, ...]
    """Paths of the module lists."""
    blocks: tuple[str, ...]
    """Paths of the blocks."""
    owner: str
    """Path of the module that runs them."""


def walk(module: nn.Module, path: str = "", *, repeated: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Modules of the base with their paths, each once unless `repeated`; adapters are left out."""
    seen: set[int] = set()

    def below(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen and not repeated:
            return
        seen.add(id(module))
        yield path, module
        for name, child in module._modules.items():
            if child is not None and name != DELTAS:
                yield from below(child, f"{path}.{name}" if path else name)

    yield from below(module, path)


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of the base with their paths, each once; adapters are left out, however many there are."""
    seen: set[int] = set()
    for path, module in walk(model):
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{path}.{name}" if path else name), parameter


def parent(path: str) -> str:
    """A path without its last name.

    >>> parent("bert.encoder.layer"), parent("bert")
    ('bert.encoder', '')
    """
    return path.rpartition(".")[0]


def upwards(path: str) -> Iterator[str]:
    """A path and all above it, the root "" last.

    >>> list(upwards("bert.encoder"))
    ['bert.encoder', 'bert', '']
    """
    while path:
        yield path
        path = parent(path)
    yield ""


def under(path: str, place: str) -> bool:
    """Whether a path is a place or inside it; everything is inside the root "".

    >>> under("a.b.c", "a.b"), under("a.bc", "a.b"), under("a", "")
    (True, False, True)
    """
    return not place or path == place or path.startswith(f"{place}.")


def backbone_of(model: Any) -> Any:
    """What `transformers` calls the base model; the model itself where that lacks the embeddings (DINOv3's encoder).

    Where the name leads nowhere (RT-DETR in transformers 5.17) it is the one pretrained model below the answer's.
    """
    inner = getattr(model, "base_model", model)
    if inner is model and "For" in type(model).__name__:
        below = [child for child in model.children() if isinstance(child, PreTrainedModel)]
        inner = below[0] if len(below) == 1 else model
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return inner
    return inner if any(module is embeddings for module in inner.modules()) else model


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer, by its class name: every family brings its own."""
    return "norm" in type(module).__name__.lower() and not any(name != DELTAS for name, _ in module.named_children())


def stacks(model: nn.Module) -> list[Stack]:
    """The stacks of a model, in the order of its modules; empty when nothing repeats."""
    groups: dict[str, list[str]] = {}
    # blocks without a norm of their own exist: XLM keeps attentions and norms in separate lists
    for path in _lists(model, norm=True) or _lists(model, norm=False):
        groups.setdefault(re.sub(r"\d+", "{i}", path), []).append(path)
    names = [_name(pattern) for pattern in groups]
    return [
        Stack(
            name if names.count(name) == 1 else lists[0],
            tuple(lists),
            tuple(_blocks(model, lists)),
            _owner(model, lists[0]),
        )
        for name, lists in zip(names, groups.values(), strict=True)
    ]


def _lists(model: nn.Module, norm: bool) -> list[str]:
    """Paths of the lists of blocks, none inside another."""
    found = {path: _matrices(module) for path, module in walk(model) if _is_stack(module, norm)}
    chosen: list[str] = []
    for path, count in found.items():  # outer lists come first
        if any(under(path, other) for other in chosen):
            continue
        inner = [other for other in found if other != path and under(other, path)]
        outermost = [p for p in inner if not any(p != q and under(p, q) for q in inner)]
        if 2 * sum(found[other] for other in outermost) <= count:
            chosen.append(path)
    return chosen


def _is_stack(module: nn.Module, norm: bool) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
        return False
    elements = list(module)
    repeats = len({type(element) for element in elements}) < len(elements) or len(elements) == 1
    return repeats and all(_is_block(element, norm) for element in elements)


def _is_block(module: nn.Module, norm: bool) -> bool:
    if isinstance(module, nn.ModuleList) or is_norm(module):
        return False
    return _matrices(module) >= 2 and (not norm or any(is_norm(inner) for _, inner in walk(module)))


def _matrices(module: nn.Module) -> int:
    """Number of linear maps, stacked and fused raw tensors included."""
    count = 0
    for _, inner in walk(module):
        if isinstance(inner, LINEAR):
            count += 1
        elif not isinstance(inner, CONVOLUTION):
            tensors = inner._parameters.items()
            count += sum(p is not None and (p.dim() >= 3 or name == "in_proj_weight") for name, p in tensors)
    return count


def _blocks(model: nn.Module, lists: list[str]) -> Iterator[str]:
    for path in lists:
        for name in model.get_submodule(path)._modules:
            yield f"{path}.{name}" if path else name


def _owner(model: nn.Module, path: str) -> str:
    """The first module above a list that is neither a list nor an element of one (ALBERT's groups, Swin's stages)."""

    def listed(path: str) -> bool:
        return isinstance(model.get_submodule(path), nn.ModuleList | nn.Sequential)

    path = parent(path)
    while path and (listed(path) or listed(parent(path))):
        path = parent(path)
    return path


def _name(pattern: str) -> str:
    words = re.split(r"[._]", pattern)
    return next((word for word in ("decoder", "encoder") if word in words), "model")
