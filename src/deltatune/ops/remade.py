"""Remade: what an adapter keeps of its input for backward, kept as what autograd keeps of that input anyway.

The input of an adapted layer is most often the output of an activation, a norm, a product or the attention, and what
that was made of is kept by the base. Making it again costs one cheap operation in backward; keeping it costs as much
memory as the base itself needs there. What cannot be made of kept tensors is kept.

    gelu(z), silu(z): z      layer norm: its input, mean and 1 / deviation      a * b: both      attention: its output
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Make = Callable[[Sequence[Tensor]], Tensor]
"""A tensor from what it was made of."""
DEEPEST = 6
"""Operations that are gone back at most."""
ATTENTION = (
    "ScaledDotProductFlashAttentionForCpuBackward0",
    "ScaledDotProductFlashAttentionBackward0",
    "ScaledDotProductEfficientAttentionBackward0",
    "ScaledDotProductCudnnAttentionBackward0",
)


class Recipe:
    """How a tensor is made again; once for all layers that read it."""

    def __init__(self, make: Make) -> None:
        self.make = make
        self.readers = 0
        self.made: Tensor | None = None

    def __call__(self, sources: Sequence[Tensor]) -> Tensor:
        """The tensor; it is dropped when its last reader has asked."""
        made = self.make(sources).contiguous() if self.made is None else self.made
        self.readers -= 1
        self.made = made if self.readers > 0 else None
        return made


class Kept(NamedTuple):
    """What stands for a view of x until backward."""

    recipe: Recipe
    sources: tuple[Tensor, ...]
    shape: torch.Size
    stride: tuple[Any, ...]
    offset: Any

    def unpack(self) -> Tensor:
        """The view, of x made again."""
        return self.recipe(self.sources).as_strided(self.shape, self.stride, self.offset)


def reading(x: Tensor) -> AbstractContextManager[Any]:
    """Inside the block whatever is kept of x for backward, views too, is kept as what x was made of, where possible.

    >>> z = torch.ones(2, requires_grad=True)
    >>> x = F.silu(z)
    >>> with reading(x):
    ...     y = x * torch.ones(2, requires_grad=True)
    >>> y.grad_fn._raw_saved_self.data.sources[0].data_ptr() == z.data_ptr()
    True
    """
    # under other hooks (checkpointing) asking what is kept has effects; a compiler decides by itself
    if torch.compiler.is_compiling() or x.grad_fn is None or not x.is_contiguous():
        return nullcontext()
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return nullcontext()
    origin = _origin(x.grad_fn, DEEPEST)
    if origin is None or any(_storage(source) == _storage(x) for source in origin[0]):
        return nullcontext()
    sources, make = tuple(source.detach() for source in origin[0]), origin[1]
    storage, start, dtype, node = _storage(x), x.storage_offset(), x.dtype, id(x.grad_fn)

    def pack(tensor: Tensor) -> Tensor | Kept:
        if _storage(tensor) != storage or tensor.dtype != dtype:
            return tensor
        recipe = _recipes.get(node)
        if recipe is None:
            recipe = _recipes[node] = Recipe(make)
        recipe.readers += 1
        return Kept(recipe, sources, tensor.shape, tensor.stride(), tensor.storage_offset() - start)

    return saved_tensors_hooks(pack, _unpack)


_recipes: WeakValueDictionary[int, Recipe] = WeakValueDictionary()
"""By the id of the node that made x. Whoever holds the recipe has that node in its graph: the id is not used again."""


def _unpack(kept: Tensor | Kept) -> Tensor:
    return kept.unpack() if isinstance(kept, Kept) else kept


def _storage(tensor: Tensor) -> int:
    """Which storage a tensor looks at; unlike its address it tells tensors without values apart too."""
    place: int = tensor.untyped_storage()._cdata
    return place


def _saved(node: Any, name: str) -> Tensor | None:
    """What a node keeps under a name, where it keeps that itself and no hook has changed it."""
    raw = getattr(node, f"_raw_saved_{name}")
    if raw is None or raw.unpack_hook is not None:
        return None
    tensor: Tensor | None = getattr(node, f"_saved_{name}")
    return tensor


def _origin(node: Any, depth: int) -> tuple[list[Tensor], Make] | None:
    """Tensors that autograd keeps and the output of a node from them; None where there is no such way."""
    if node is None or not depth:
        return None
    name = node.name()
    if name in ATTENTION:
        return _itself(_saved(node, "output"))
    if name in _MADE:
        return _MADE[name](node)
    if name == "MulBackward0":
        return _product(node, depth)
    if name not in _PASSED:
        return None
    below = _origin(node.next_functions[0][0], depth - 1)
    if below is None:
        return None
    passed, make = _PASSED[name](node), below[1]
    return below[0], lambda sources: passed(make(sources))


def _gelu(node: Any) -> tuple[list[Tensor], Make] | None:
    z, approximate = _saved(node, "self"), node._saved_approximate
    return None if z is None else ([z], lambda sources: F.gelu(sources[0], approximate=approximate))


def _silu(node: Any) -> tuple[list[Tensor], Make] | None:
    z = _saved(node, "self")
    return None if z is None else ([z], lambda sources: F.silu(sources[0]))


def _layer_norm(node: Any) -> tuple[list[Tensor], Make] | None:
    """(z - mean) / deviation * weight + bias, in float32 and rounded as the norm itself does."""
    z, mean, over = (_saved(node, name) for name in ("input", "result1", "result2"))
    weight, bias = _saved(node, "weight"), _saved(node, "bias")
    if z is None or mean is None or over is None:
        return None
    dtype = _output(node).dtype

    def make(sources: Sequence[Tensor]) -> Tensor:
        z, mean, over_deviation, *affine = sources
        normed = (z - mean) * over_deviation
        if weight is not None:
            normed = normed * affine[0]
        return (normed if bias is None else normed + affine[-1]).to(dtype)

    return [z, mean, over, *(tensor for tensor in (weight, bias) if tensor is not None)], make


def _product(node: Any, depth: int) -> tuple[list[Tensor], Make] | None:
    """a * b; a factor that the product itself does not need for its gradient may be made again too."""
    dtype = _output(node).dtype
    sides = []
    for name, (before, _) in zip(("self", "other"), node.next_functions, strict=True):
        side = _itself(_saved(node, name)) or _origin(before, depth - 1)
        if side is None:
            return None
        sides.append(side)
    (left, make_left), (right, make_right) = sides
    count = len(left)
    return [*left, *right], lambda sources: (make_left(sources[:count]) * make_right(sources[count:])).to(dtype)


def _itself(kept: Tensor | None) -> tuple[list[Tensor], Make] | None:
    return None if kept is None else ([kept], lambda sources: sources[0])


def _viewed(node: Any) -> Callable[[Tensor], Tensor]:
    shape = tuple(_output(node).shape)
    return lambda tensor: tensor.reshape(shape)


def _transposed(node: Any) -> Callable[[Tensor], Tensor]:
    first, second = (dim - 2**64 if dim >= 2**63 else dim for dim in (node._saved_dim0, node._saved_dim1))
    return lambda tensor: tensor.transpose(first, second)


def _cast(node: Any) -> Callable[[Tensor], Tensor]:
    dtype = _output(node).dtype
    return lambda tensor: tensor.to(dtype)


def _copied(node: Any) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor


def _output(node: Any) -> Any:
    """Shape and dtype of what a node made."""
    return node._input_metadata[0]


_MADE: dict[str, Callable[[Any], tuple[list[Tensor], Make] | None]] = {
    "GeluBackward0": _gelu,
    "SiluBackward0": _silu,
    "NativeLayerNormBackward0": _layer_norm,
}
_PASSED: dict[str, Callable[[Any], Callable[[Tensor], Tensor]]] = {
    "ViewBackward0": _viewed,
    "UnsafeViewBackward0": _viewed,
    "TransposeBackward0": _transposed,
    "CloneBackward0": _copied,
    "ToCopyBackward0": _cast,
}
