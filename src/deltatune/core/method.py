"""Method: the settings of a technique and the mathematics it puts at its sites.

A method file holds one frozen settings class, its adapter module(s) and its parameter count. Finding sites, freezing,
naming, routing, switching, merging, saving and dtype live in the engine, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from deltatune.core.config import Settings
from deltatune.core.errors import SettingsError
from deltatune.core.site import (
    AttentionSite,
    InputSite,
    LayerSite,
    ParameterSite,
    Shared,
    SideSite,
    Site,
    SiteAdapter,
    SublayerSite,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Can:
    """What a method can do; the contract tests take it at its word, refusals included."""

    merge: bool = False
    """Folds into the weights of the base, exactly up to rounding."""
    rows: bool = True
    """Another adapter for each row of a batch."""
    mix: bool = True
    """`Stack` and `Average` with others."""
    quantised_base: bool = True
    """Works when the base's weights are quantised."""
    identity: float | None = 0.0
    """Largest change of an output right after attaching: 0 exact, None when the start is not the base."""


class Sites(Protocol):
    """What a method may ask of a model; the anatomy answers."""

    def layers(self, targets: "Targets", exclude: "Targets" = None) -> Sequence[LayerSite]:
        """Linear maps named by role, glob or path; raises when a target matches nothing."""

    def sublayers(self, roles: Sequence[str]) -> Sequence[SublayerSite]:
        """Sublayer outputs of these roles, in the order of the blocks."""

    def attentions(self, roles: Sequence[str]) -> Sequence[AttentionSite]:
        """Attention modules, in the order of the blocks."""

    def inputs(self) -> Sequence[InputSite]:
        """Embedded tokens of the stacks that read tokens, the encoder first."""

    def parameters(self, roles: Sequence[str] = (), targets: "Targets" = None) -> Sequence[ParameterSite]:
        """Tensors of these roles inside these targets; no role means all, no target the whole model."""

    def side(self) -> SideSite:
        """The main stack for a side network."""


Targets = str | Sequence[str] | None
"""`all-linear`, a role (`attention`, `mlp`, `attention.query`, `head`), a glob, a path, or a list of these."""


@dataclass(frozen=True, slots=True)
class Placed:
    """What a method built on one model: a module per site path, and what those modules share."""

    sites: Mapping[str, SiteAdapter]
    shared: Shared | None = None

    def modules(self) -> Iterator[SiteAdapter]:
        """The site adapters, in the order of their sites."""
        return iter(self.sites.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How one trained tensor moves, against the settings of the run."""

    rate: float = 1.0
    """Factor on the learning rate."""
    decay: bool | None = None
    """Whether weight decay pulls it to zero; None: matrices are, vectors are not."""
    outer: bool = False
    """The factor on the output's side, which LoRA+ trains faster."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands, after an optimizer step."""

    step: int
    """Optimizer steps done, from 1."""
    total: int | None = None
    """Optimizer steps in all, when the loop has said so."""
    optimizer: torch.optim.Optimizer | None = None
    """The optimizer that made the step."""


class Method(Settings, ABC):
    """Settings of a technique. Subclasses are final, one per file, named in `type`."""

    aliases: ClassVar[Mapping[str, str]] = {"lora_target": "target_modules", "targets": "target_modules"}

    type: ClassVar[str]
    """Name in the settings; equal to the file name, with `-` for `_`."""
    title: ClassVar[str]
    """The technique's name in the literature."""
    paper: ClassVar[str]
    """Authors, year, arXiv number."""
    unsaid: ClassVar[Mapping[str, Any]] = {}
    """What settings were in the adapters of versions that did not name them, where that is not the default."""
    can: ClassVar[Can]
    learning_rate: ClassVar[float]
    """Peak AdamW rate that works without tuning; about ten times that of full fine-tuning for most methods."""
    head_rate: ClassVar[float] = 3e-3
    """Most that a head learns at beside the adapter, when that learns at the method's own rate.

    Rates that suit prefixes and scales (1e-2 and more) throw a head about."""
    peft_type: ClassVar[str | None] = None
    """Name of the format in peft, when it has one."""
    peft_root: ClassVar[str] = "base_model.model."
    """Before the names of modules saved whole, in peft's files."""

    modules_to_save: tuple[str, ...] | None = None
    """Modules trained whole and kept with the adapter (a new classification head); roles, globs or paths."""

    @abstractmethod
    def sites(self, model: Sites) -> Sequence[Site]:
        """Where the method acts on this model; raises `SettingsError` when it has no place there."""

    @abstractmethod
    def build(self, site: Any, origin: Callable[[], Tensor], shared: Any, rng: torch.Generator) -> SiteAdapter:
        """The module for one site, in float32 on the CPU; every random value comes from `rng`.

        `origin()` is the base's tensor there: [O, I, *kernel] at a layer site, as stored at a parameter site, the
        token table [V, D] at an input site.
        """

    @abstractmethod
    def count(self, sites: Sequence[Any]) -> int:
        """Trained parameters by the closed form of the paper, without building anything."""

    def share(self, sites: Sequence[Any], rng: torch.Generator) -> Shared | None:
        """What all sites of this adapter share (a common matrix, a vector bank); saved once."""
        return None

    def reads(self) -> Sequence[str]:
        """Names of attached adapters that this one works on; they stay as they are and are saved along."""
        return ()

    def reading(self, names: Sequence[str]) -> "Method":
        """The settings with these names for the adapters of `reads`, in the same order."""
        return self

    def members(self) -> Sequence["Method"]:
        """Methods that are attached, trained and saved along with this one, each on top of those before."""
        return ()

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Settings of other sizes worth trying, each with what has to change along; none where there is no size."""
        return ()

    def worded(self, encode: Callable[[str], list[int]], labels: Sequence[str]) -> "Method":
        """The settings with texts and labels replaced by token ids, for a method that starts from words."""
        return self

    def for_tasks(self, number: int) -> "Method":
        """The settings for rows of this many tasks; raises `SettingsError` where they have room for fewer."""
        return self

    def pace(self, name: str) -> Pace:
        """How the tensor of this name (inside its site, or `shared.<name>`) is trained."""
        return Pace()

    def penalty(self, placed: Placed) -> Tensor | None:
        """A term of the loss that depends on the adapter alone."""
        return None

    def ready(self, progress: Progress) -> bool:
        """Whether an adapter at this point is one to keep; a method with phases says no until the last."""
        return True

    def after_step(self, placed: Placed, progress: Progress) -> None:
        """Called after every optimizer step, whichever loop trains; the place for phases and growing masks."""

    def check_condition(self, condition: Tensor) -> None:
        """Raises `AdapterError` for task ids [B] or vectors [B, C] that the adapter cannot take; most look at none."""
        return None

    def materialized(self) -> Mapping[str, Any] | None:
        """Settings, with `type`, of the plain method this one becomes for a condition; None when it is plain."""
        return None

    # -- peft's format

    def for_peft(self, sites: Sequence[Any]) -> bool:
        """Whether peft reads a file of these settings on these sites."""
        return self.peft_type is not None

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """Keys of peft's `adapter_config.json` besides those every adapter has."""
        return {}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "Method | None":
        """Settings from peft's `adapter_config.json`; None when the file describes another method."""
        return None

    def to_peft(self, site: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors at one site under peft's names and shapes."""
        return dict(tensors)

    def of_peft(self, site: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `to_peft`."""
        return dict(tensors)

    def to_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """All tensors of a format that does not go by site; None when `to_peft` says it all.

        Ours are `<site path>.<name>` and `shared.<name>`, peft's the exact keys of the file.
        """
        return None

    def of_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The inverse of `to_peft_file`; raises `KeyError` with the name of a tensor that is missing."""
        return None


def check_rank(method: str, rank: int, site: LayerSite) -> None:
    """Raises when a rank does not fit a site.

    The bound is min(I, O): a larger rank costs more than the matrix it changes and adds nothing.
    """
    bound = min(site.in_features, site.out_features)
    if not 1 <= rank <= bound:
        raise SettingsError(
            f"rank r={rank} is not allowed for {method} (1..{bound} for {site.path})", hint=f"try r={min(8, bound)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """An adapter as it travels between engine and store: settings, sites by path, tensors by name."""

    name: str
    method: Method
    base_model: str | None
    tensors: Mapping[str, Tensor]
    """`<site path>.<name>` for sites, `shared.<name>`, and `<parameter path>` for modules saved whole."""
    sites: Sequence[Site]
    saved: Sequence[str] = ()
    """Parameter paths of `modules_to_save`."""
    saved_modules: Sequence[str] = ()
    """The outermost modules these parameters make up."""
    parts: Sequence["AdapterFile"] = ()
    """The adapters this one reads or consists of."""
    fingerprint: str = ""
    task_type: Literal["SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a task adds: labels, maximum length, metrics."""
