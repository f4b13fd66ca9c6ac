"""Matrices: the linear maps of a base as they are stored, whatever module or bare parameter holds them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from deltatune.core.site import LayerSite
from deltatune.engine.blocks import CONVOLUTION, is_norm, parent, walk

QUANTISED = {"Linear4bit", "Linear8bitLt", "Params4bit", "Int8Params", "AffineQuantizedTensor"}
"""Class names of layers and weights that bitsandbytes and torchao keep in few bits."""
EXPERTS = ("expert", "moe")
"""Fragments of the path of a module that stacks experts in one tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One linear map, as stored."""

    path: str
    """Path of the module, or of the parameter for a raw tensor."""
    kind: Literal["linear", "conv1d", "embedding", "conv", "tensor"]
    weight: Tensor
    in_features: int
    out_features: int
    copies: int = 0
    transposed: bool = False
    has_bias: bool = False
    kernel: tuple[int, ...] = ()
    groups: int = 1
    quantised: bool = False

    @property
    def last(self) -> str:
        """The last name of the path."""
        return self.path.rpartition(".")[2]

    @property
    def words(self) -> list[str]:
        """The words of the last name.

        `q_proj` is q, proj; `query_key_value` is query, key, value.
        """
        return re.findall("[a-z]+", self.last.lower())

    @property
    def module(self) -> str:
        """Path of the module that holds it."""
        return parent(self.path) if self.kind == "tensor" else self.path

    def site(
        self, role: str, packed: tuple[str, ...], block: tuple[str, int | None], paths: Sequence[str]
    ) -> LayerSite:
        """The site of this map in a stack and block; `paths` are all the paths of its weight."""
        own = self.path if self.kind == "tensor" else f"{self.path}.weight"
        stack, index = block
        return LayerSite(
            path=self.path,
            role=role,
            stack=stack,
            block=index,
            kind=self.kind,
            in_features=self.in_features,
            out_features=self.out_features,
            kernel=self.kernel,
            groups=self.groups,
            copies=self.copies,
            transposed=self.transposed,
            has_bias=self.has_bias,
            packed=packed,
            tied=tuple(path for path in paths if path != own),
            quantised=self.quantised,
            dtype=self.weight.dtype,
            device=self.weight.device,
        )


def matrices(block: nn.Module, prefix: str, width: int) -> list[Matrix]:
    """The linear maps of a block of width D, in the order of its modules; convolutions and embeddings left out."""
    found: list[Matrix] = []
    for path, module in walk(block, prefix):
        own = matrix_of(path, module)
        if own is None:
            found += _raw(path, module, width)
        elif own.kind in ("linear", "conv1d"):
            found.append(own)
    return found


def matrix_of(path: str, module: nn.Module) -> Matrix | None:
    """The linear map that a module is; None when it is none."""
    weight = module._parameters.get("weight")
    if weight is None:
        return None
    bias = module._parameters.get("bias") is not None
    if isinstance(module, nn.Linear):
        return Matrix(
            path=path,
            kind="linear",
            weight=weight,
            in_features=module.in_features,
            out_features=module.out_features,
            has_bias=bias,
            quantised=not QUANTISED.isdisjoint((type(module).__name__, type(weight).__name__)),
        )
    if isinstance(module, Conv1D):
        inner, out = weight.shape
        return Matrix(
            path=path,
            kind="conv1d",
            weight=weight,
            in_features=inner,
            out_features=out,
            transposed=True,
            has_bias=bias,
        )
    if isinstance(module, nn.Embedding):
        rows, width = module.num_embeddings, module.embedding_dim
        return Matrix(path=path, kind="embedding", weight=weight, in_features=rows, out_features=width)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return _convolution(path, module)
    return None


def width_of(block: nn.Module) -> int:
    """D: the most frequent size of the norms nearest to the top of a block (those of single heads stand deeper)."""
    sizes: dict[int, list[int]] = {}
    for path, module in walk(block):
        if is_norm(module):
            vectors = [p.shape[0] for p in module._parameters.values() if p is not None and p.dim() == 1]
            sizes.setdefault(path.count("."), []).extend(vectors[:1])
    found = next((sizes[depth] for depth in sorted(sizes) if sizes[depth]), [])
    if found:
        return max(found, key=lambda size: (found.count(size), size))
    first = next((own for path, m in walk(block) if (own := matrix_of(path, m)) and own.kind != "embedding"), None)
    return first.in_features if first is not None else 0


def _convolution(path: str, module: nn.Conv1d | nn.Conv2d) -> Matrix:
    return Matrix(
        path=path,
        kind="conv",
        weight=module.weight,
        in_features=module.in_channels // module.groups,
        out_features=module.out_channels,
        has_bias=module.bias is not None,
        kernel=tuple(module.kernel_size),
        groups=module.groups,
    )


def _raw(path: str, module: nn.Module, width: int) -> Iterator[Matrix]:
    """Matrices that a module keeps as bare parameters: torch's in_proj, XLNet's [D, H, K], experts [E, ., .]."""
    tensors = {name: p for name, p in module._parameters.items() if p is not None}
    if isinstance(module, CONVOLUTION):
        return
    if "in_proj_weight" in tensors:
        weight = tensors["in_proj_weight"]
        out, inner = weight.shape
        yield Matrix(path=f"{path}.in_proj_weight", kind="tensor", weight=weight, in_features=inner, out_features=out)
    elif {"q", "k", "v", "o"} <= tensors.keys():
        for name in ("q", "k", "v", "o", "r"):
            if name in tensors:
                yield _headed(f"{path}.{name}", tensors[name], back=name == "o")
    elif any(word in path.lower() for word in EXPERTS):
        yield from _experts(path, module, {name: p for name, p in tensors.items() if p.dim() == 3}, width)


def _headed(path: str, weight: Tensor, back: bool) -> Matrix:
    """XLNet's projections [D, H, K]: from D to H K, or `back` from H K to D."""
    width, heads, head_width = weight.shape
    inner, out = (heads * head_width, width) if back else (width, heads * head_width)
    return Matrix(path=path, kind="tensor", weight=weight, in_features=inner, out_features=out, transposed=not back)


def _experts(path: str, module: nn.Module, tensors: dict[str, nn.Parameter], width: int) -> Iterator[Matrix]:
    """Stacked experts, [E, O, I] or [E, I, O]: transformers says which; elsewhere the map up tells, it reads D."""
    up = next((tensor for name, tensor in tensors.items() if "up" in name), None)
    told = getattr(module, "is_transposed", None)
    transposed = told if isinstance(told, bool) else up is not None and up.shape[2] != width
    for name, weight in tensors.items():
        copies, rows, columns = weight.shape
        inner, out = (rows, columns) if transposed else (columns, rows)
        yield Matrix(
            path=f"{path}.{name}",
            kind="tensor",
            weight=weight,
            in_features=inner,
            out_features=out,
            copies=copies,
            transposed=transposed,
        )
