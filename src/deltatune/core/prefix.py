"""What prefix tuning and P-tuning v2 share: keys and values in front of every attention's own.

Shape legend: B rows, P virtual tokens, H key-value heads, K head width, D model width.
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.method import Can, Method, Pace, Sites
from deltatune.core.site import Attended, AttentionSite, KeyValueAdapter, Shared
from deltatune.core.targeted import listed

PROMPT = "prompt_embeddings"


class PrefixMethod(Method, ABC):
    """Settings of a method that adds P keys and values to attention; names as in peft's `PrefixTuningConfig`."""

    aliases: ClassVar[Mapping[str, str]] = {**Method.aliases, "prefix_length": "num_virtual_tokens"}
    can: ClassVar[Can] = Can(identity=None)
    peft_type: ClassVar[str | None] = "PREFIX_TUNING"
    peft_root: ClassVar[str] = "base_model."

    num_virtual_tokens: Annotated[int, Field(ge=1, le=100_000)] = 20
    """P."""
    attentions: tuple[Literal["encoder", "decoder", "cross"], ...] = ("encoder", "decoder", "cross")
    """Which attention gets a prefix, as far as the model has it; in a model of one stack all of it."""
    prefix_projection: bool = False
    """Train an embedding and a perceptron that compute the prefix, as in the paper; they are folded away when saved."""
    encoder_hidden_size: Annotated[int, Field(ge=1)] = 512
    """Width of the perceptron."""
    prefix_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on keys and values, while training."""
    use_gating: bool = False
    """Scale keys and values of every head by a learned sigmoid, so that a prefix can be switched off."""
    position_offset: Annotated[int, Field(ge=0)] | None = 0
    """By how much the positions of the real tokens move; none means P, as with peft and in P-tuning v2's code."""

    def sites(self, model: Sites) -> Sequence[AttentionSite]:
        """The attention modules; raises `SettingsError` when the model has none of the kinds asked for."""
        found = model.attentions(("self", "cross"))
        stacks = {site.stack for site in found}
        kept = [site for site in found if len(stacks) == 1 or _kind(site) in self.attentions]
        if not kept:
            raise SettingsError(f"attentions={list(self.attentions)}, and this model has none of them")
        return kept

    def share(self, sites: Sequence[Any], rng: torch.Generator) -> "Projection | None":
        """The perceptron."""
        if not self.prefix_projection:
            return None
        return Projection(self, sites[0].heads * sites[0].head_width, _width(sites), rng)

    def build(
        self, site: AttentionSite, origin: Callable[[], Tensor], shared: "Projection | None", rng: torch.Generator
    ) -> "Prefix | ProjectedPrefix":
        """Keys and values of one attention."""
        if shared is None:
            shape = (2, site.key_value_heads, self.num_virtual_tokens, site.head_width)
            return Prefix(self, torch.empty(shape).normal_(0, 0.02, generator=rng))
        return ProjectedPrefix(self, site, shared)

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of 2 P H K, or what computes them; and the gates."""
        tokens, hidden = self.num_virtual_tokens, self.encoder_hidden_size
        gates: int = sum(site.key_value_heads for site in sites) if self.use_gating else 0
        if not self.prefix_projection:
            return tokens * _width(sites) + gates
        width = sites[0].heads * sites[0].head_width
        trained: int = tokens * width + (width + 1) * hidden + (hidden + 1) * _width(sites) + gates
        return trained

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Lengths."""
        return [{"num_virtual_tokens": tokens} for tokens in (5, 10, 20, 50, 100)]

    def pace(self, name: str) -> Pace:
        """No decay on the keys and values themselves."""
        return Pace(decay=False if name == "prefix" else None)

    # -- peft's format

    def for_peft(self, sites: Sequence[Any]) -> bool:
        """Only what peft has: one stack, blocks of one shape, positions moved by P, no gate."""
        shapes = {(site.key_value_heads, site.head_width, site.role, site.stack) for site in sites}
        return len(shapes) == 1 and self.position_offset in (None, self.num_virtual_tokens) and not self.use_gating

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `PrefixTuningConfig`."""
        return {
            "num_virtual_tokens": self.num_virtual_tokens,
            "num_layers": len(sites),
            "num_attention_heads": sites[0].key_value_heads,
            "token_dim": sites[0].key_value_heads * sites[0].head_width,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": self.encoder_hidden_size,
            "prefix_projection": self.prefix_projection,
        }

    def to_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """[P, L 2 H K]: block, then key and value, then heads run together."""
        if not self.for_peft(sites):
            return None
        parts = [tensors[f"{site.path}.prefix"].permute(2, 0, 1, 3).flatten(1) for site in sites]
        return {PROMPT: torch.cat(parts, 1)}

    def of_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Ours from peft's."""
        if not self.for_peft(sites):
            return None
        parts = tensors[PROMPT].chunk(len(sites), 1)
        heads, width = sites[0].key_value_heads, sites[0].head_width
        return {
            f"{site.path}.prefix": part.reshape(len(part), 2, heads, width).permute(1, 2, 0, 3)
            for site, part in zip(sites, parts, strict=True)
        }


def read_prefix_config(cls: type[PrefixMethod], config: Mapping[str, Any]) -> Any:
    """Settings of a PREFIX_TUNING file; raises `AdapterError` for an encoder-decoder's."""
    if config.get("num_transformer_submodules") == 2:
        raise AdapterError(
            "a prefix of peft for an encoder-decoder does not load",
            hint="there its virtual tokens take part in the relative positions of the decoder; ours have no position",
        )
    keys = ("num_virtual_tokens", "encoder_hidden_size", "prefix_projection")
    fields = {key: config[key] for key in keys if config.get(key) is not None}
    saved = tuple(listed(config.get("modules_to_save"))) or None
    return cls.parse({**fields, "position_offset": None, "modules_to_save": saved}, "adapter_config.json")


class Prefix(KeyValueAdapter):
    """Keys and values [2, H, P, K] of one attention."""

    def __init__(self, method: PrefixMethod, prefix: Tensor) -> None:
        super().__init__()
        self.offset = method.num_virtual_tokens if method.position_offset is None else method.position_offset
        self.prefix = nn.Parameter(prefix)
        self.gate = nn.Parameter(torch.zeros(prefix.shape[1], 1, 1)) if method.use_gating else None
        self.dropout = nn.Dropout(method.prefix_dropout)

    def forward(self, rows: int, source: Attended) -> tuple[Tensor, Tensor]:
        """The same keys and values for every row."""
        return spread(self.prefix, self.gate, self.dropout, rows)


class Projection(Shared):
    """E [P, D] and the perceptron that makes all prefixes of it."""

    def __init__(self, method: PrefixMethod, width: int, outputs: int, rng: torch.Generator) -> None:
        super().__init__()
        hidden = method.encoder_hidden_size
        self.embeddings = nn.Parameter(torch.empty(method.num_virtual_tokens, width).normal_(generator=rng))
        self.inner_weight = nn.Parameter(torch.empty(hidden, width).normal_(0, width**-0.5, generator=rng))
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        self.outer_weight = nn.Parameter(torch.empty(outputs, hidden).normal_(0, 0.02 * hidden**-0.5, generator=rng))
        self.outer_bias = nn.Parameter(torch.zeros(outputs))
        self.taken = 0

    def take(self, size: int) -> slice:
        """The next outputs, for one attention."""
        self.taken += size
        return slice(self.taken - size, self.taken)

    def forward(self, part: slice) -> Tensor:
        """W_2 tanh(W_1 E + b_1) + b_2 for some outputs, [P, outputs]."""
        inner = torch.tanh(nn.functional.linear(self.embeddings, self.inner_weight, self.inner_bias))
        return nn.functional.linear(inner, self.outer_weight[part], self.outer_bias[part])

    def folded(self) -> None:
        """Nothing: the prefixes can do without."""
        return None


class ProjectedPrefix(KeyValueAdapter):
    """Keys and values of one attention, computed by the perceptron that all share."""

    def __init__(self, method: PrefixMethod, site: AttentionSite, shared: Projection) -> None:
        super().__init__()
        self.shared, self.method = shared, method
        self.shape = (method.num_virtual_tokens, 2, site.key_value_heads, site.head_width)
        self.part = shared.take(2 * site.key_value_heads * site.head_width)
        self.offset = method.num_virtual_tokens if method.position_offset is None else method.position_offset
        self.gate = nn.Parameter(torch.zeros(site.key_value_heads, 1, 1)) if method.use_gating else None
        self.dropout = nn.Dropout(method.prefix_dropout)

    def prefix(self) -> Tensor:
        """[2, H, P, K]."""
        found: Tensor = self.shared(self.part)
        return found.view(self.shape).permute(1, 2, 0, 3)

    def forward(self, rows: int, source: Attended) -> tuple[Tensor, Tensor]:
        """The same keys and values for every row."""
        return spread(self.prefix(), self.gate, self.dropout, rows)

    @torch.no_grad()
    def folded(self) -> Prefix:
        """The computed keys and values."""
        plain = Prefix(self.method, self.prefix().contiguous())
        if plain.gate is not None and self.gate is not None:
            plain.gate.copy_(self.gate)
        return plain


def spread(prefix: Tensor, gate: Tensor | None, dropout: nn.Module, rows: int) -> tuple[Tensor, Tensor]:
    """Keys and values [rows, H, P, K] without a copy, from [2, H, P, K]."""
    scaled = dropout(prefix if gate is None else prefix * torch.sigmoid(gate))
    return scaled[0].expand(rows, -1, -1, -1), scaled[1].expand(rows, -1, -1, -1)


def _kind(site: AttentionSite) -> str:
    if site.role == "cross":
        return "cross"
    return "encoder" if site.stack == "encoder" else "decoder"


def _width(sites: Sequence[AttentionSite]) -> int:
    width: int = sum(2 * site.key_value_heads * site.head_width for site in sites)
    return width
