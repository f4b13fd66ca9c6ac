"""Kinds of linear map in a base, behind one interface: read the weight, apply another one, write a merged one.

Every kind presents its weight as [O, I, *kernel] ([E, O, I] for stacked experts), whatever the base stores.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltatune.core.errors import AdapterError
from deltatune.core.site import LayerAdapter, LayerSite
from deltatune.engine.compose import chosen
from deltatune.ops import low_rank


class Kind(Protocol):
    """How one kind of layer stores and applies its weight."""

    def read(self, module: nn.Module, name: str) -> Tensor:
        """The weight as [O, I, *kernel]."""

    def stored(self, weight: Tensor, like: Tensor) -> Tensor:
        """A weight [O, I, *kernel] in the layout of the stored tensor `like`."""

    def project(self, module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own map with another weight and no bias."""

    def expand(self, h: Tensor, weight: Tensor) -> Tensor:
        """A matrix [O, R] on the channels of h."""


class Linear:
    """`nn.Linear`: y = x W^T."""

    def read(self, module: nn.Module, name: str) -> Tensor:
        """The weight as stored."""
        return tensor_of(module, name)

    def stored(self, weight: Tensor, like: Tensor) -> Tensor:
        """The weight as it is."""
        return weight

    def project(self, module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
        """x A^T."""
        return F.linear(x, weight)

    def expand(self, h: Tensor, weight: Tensor) -> Tensor:
        """h B^T."""
        return low_rank.widened(h, weight)


class Transposed(Linear):
    """GPT-2's `Conv1D`: the weight is stored [I, O]."""

    def read(self, module: nn.Module, name: str) -> Tensor:
        """The stored weight, transposed."""
        weight: Tensor = tensor_of(module, name).mT
        return weight

    def stored(self, weight: Tensor, like: Tensor) -> Tensor:
        """The weight, transposed."""
        return weight.mT


class Embedding(Transposed):
    """`nn.Embedding`: a row of the stored [I, O] matrix per token, scaled where the model scales it."""

    def project(self, module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
        """Rows of A^T; the module's own forward is used because some models scale what they look up."""
        result: Tensor = substituted(module, {"weight": weight.mT})(x)
        return result


class Convolution(Linear):
    """`nn.Conv1d` and `nn.Conv2d` with one group; the channels are dimension 1."""

    def project(self, module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
        """The same stride, padding and dilation with another kernel."""
        result: Tensor = substituted(module, {"weight": weight, "bias": None})(x)
        return result

    def expand(self, h: Tensor, weight: Tensor) -> Tensor:
        """A 1x1 convolution."""
        expanded: Tensor = torch.tensordot(h, weight, dims=([1], [1])).movedim(-1, 1)
        return expanded


class Stacked(Linear):
    """A raw tensor of the base that its parent reads: 3-D expert weights, XLNet's [D, H, K] projections."""

    def __init__(self, site: LayerSite) -> None:
        self.site = site

    def read(self, module: nn.Module, name: str) -> Tensor:
        """The tensor as [O, I], or [E, O, I] for experts."""
        return self.matrix(tensor_of(module, name))

    def matrix(self, tensor: Tensor) -> Tensor:
        """A stored tensor as [O, I] or [E, O, I]."""
        copies = (self.site.copies,) if self.site.copies else ()
        if self.site.transposed:
            return tensor.reshape(*copies, self.site.in_features, self.site.out_features).mT
        return tensor.reshape(*copies, self.site.out_features, self.site.in_features)

    def stored(self, weight: Tensor, like: Tensor) -> Tensor:
        """The matrix in the shape of the stored tensor."""
        return (weight.mT if self.site.transposed else weight).reshape(like.shape)


class Quantised(Linear):
    """A linear layer whose weight is kept in few bits by bitsandbytes or torchao: read, never written."""

    def read(self, module: nn.Module, name: str) -> Tensor:
        """The weight in floating point."""
        weight: Any = tensor_of(module, name)
        if hasattr(weight, "quant_state") and weight.quant_state is not None:
            from bitsandbytes.functional import dequantize_4bit  # optional dependency, present when such a layer is

            four_bit: Tensor = dequantize_4bit(weight.data, weight.quant_state)
            return four_bit
        if hasattr(weight, "SCB") and weight.SCB is not None:
            eight_bit: Tensor = weight.data * weight.SCB.unsqueeze(1) / 127
            return eight_bit
        if hasattr(weight, "dequantize"):
            dequantised: Tensor = weight.dequantize()
            return dequantised
        raise AdapterError(f"do not know how to read the quantised weight of {type(module).__name__}")

    def stored(self, weight: Tensor, like: Tensor) -> Tensor:
        """Refused: rounding back to few bits would change more than the adapter does."""
        raise AdapterError(
            "merging into a quantised weight is not possible", hint="load the base unquantised and merge there"
        )


def kind_of(site: LayerSite) -> Kind:
    """The kind of a layer site."""
    if site.quantised:
        return Quantised()
    match site.kind:
        case "linear":
            return Linear()
        case "conv1d":
            return Transposed()
        case "embedding":
            return Embedding()
        case "conv":
            return Convolution()
        case "tensor":
            return Stacked(site)


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """A parameter of a module as other code reads it: replaced where an adapter replaces it."""
    tensor = getattr(module, name)
    assert isinstance(tensor, Tensor)
    return tensor


def substituted(module: nn.Module, tensors: dict[str, Tensor | None]) -> nn.Module:
    """A view of a module with other tensors; the module itself is not touched, so calls may overlap.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> substituted(layer, {"weight": torch.tensor([[1., 2.]])})(torch.tensor([3., 4.]))
    tensor([11.])
    """
    view: nn.Module = object.__new__(original_class(module))
    vars(view).update(vars(module))
    vars(view)["_parameters"] = {**module._parameters, **tensors}
    return view


def original_class(module: nn.Module) -> Any:
    """The class a module had before an adapter was attached."""
    return getattr(type(module), "deltatune_original", type(module))


PLAIN = (nn.Linear, Conv1D)
"""Layers whose forward is x W^T + b and nothing else; quantised ones are classes of their own."""


class LayerBase:
    """The base layer in one call: what the innermost adapter sees (see `core.site.Base`)."""

    __slots__ = ("alone", "call", "condition", "kind", "module", "x", "y")

    def __init__(
        self,
        kind: Kind,
        module: nn.Module,
        call: Callable[[Tensor], Tensor],
        condition: Tensor | None = None,
        alone: bool = False,
    ) -> None:
        self.kind, self.module, self.call, self.condition = kind, module, call, condition
        self.alone = alone  # one adapter acts, nobody else will ask for the base's output
        self.x: Tensor | None = None
        self.y: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """[O, I, *kernel]."""
        return self.kind.read(self.module, "weight")

    @property
    def bias(self) -> Tensor | None:
        """[O], or None."""
        bias: Tensor | None = getattr(self.module, "bias", None)
        return bias

    def __call__(self, x: Tensor) -> Tensor:
        """The base's output, computed once per x."""
        if self.y is None or x is not self.x:
            self.x, self.y = x, self.call(x)
        return self.y

    def plain(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of a linear layer that nothing else is done with."""
        if not self.alone or original_class(self.module) not in PLAIN or torch.is_autocast_enabled(x.device.type):
            return None
        weight = self.weight
        return (weight, self.bias) if weight.dtype == x.dtype else None

    def project(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own map with another weight."""
        return self.kind.project(self.module, x, weight)

    def expand(self, h: Tensor, weight: Tensor) -> Tensor:
        """A matrix on the channels of h."""
        return self.kind.expand(h, weight)


class Covered:
    """An adapter on top of a base, seen as a base by the next adapter."""

    __slots__ = ("adapter", "base", "condition", "x", "y")

    def __init__(self, adapter: LayerAdapter, base: Any) -> None:
        self.adapter, self.base, self.condition = adapter, base, base.condition
        self.x: Tensor | None = None
        self.y: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The weight that does what base and adapter do together."""
        return self.adapter.merged(self.base)[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias that goes with it."""
        return self.adapter.merged(self.base)[1]

    def __call__(self, x: Tensor) -> Tensor:
        """Base and adapter together, computed once per x."""
        if self.y is None or x is not self.x:
            self.x, self.y = x, self.adapter(x, self.base)
        return self.y

    def plain(self, x: Tensor) -> None:
        """Never: there is an adapter in between."""

    def project(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own map with another weight."""
        return self.base.project(x, weight)  # type: ignore[no-any-return]

    def expand(self, h: Tensor, weight: Tensor) -> Tensor:
        """A matrix on the channels of h."""
        return self.base.expand(h, weight)  # type: ignore[no-any-return]


class FixedBase:
    """A base given by its tensors alone: raw tensors in a call, and every layer while it is merged."""

    __slots__ = ("bias", "condition", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias, self.condition = weight, bias, None

    def __call__(self, x: Tensor) -> Tensor:
        """Never called: there is no x here."""
        raise AssertionError("a fixed base has tensors, not calls")

    project = expand = plain = __call__


class RowsBase:
    """Some rows of a batch, of which the base has already computed all."""

    __slots__ = ("base", "call", "condition", "x", "y")

    def __init__(
        self, base: Any, rows: Sequence[int], dim: int, x: Tensor, y_all: Tensor, call: Callable[[Tensor], Tensor]
    ) -> None:
        self.base, self.x, self.call = base, x, call
        self.y = chosen(y_all, rows, dim)
        self.condition = None if base.condition is None else chosen(base.condition, rows, 0)

    @property
    def weight(self) -> Tensor:
        """The base's weight."""
        return self.base.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base.bias  # type: ignore[no-any-return]

    def __call__(self, x: Tensor) -> Tensor:
        """These rows of what is known, or the base on another input (an adapter that rotates x)."""
        return self.y if x is self.x else self.call(x)

    def plain(self, x: Tensor) -> None:
        """Never: the base has been computed for all rows."""

    def project(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own map with another weight."""
        return self.base.project(x, weight)  # type: ignore[no-any-return]

    def expand(self, h: Tensor, weight: Tensor) -> Tensor:
        """A matrix on the channels of h."""
        return self.base.expand(h, weight)  # type: ignore[no-any-return]
