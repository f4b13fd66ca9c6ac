"""OFT: every input of a layer is turned by an orthogonal matrix made of small blocks.

    y = W (x R) + b        R = diag(R_1, ..., R_N),  R_n = (1 - Q_n) (1 + Q_n)^-1,  Q_n skew-symmetric

Shapes   W [O, I]   Q [N, K, K] with N K = I, stored as the K (K - 1) / 2 entries above each diagonal
Trains   N K (K - 1) / 2 values per layer: I (K - 1) / 2, whatever the outputs
Start    Q = 0, R = 1: the output is the base's, exactly
Merge    W R^T, exact up to rounding
Note     x is turned block by block; neither R nor W R^T is built while training. The norms
         of the rows of W and the angles between them stay
Paper    Qiu et al. 2023, arXiv:2306.07280; turning x instead of W: Qiu et al. 2025, arXiv:2506.19847
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.method import Can
from deltatune.core.site import Base, LayerAdapter, LayerSite
from deltatune.core.targeted import TargetedMethod, read_targets
from deltatune.ops import orthogonal

DEFAULT_BLOCK = 32
SERIES_SINCE = "0.18.0"
"""First version of peft whose series is ours; it warns about files that do not name theirs."""


class OFT(TargetedMethod):
    """Settings of OFT; names as in peft's `OFTConfig`."""

    type: ClassVar[str] = "oft"
    title: ClassVar[str] = "OFT"
    paper: ClassVar[str] = "Qiu et al. 2023, arXiv:2306.07280"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 2e-3
    peft_type: ClassVar[str | None] = "OFT"
    aliases: ClassVar[Mapping[str, str]] = {**TargetedMethod.aliases, "block_size": "oft_block_size"}

    oft_block_size: Annotated[int, Field(ge=2)] | None = None
    """K, or the divisor of a layer's inputs that is nearest to it; none means 32, or what `r` says."""
    r: Annotated[int, Field(ge=1)] | None = None
    """N, or the divisor of a layer's inputs that is nearest to it, in place of a block size."""
    block_share: bool = False
    """One block for all parts of the inputs of a layer."""
    use_cayley_neumann: bool = False
    """The series that peft uses by default in place of the Cayley transform; R is then nearly orthogonal only."""
    num_cayley_neumann_terms: Annotated[int, Field(ge=3, le=64)] = 5
    """Terms of that series."""

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Blocks."""
        return [{"oft_block_size": size, "r": None} for size in (8, 16, 32, 64)]

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for what is no matrix of its own, and for blocks without an angle."""
        if site.kind in ("embedding", "conv") or site.copies:
            raise SettingsError(f"OFT is for linear layers, and {site.path} is none", hint="leave it out, or use lora")
        if self.r is not None and self.oft_block_size is not None:
            raise SettingsError(f"r={self.r} and oft_block_size={self.oft_block_size} both say the size of a block")
        if self.block(site) < 2:
            raise SettingsError(
                f"blocks of size 1 cannot turn anything (at {site.path} with {site.in_features} inputs)"
            )

    def block(self, site: LayerSite) -> int:
        """K at a site."""
        if self.r is not None:
            return site.in_features // nearest_divisor(site.in_features, self.r)
        return nearest_divisor(site.in_features, self.oft_block_size or DEFAULT_BLOCK)

    def shape(self, site: LayerSite) -> tuple[int, int]:
        """Blocks, and values in each, at a site."""
        size = self.block(site)
        return 1 if self.block_share else site.in_features // size, size * (size - 1) // 2

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> "OFTAdapter":
        """The blocks of one layer."""
        terms = self.num_cayley_neumann_terms if self.use_cayley_neumann else None
        return OFTAdapter(self.shape(site), self.block(site), terms)

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of N K (K - 1) / 2."""
        return sum(blocks * values for blocks, values in map(self.shape, sites))

    # -- peft's format

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `OFTConfig`."""
        return {
            "r": self.r or 0,
            "oft_block_size": 0 if self.r else self.oft_block_size or DEFAULT_BLOCK,
            "block_share": self.block_share,
            "use_cayley_neumann": self.use_cayley_neumann,
            "num_cayley_neumann_terms": self.num_cayley_neumann_terms,
            "peft_version": SERIES_SINCE,
            "module_dropout": 0.0,
            "coft": False,
            "bias": "none",
            "init_weights": True,
            "fan_in_fan_out": bool(sites) and all(site.kind == "conv1d" for site in sites),
            "target_modules": sorted(site.path for site in sites),
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "OFT | None":
        """Settings of an OFT folder; raises `AdapterError` for variants we lack, None for other formats."""
        if config.get("peft_type") != cls.peft_type:
            return None
        if config.get("coft") or config.get("bias", "none") != "none":
            raise AdapterError("adapter_config.json: coft=true and trained biases are variants of OFT, not supported")
        if "oft_block_size" not in config:
            raise AdapterError("adapter_config.json: written by peft before 0.14, whose OFT was another one")
        if config.get("use_cayley_neumann") and _version(config.get("peft_version")) < _version(SERIES_SINCE):
            raise AdapterError("adapter_config.json: written by peft before 0.18, whose series was another one")
        plain = ("r", "oft_block_size", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms")
        fields = {key: config[key] for key in plain if config.get(key)}  # peft's 0 means that the other one counts
        return cls.parse(fields | read_targets(config), "adapter_config.json")

    def to_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`oft_R.weight`."""
        return {"oft_R.weight": tensors["oft_R"]}

    def of_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's."""
        return {"oft_R": tensors["oft_R.weight"]}


class OFTAdapter(LayerAdapter):
    """The entries above the diagonals of Q of one layer."""

    def __init__(self, shape: tuple[int, int], size: int, terms: int | None) -> None:
        super().__init__()
        self.size, self.terms = size, terms
        self.oft_R = nn.Parameter(torch.zeros(shape))

    def changes(self, inputs: int) -> Tensor:
        """R_n - 1, [1, N, K, K]."""
        skew = orthogonal.skew(self.oft_R, self.size)
        change = orthogonal.cayley(skew) if self.terms is None else orthogonal.neumann(skew, self.terms)
        return change.expand(inputs // self.size, -1, -1).unsqueeze(0)

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """The base's output for the turned input."""
        return base(orthogonal.turn(x, self.changes(x.shape[-1])))

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """W R^T: the rows of W, turned back."""
        weight = base.weight
        return orthogonal.turn_back(weight, self.changes(weight.shape[-1])), base.bias


def nearest_divisor(size: int, wanted: int) -> int:
    """The divisor of a size that is nearest to a number, the smaller one of two; as peft adjusts block sizes.

    >>> nearest_divisor(768, 32), nearest_divisor(768, 40), nearest_divisor(100, 32), nearest_divisor(5, 9)
    (32, 32, 25, 5)
    """
    return min((n for n in range(1, size + 1) if size % n == 0), key=lambda n: (abs(n - wanted), n))


def _version(text: str | None) -> tuple[int, ...]:
    """The first two numbers; none counts as the oldest."""
    numbers = (text or "0.0").split(".")[:2]
    return tuple(int(number) if number.isdigit() else 0 for number in numbers)
