"""BOFT: OFT with a product of block rotations, wired like a butterfly, in place of one.

    y = s * (W (x R)) + b        R = B_M ... B_1,  B_m = P_m diag(R_m1, ..., R_mN) P_m^T
    R_mn = (1 - Q_mn) (1 + Q_mn)^-1,  Q_mn skew-symmetric,  P_m a fixed order

Shapes   W [O, I]   Q [M, N, K, K] with N K = I, stored as the K (K - 1) / 2 entries above each diagonal   s [O]
Trains   M I (K - 1) / 2 + O values per layer; after M factors K 2^(M - 1) inputs have met each other
Start    Q = 0, R = 1, s = 1: the output is the base's, exactly
Merge    s * (W R^T), exact up to rounding
Note     x is turned by blocks of K 2^(M - 1) inputs, within which R acts, or factor by factor where these are large;
         R is never built. Block n of B_m joins halves of blocks that are 2^(m - 1) half blocks apart. peft trains Q as
         a full matrix, of which only the skew part counts
Paper    Liu et al. 2023, arXiv:2311.06243
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

DEFAULT_BLOCK = 4


class BOFT(TargetedMethod):
    """Settings of BOFT; names as in peft's `BOFTConfig`."""

    type: ClassVar[str] = "boft"
    title: ClassVar[str] = "BOFT"
    paper: ClassVar[str] = "Liu et al. 2023, arXiv:2311.06243"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 2e-3
    peft_type: ClassVar[str | None] = "BOFT"
    aliases: ClassVar[Mapping[str, str]] = {**TargetedMethod.aliases, "block_size": "boft_block_size"}

    boft_block_size: Annotated[int, Field(ge=2)] | None = None
    """K; none means 4, or what `boft_block_num` says."""
    boft_block_num: Annotated[int, Field(ge=1)] | None = None
    """N, in place of a block size."""
    boft_n_butterfly_factor: Annotated[int, Field(ge=1, le=16)] = 2
    """M; 1 is OFT with a scale."""

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Blocks."""
        return [{"boft_block_size": size, "boft_block_num": None} for size in (2, 4, 8)]

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for what is no matrix of its own, and for sizes that do not fit."""
        if site.kind in ("embedding", "conv") or site.copies:
            raise SettingsError(f"BOFT is for linear layers, and {site.path} is none", hint="leave it out, or use lora")
        if self.boft_block_num is not None and self.boft_block_size is not None:
            raise SettingsError(
                f"boft_block_num={self.boft_block_num} and boft_block_size={self.boft_block_size} both say the size"
            )
        size, factors, inputs = self.block(site), self.boft_n_butterfly_factor, site.in_features
        if size < 2 or inputs % (size * 2 ** (factors - 1)) or (factors > 1 and size % 2):
            raise SettingsError(
                f"{factors} butterfly factors with blocks of size {size} do not fit the {inputs} inputs of {site.path}",
                hint=f"the size times 2^{factors - 1} has to divide the inputs, and be even where factors are several",
            )

    def block(self, site: LayerSite) -> int:
        """K at a site; 0 where `boft_block_num` does not divide the inputs."""
        if self.boft_block_num is None:
            return self.boft_block_size or DEFAULT_BLOCK
        return 0 if site.in_features % self.boft_block_num else site.in_features // self.boft_block_num

    def shape(self, site: LayerSite) -> tuple[int, int, int]:
        """Factors, blocks, and values in each, at a site."""
        size = self.block(site)
        return self.boft_n_butterfly_factor, site.in_features // size, size * (size - 1) // 2

    def build(self, site: LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> "BOFTAdapter":
        """The blocks and the scale of one layer."""
        return BOFTAdapter(self.shape(site), self.block(site), site.out_features)

    def count(self, sites: Sequence[Any]) -> int:
        """The sum of M N K (K - 1) / 2 + O."""
        shapes = ((self.shape(site), site.out_features) for site in sites)
        return sum(factors * blocks * values + outputs for (factors, blocks, values), outputs in shapes)

    # -- peft's format

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `BOFTConfig`."""
        return {
            "boft_block_size": 0 if self.boft_block_num else self.boft_block_size or DEFAULT_BLOCK,
            "boft_block_num": self.boft_block_num or 0,
            "boft_n_butterfly_factor": self.boft_n_butterfly_factor,
            "boft_dropout": 0.0,
            "bias": "none",
            "init_weights": True,
            "fan_in_fan_out": bool(sites) and all(site.kind == "conv1d" for site in sites),
            "target_modules": sorted(site.path for site in sites),
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "BOFT | None":
        """Settings of a BOFT folder; raises `AdapterError` for trained biases, None for other formats."""
        if config.get("peft_type") != cls.peft_type:
            return None
        if config.get("bias", "none") != "none":
            raise AdapterError(f"adapter_config.json: bias={config['bias']!r} is a variant of BOFT, not supported")
        plain = ("boft_block_size", "boft_block_num", "boft_n_butterfly_factor")
        fields = {key: config[key] for key in plain if config.get(key)}  # peft's 0 means that the other one counts
        return cls.parse(fields | read_targets(config), "adapter_config.json")

    def to_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`boft_R` as whole matrices, `boft_s` as a column."""
        given, size = tensors["boft_R"], self.block(site)
        whole = orthogonal.skew(given.flatten(0, 1), size).view(*given.shape[:2], size, size)
        return {"boft_R": whole, "boft_s": tensors["boft_s"].unsqueeze(1)}

    def of_peft(self, site: LayerSite, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's: the skew part, and of it what is above the diagonal; peft may have made fewer factors."""
        whole = tensors["boft_R"]
        rows, columns = torch.triu_indices(whole.shape[-1], whole.shape[-1], 1).unbind()
        given = (0.5 * (whole - whole.mT))[:, :, rows, columns]
        missing = max(0, self.boft_n_butterfly_factor - len(given))
        return {
            "boft_R": nn.functional.pad(given, (0, 0, 0, 0, 0, missing)),
            "boft_s": tensors["boft_s"].flatten(),
        }


class BOFTAdapter(LayerAdapter):
    """The entries above the diagonals of Q, and s, of one layer."""

    def __init__(self, shape: tuple[int, int, int], size: int, outputs: int) -> None:
        super().__init__()
        self.size = size
        self.boft_R = nn.Parameter(torch.zeros(shape))
        self.boft_s = nn.Parameter(torch.ones(outputs))

    def changes(self) -> Tensor:
        """R_mn - 1, [M, N, K, K]."""
        factors, blocks, _ = self.boft_R.shape
        change = orthogonal.cayley(orthogonal.skew(self.boft_R.flatten(0, 1), self.size))
        return change.view(factors, blocks, self.size, self.size)

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """s times the base's output for the turned input, without its bias."""
        y = base(orthogonal.turn(x, self.changes()))
        growth = (self.boft_s - 1).to(y.dtype)
        return y + growth * (y if base.bias is None else y - base.bias)

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """s * (W R^T)."""
        weight = base.weight
        turned = orthogonal.turn_back(weight, self.changes())
        return turned * self.boft_s.to(weight.dtype).unsqueeze(1), base.bias
