"""Counting: bytes that are alive, products and moved bytes of what runs inside, tensor by tensor.

Works on tensors without values (`engine/valueless.py`): what a step takes is known before there is a weight.
"""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
OURS: dict[Any, float] = {
    aten._scaled_dot_product_flash_attention_for_cpu: 1.0,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: 2.5,
}
"""Fused attention of a processor: passes in units of the forward one, 4 B H Q S K operations."""


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What has run since it was entered; tensors that were there before count nothing."""

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        """Bytes of the tensors made inside that are still there, and the most there were at once."""
        self.operations = 0.0
        """Floating point operations of matrix products, convolutions and attention."""
        self.moved = 0
        """Bytes read and written by everything else."""
        self.calls = 0
        """Kernels that ran."""
        self._sizes: dict[int, int] = {}
        for tensor in there:
            self._note(tensor, counts=False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._note(tensor)
        if not func.is_view:
            self._work(func, args, kwargs, found, made)
        return found

    def _work(self, func: Any, args: Any, kwargs: Any, found: Any, made: list[Tensor]) -> None:
        self.calls += 1
        packet = func.overloadpacket
        if packet in OURS:
            query, key = args[-6:-4] if "backward" in str(packet) else args[:2]
            self.operations += OURS[packet] * 4 * query.numel() * key.shape[-2]
        elif packet in flop_registry:
            self.operations += flop_registry[packet](*args, **kwargs, out_val=found)
        else:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))

    def _note(self, tensor: Tensor, counts: bool = True) -> None:
        if tensor.layout != torch.strided:  # indices and values are tensors of their own, seen when they were made
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes() if counts else 0
            self.alive += self._sizes[key]
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.alive -= self._sizes.pop(key, 0)


def sized(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each storage once."""
    return sum({(s := tensor.untyped_storage())._cdata: s.nbytes() for tensor in tensors}.values())
