"""Sites: the places in a base model where an adapter acts, and what an adapter module must do there.

Six kinds. For each there is a description (frozen, found by the anatomy), the context the engine hands over in
the call, and an abstract module that a method file implements.

    site          the adapter gets                                    it returns
    layer         x and `base` (callable; weight, bias)               y
    sublayer      h before the residual, and `stream`                 h'
    key-value     rows, and what the attention reads                  keys and values to put in front
    input         rows                                                embeddings to put in front
    parameter     one tensor of the base                              the tensor to use instead
    side          the hidden states of every block, detached          the last hidden state

Shape legend: B batch, T tokens, D model width, I in, O out, R rank, H heads, P virtual tokens, K head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSite:
    """A linear map of the base: `nn.Linear`, GPT-2 `Conv1D`, `nn.Embedding`, `nn.Conv1d/2d` or a raw tensor."""

    path: str
    """Module path; for a raw tensor (3-D expert weights, XLNet's projections) the path of the parameter."""
    role: str
    """Place in the anatomy: `attention.query`, `mlp.down`, `head`, `embeddings`, or `other`."""
    stack: str
    """`encoder`, `decoder` or `model`; empty outside the blocks."""
    block: int | None
    """Index of the block in its stack; None outside the blocks."""
    kind: Literal["linear", "conv1d", "embedding", "conv", "tensor"]
    in_features: int
    """I; the number of rows for an embedding."""
    out_features: int
    """O."""
    kernel: tuple[int, ...] = ()
    """Kernel sizes of a convolution."""
    groups: int = 1
    """Groups of a convolution."""
    copies: int = 0
    """Experts stacked in one tensor; 0 for a plain matrix."""
    transposed: bool = False
    """The base stores [I, O]."""
    has_bias: bool = False
    packed: tuple[str, ...] = ()
    """Roles side by side in one matrix (`("query", "key", "value")`), in the order of the anatomy."""
    tied: tuple[str, ...] = ()
    """Other parameter paths that share this weight."""
    quantised: bool = False
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A tensor at the border of a module: its first tensor argument, or its (first) output."""

    path: str
    side: Literal["input", "output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SublayerSite:
    """The output h of an attention or feed-forward sublayer, just before it is added to the residual stream."""

    path: str
    """The module whose output is h (the projection, or the dropout behind it)."""
    role: Literal["attention", "cross_attention", "mlp"]
    stack: str
    block: int
    width: int
    """D."""
    residual: Tap
    """The tensor h is added to."""
    entry: Tap
    """What the sublayer reads: after the norm in pre-norm blocks, the stream itself in post-norm blocks."""
    norm: str | None
    """Path of the norm applied to the sum in post-norm blocks; None in pre-norm blocks."""
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSite:
    """Keys and values of one attention module."""

    path: str
    role: Literal["self", "cross"]
    stack: str
    block: int
    heads: int
    key_value_heads: int
    head_width: int
    """K."""
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSite:
    """The embedded tokens of one stack, between the embeddings and the first block."""

    path: str
    """The module whose output is x_BTD."""
    backbone: str
    """The module that takes `attention_mask` (and positions) as arguments."""
    exit: str
    """The module at whose output the virtual tokens are taken out again."""
    stack: str
    width: int
    """D."""
    table: str | None = None
    """Path of the token embedding's weight [V, D]; None where the stack reads no tokens of a vocabulary."""
    reader: str | None = None
    """The decoder that attends to this stack's output, virtual tokens included."""
    causal: bool = False
    """A position sees only itself and those before it, by keys and values that can be kept."""
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSite:
    """One tensor of the base."""

    path: str
    """Path of the parameter, `bert.embeddings.LayerNorm.bias`."""
    role: Literal["weight", "bias", "norm", "embedding", "head"]
    shape: tuple[int, ...]
    tied: tuple[str, ...] = ()
    """Other paths of the same tensor; the adapter replaces all of them."""
    in_head: bool = False
    """It stands in the head, under this path or a tied one: a decoder's embedding often makes its answer too."""
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class SideSite:
    """All blocks of one stack, read without gradient."""

    path: str
    """The module whose output (or `last_hidden_state`) the side network replaces."""
    blocks: tuple[str, ...]
    stack: str
    depth: int
    """Runs of all blocks in one pass: more than blocks where they share weights."""
    width: int
    """D."""
    causal: bool
    """A position sees only itself and those before it."""
    dtype: torch.dtype
    device: torch.device


Site = LayerSite | SublayerSite | AttentionSite | InputSite | ParameterSite | SideSite


class Base(Protocol):
    """The layer below an adapter: the base layer itself, or another adapter on top of it."""

    condition: Tensor | None
    """Task id [B] or vector [B, C] of each row, when the caller gave one."""

    @property
    def weight(self) -> Tensor:
        """[O, I, *kernel], with [copies, ...] in front for stacked experts; dequantised where needed."""

    @property
    def bias(self) -> Tensor | None:
        """[O], or None."""

    def __call__(self, x: Tensor) -> Tensor:
        """y = W x + b, computed once however often it is asked for the same x."""

    def plain(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """W [O, I] and b where y is x W^T + b, in the dtype of x, and nobody else asks for it; None otherwise."""

    def project(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's own linear map (stride, padding, lookup) with another weight [R, I, *kernel] and no bias."""

    def expand(self, h: Tensor, weight: Tensor) -> Tensor:
        """A matrix [O, R] on the channels of what `project` returned."""


class Stream(Protocol):
    """What surrounds a sublayer output h."""

    condition: Tensor | None
    """Task id [B] or vector [B, C] of each row, when the caller gave one."""

    @property
    def residual(self) -> Tensor:
        """x_BTD, the tensor h is added to."""

    @property
    def entry(self) -> Tensor:
        """What the sublayer read."""

    @property
    def batch_dim(self) -> int:
        """The dimension of h that counts the rows of the batch."""

    def normed(self, h: Tensor) -> Tensor:
        """norm(h + residual) with the block's own norm; h + residual in pre-norm blocks."""

    def adapter(self, name: str) -> "SublayerAdapter":
        """Another adapter at this site, active or not; raises `AdapterError` when there is none of this name."""


class Attended(Protocol):
    """What an attention module works on."""

    condition: Tensor | None
    """Task id [B] or vector [B, C] of each row, when the caller gave one."""

    @property
    def entry(self) -> Tensor:
        """What the module reads, x_BTD."""


class Beside(Protocol):
    """What a side network needs to know of the tokens."""

    mask: Tensor | None
    """[B, 1, T, S], True where token t may look at token s of all S so far; None where it may look everywhere."""

    def remember(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, S, K] of all tokens so far for attention number `index`, from those of the new T."""


class Shared(nn.Module):
    """What all sites of one adapter share; saved once."""

    def folded(self) -> "Shared | None":
        """What is saved of it: itself, unless the folded modules of the sites can do without."""
        return self


class SiteAdapter(nn.Module, ABC):
    """The parameters of one adapter at one site. It never owns a tensor of the base and never changes one."""

    def folded(self) -> "SiteAdapter":
        """The module as it is saved and served: itself, unless training needs more than inference does.

        A prompt encoder returns the prompt it computes; `state_dict()` of the unfolded module still resumes training.
        """
        return self

    def opened(self, tensors: Mapping[str, Tensor]) -> "SiteAdapter":
        """The folded module with room for the tensors of a file: `folded()`, unless their shapes vary (sparse ones)."""
        return self.folded()

    def restored(self) -> None:
        """Called when the state of a training was put back: for facts that forward must not read from a tensor."""
        return None

    def sized(self, tensors: Mapping[str, Tensor]) -> None:
        """Makes room for the state of a training, where shapes change on the way (a mask that is shared out anew)."""
        return None

    def materialized(self, condition: Tensor) -> dict[str, Tensor]:
        """The tensors of `Method.materialized` for one task id [] or vector [C]: its own, where it asks for none."""
        return self.state_dict()


class LayerAdapter(SiteAdapter):
    """An adapter at a layer site."""

    @abstractmethod
    def forward(self, x: Tensor, base: Base) -> Tensor:
        """y for x; `base(x)` is the output without this adapter."""

    @classmethod
    def side_by_side(cls, adapters: Sequence[Any], x: Tensor, base: Base) -> Tensor | None:
        """y in one operation for several adapters of this class, each on an equal share of the rows in a row.

        None where there is no such operation: they act one after the other then.
        """
        return None

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer that does the same alone; only where the method declares `merge`."""
        raise NotImplementedError


class SublayerAdapter(SiteAdapter):
    """An adapter at a sublayer site."""

    @abstractmethod
    def forward(self, h: Tensor, stream: Stream) -> Tensor:
        """h' [B, T, D] for h [B, T, D]."""


class KeyValueAdapter(SiteAdapter):
    """An adapter at a key-value site."""

    offset: int = 0
    """By how much the positions of the real tokens move."""

    @abstractmethod
    def forward(self, rows: int, source: Attended) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, H, P, K] to put in front of the base's own; expand, do not copy."""


class InputAdapter(SiteAdapter):
    """An adapter at an input site."""

    tokens: int
    """P."""
    word: bool = False
    """They enter as words, before positions, types and norm, instead of behind the embeddings."""
    stays: bool = False
    """They stay in the output, so that a head which pools the first position sees the first of them."""

    @abstractmethod
    def forward(self, rows: int, condition: Tensor | None) -> Tensor:
        """Embeddings [rows, P, D] to put in front of the tokens; expand, do not copy."""


class ParameterAdapter(SiteAdapter):
    """An adapter at a parameter site."""

    @abstractmethod
    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor to use in place of the base's; may have another shape for a replaced head."""


class ReplacedTensor(ParameterAdapter):
    """A trained copy of one tensor: a new head, or everything in full fine-tuning."""

    def __init__(self, origin: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(origin.detach().clone(memory_format=torch.contiguous_format).float())

    def forward(self, tensor: Tensor) -> Tensor:
        """The copy, in the base's dtype."""
        return self.value.to(tensor.dtype)


class SideAdapter(SiteAdapter):
    """A side network next to one stack."""

    @abstractmethod
    def forward(self, hidden: Sequence[Tensor], last: Tensor, beside: Beside) -> Tensor:
        """The new last hidden state [B, T, D].

        `hidden` are the input of the first block and the output of every run of a block, `last` is what the stack
        would return; all detached.
        """
