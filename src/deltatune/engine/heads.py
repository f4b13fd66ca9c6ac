"""Heads: the modules that turn what the backbone returns into the answer of a task."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from deltatune.engine.blocks import Stack, backbone_of, under, walk

BOX = 4
"""Numbers that describe a box."""


def heads(model: Any, stacks: Sequence[Stack]) -> tuple[str, ...]:
    """Paths of the head's modules; empty for a model without one."""
    backbone = backbone_of(model)
    if backbone is not model:
        outside = _outside(model, backbone)
        return tuple(outside or _inside(model, stacks))
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if output is not None:
        return tuple(path for path, module in walk(model) if module is output)
    if hasattr(model, "base_model_prefix") and "For" not in type(model).__name__:  # a bare backbone
        return ()
    return tuple(_behind(model, stacks))


def _outside(model: nn.Module, backbone: nn.Module) -> list[str]:
    """Children with parameters that are no part of the backbone; output embeddings may share theirs with it.

    RT-DETRv2 lists the heads of its decoder at the top again: they are the decoder's.
    """
    inside = {id(tensor) for tensor in _tensors(backbone)}
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return [
        name
        for name, child in model.named_children()
        if child is output or any(id(tensor) not in inside for tensor in _tensors(child))
    ]


def _tensors(module: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of the base in a module."""
    return (tensor for _, inner in walk(module) for tensor in inner._parameters.values() if tensor is not None)


def _inside(model: Any, stacks: Sequence[Stack]) -> Iterator[str]:
    """Where the backbone runs the head itself (RT-DETR): what ends in one number per class, or in a box."""
    sizes = {getattr(model.config, "num_labels", None), BOX}
    blocks = [block for stack in stacks for block in stack.blocks]
    last = ""
    for path, module in walk(model):
        maps = [m for _, m in walk(module) if isinstance(m, nn.Linear)]
        if not maps or maps[-1].out_features not in sizes or isinstance(module, nn.ModuleList):
            continue
        apart = not any(under(block, path) or under(path, block) for block in blocks)
        if apart and not (last and under(path, last)):
            last = path
            yield path


def _behind(model: nn.Module, stacks: Sequence[Stack]) -> Iterator[str]:
    """Children with a linear map that come after the blocks."""
    after = False
    for name, module in model.named_children():
        if any(under(path, name) for stack in stacks for path in stack.lists):
            after = True
        elif after and any(isinstance(m, nn.Linear) for m in module.modules()):
            yield name
