"""Kept: the tensors that a graph keeps for its backward pass, and their bytes."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from deltatune.ops.remade import Kept


def kept_tensors(output: Tensor) -> list[Tensor]:
    """Every tensor that the nodes behind an output keep, as they keep it; the same one may come more than once."""
    found: list[Tensor] = []
    first: Any = output.grad_fn
    seen, waiting = {first}, [first]
    while waiting:
        node = waiting.pop()
        for name in (name for name in dir(node) if name.startswith("_raw_saved_")):
            raw = getattr(node, name)
            for one in raw if isinstance(raw, list | tuple) else [raw]:
                packed = None if one is None else one.data
                found += packed.sources if isinstance(packed, Kept) else [packed] if isinstance(packed, Tensor) else []
        before = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= before
        waiting += before
    return found


def kept_bytes(output: Tensor, but: Iterable[Tensor] = ()) -> int:
    """Bytes that are kept for the backward pass of an output, storages counted once, those of `but` not.

    >>> import torch
    >>> weight, x = torch.ones(3, 3, requires_grad=True), torch.ones(5, 3)
    >>> kept_bytes(torch.relu(x @ weight).sum(), but=[weight])  # x and the output of relu
    120
    """
    left_out = {tensor.untyped_storage()._cdata for tensor in but}
    storages = [tensor.untyped_storage() for tensor in kept_tensors(output)]
    return sum({s._cdata: s.nbytes() for s in storages if s._cdata not in left_out}.values())
