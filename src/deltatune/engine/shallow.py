"""Shallow: a model with its first blocks only, to measure what one block takes and count it as often as it comes."""

from torch import nn

from deltatune.engine.anatomy import Anatomy


def shallow(model: nn.Module, depth: int) -> int:
    """Leaves the first `depth` blocks of every stack; how many blocks the deepest had.

    Equal to `depth` or less where nothing could be left out: blocks in several lists, or as few as that.
    """
    most = 0
    for stack in Anatomy.of(model).stacks:
        most = max(most, len(stack.blocks))
        if len(stack.lists) == 1 and len(stack.blocks) > depth:
            blocks = model.get_submodule(stack.lists[0])
            assert isinstance(blocks, nn.ModuleList)
            del blocks[depth:]
    return most
