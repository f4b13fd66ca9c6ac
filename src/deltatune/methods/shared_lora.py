"""Shared LoRA (Uni-LoRA): LoRA whose matrices read one short vector, every layer the same one.

    y = W x + b + B A drop(x)        entry g of A or B = theta[h(g)] / sqrt(n[h(g)]),  n[k] = entries that read theta[k]

Shapes   theta [d]   A [R, I]   B [O, R], written out in the call, never trained or stored
Trains   d values in all
Start    the first of theta, which only A reads, uniform so that A starts as LoRA's at the mean width; the rest, which
         only B reads, zero: the output is the base's, exactly
Merge    W + B A, exact up to rounding
Note     h maps the entries of A onto the first d_A values and those of B onto the others, in proportion to their
         numbers; both maps are balanced (`ops.hashing`), so theta -> (A, B) keeps lengths, as in the paper. The paper
         lets A and B share values; then neither can be zero and the start is not the base. With two parts the start
         is LoRA's own, and d = all entries is LoRA itself
Paper    Li et al. 2025, arXiv:2506.00799; hashed sharing: Desai and Shrivastava, ICLR 2024
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.low_rank import changed
from deltatune.core.method import Can, Sites, check_rank
from deltatune.core.site import Base, LayerAdapter, LayerSite, Shared
from deltatune.core.targeted import TargetedMethod, read_targets
from deltatune.ops import hashing, low_rank

ROOT = "base_model."
READERS = 20
"""Entries that read one value, where no length is given."""


class SharedLoRA(TargetedMethod):
    """Settings of shared LoRA; names as in peft's `UniLoraConfig`."""

    aliases: ClassVar[Mapping[str, str]] = {
        **TargetedMethod.aliases,
        "rank": "r",
        "seed": "proj_seed",
        "theta_length": "theta_d_length",
        "dropout": "unilora_dropout",
        "lora_dropout": "unilora_dropout",
    }

    type: ClassVar[str] = "shared-lora"
    title: ClassVar[str] = "shared LoRA"
    paper: ClassVar[str] = "Li et al. 2025, arXiv:2506.00799"
    can: ClassVar[Can] = Can(merge=True)
    learning_rate: ClassVar[float] = 3e-2
    peft_type: ClassVar[str | None] = "UNILORA"

    r: Annotated[int, Field(ge=1, le=4096)] = 4
    """Rank; it costs no trained values."""
    theta_d_length: Annotated[int, Field(ge=2)] | None = None
    """d, all that is trained; none means one value for 20 entries of all A and B, about what the paper takes."""
    proj_seed: int = 42
    """Seed of the map from entries to values."""
    hash: Literal["splitmix64-balanced"] = "splitmix64-balanced"
    """How the map is drawn: SplitMix64 of seed, partition and entry, the same on every machine."""
    save_indices: bool = False
    """Keep the map in the file: far larger, readable by peft, and a map of peft's stays what it is."""
    unilora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on what A reads, while training."""

    def sites(self, model: Sites) -> Sequence[LayerSite]:
        """The targeted layers; raises `SettingsError` for more values than there are entries."""
        found = super().sites(model)
        entries = self.entries(found)
        if self.length(found) > entries:
            raise SettingsError(
                f"theta_d_length={self.theta_d_length} is more than the {entries} entries of all A and B (r={self.r})",
                hint=f"{entries} is LoRA itself; try {max(2, entries // 16)}",
            )
        return found

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Ranks."""
        return [{"r": r} for r in (2, 4, 8, 16)]

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` for a rank that does not fit and for grouped convolutions."""
        super().check(site)
        check_rank(self.title, self.r, site)

    def shapes(self, site: LayerSite) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B at a site."""
        copies = (site.copies,) if site.copies else ()
        return (*copies, self.r, site.in_features, *site.kernel), (*copies, site.out_features, self.r)

    def entries(self, sites: Sequence[LayerSite]) -> int:
        """Of all A and B."""
        return sum(math.prod(shape) for site in sites for shape in self.shapes(site))

    def length(self, sites: Sequence[LayerSite]) -> int:
        """d."""
        return self.theta_d_length or max(2, self.entries(sites) // READERS)

    def share(self, sites: Sequence[Any], rng: torch.Generator) -> "Theta":
        """The vector and the map."""
        return Theta(self, sites, rng)

    def build(
        self, site: LayerSite, origin: Callable[[], Tensor], shared: "Theta", rng: torch.Generator
    ) -> "SharedLoRAAdapter":
        """A and B of one layer, as places in the vector."""
        return SharedLoRAAdapter(self, site, shared)

    def count(self, sites: Sequence[Any]) -> int:
        """d."""
        return self.length(sites)

    def materialized(self) -> Mapping[str, Any]:
        """The LoRA with the same matrices."""
        same = ("r", "target_modules", "exclude_modules", "layers_to_transform", "modules_to_save")
        plain = {"type": "lora", "lora_alpha": self.r, "lora_dropout": self.unilora_dropout}
        return plain | {key: value for key, value in self.model_dump(include=set(same)).items() if value is not None}

    # -- peft's format, which needs the map in the file

    def for_peft(self, sites: Sequence[Any]) -> bool:
        """With the map, on linear layers: peft draws another map, and changes no other layers."""
        return self.save_indices and all(site.kind in ("linear", "conv1d") for site in sites)

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `UniLoraConfig`."""
        return {
            **self.model_dump(include={"r", "proj_seed", "save_indices", "unilora_dropout"}),
            "theta_d_length": self.length(sites),
            "target_modules": sorted(site.path for site in sites),
            "fan_in_fan_out": any(site.kind == "conv1d" for site in sites),
            "bias": "none",
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "SharedLoRA | None":
        """Settings of a UNILORA folder; None for other formats; raises `AdapterError` when it has no map."""
        if config.get("peft_type") != cls.peft_type:
            return None
        if not config.get("save_indices"):
            raise AdapterError(
                "adapter_config.json: save_indices=False: the map from entries to values is not in the file, and numpy "
                "promises no other version of itself to draw it again",
                hint="load the folder with the peft and numpy that wrote it and save it with save_indices=True",
            )
        if config.get("bias") not in (None, "none"):
            raise AdapterError(f"adapter_config.json: bias={config['bias']!r}: trained biases of UNILORA do not load")
        plain = ("r", "theta_d_length", "proj_seed", "save_indices", "unilora_dropout")
        return cls.parse(
            {key: config[key] for key in plain if config.get(key) is not None} | read_targets(config),
            "adapter_config.json",
        )

    def to_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The vector once, and at every layer the places and scales of its entries."""
        if not self.save_indices:
            return None
        found = {f"{ROOT}unilora_theta_d": tensors["shared.theta"]}
        for site in sites:
            for name in "AB":
                places = tensors[f"{site.path}.index_{name}"].long()
                found[f"{ROOT}model.{site.path}.unilora_indices_{name}"] = places
                found[f"{ROOT}model.{site.path}.unilora_scales_{name}"] = tensors["shared.scale"][places]
        return found

    def of_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Ours from peft's; raises `AdapterError` for places outside of the vector."""
        if not self.save_indices:
            return None
        scale = torch.zeros(self.length(sites))
        found = {"shared.theta": tensors[f"{ROOT}unilora_theta_d"], "shared.scale": scale}
        for site in sites:
            for name in "AB":
                key = f"{ROOT}model.{site.path}.unilora_indices_{name}"
                places, scales = tensors[key], tensors[key.replace("indices", "scales")]
                if places.is_floating_point() or not 0 <= int(places.min()) <= int(places.max()) < len(scale):
                    raise AdapterError(f"adapter tensor {key} has places outside of 0..{len(scale) - 1}")
                scale[places.flatten().long()] = scales.flatten().float()
                found[f"{site.path}.index_{name}"] = places.to(torch.int32)
        return found


class Theta(Shared):
    """The vector, and for each of its values 1 / sqrt(n)."""

    def __init__(self, method: SharedLoRA, sites: Sequence[LayerSite], rng: torch.Generator) -> None:
        super().__init__()
        self.maps = _maps(method, sites)
        count = torch.bincount(torch.cat([places.flatten() for pair in self.maps.values() for places in pair]))
        self.register_buffer("scale", count.float().rsqrt(), persistent=method.save_indices)
        theta = torch.zeros(method.length(sites), device="cpu")
        read_by_a = 1 + max(int(a.max()) for a, _ in self.maps.values())
        width = sum(site.in_features * math.prod(site.kernel) for site in sites) / len(sites)
        theta[:read_by_a].uniform_(-1, 1, generator=rng).mul_((count[:read_by_a] / width).sqrt())
        self.theta = nn.Parameter(theta)

    def read(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """The entries at these places."""
        scaled = self.theta * self.get_buffer("scale")
        return scaled.index_select(0, places.flatten()).view(places.shape).to(dtype)


def _maps(method: SharedLoRA, sites: Sequence[LayerSite]) -> dict[str, tuple[Tensor, Tensor]]:
    """Places of A and B in theta by path: entries count row by row, site by site in the order of their paths."""
    ordered = sorted(sites, key=lambda site: site.path)
    shapes = [method.shapes(site) for site in ordered]
    of_a, of_b = ([math.prod(pair[side]) for pair in shapes] for side in (0, 1))
    d, share = method.length(sites), sum(of_a) / (sum(of_a) + sum(of_b))
    d_a = min(max(round(d * share), 1), d - 1)
    a = torch.split(hashing.balanced(sum(of_a), d_a, method.proj_seed).to(torch.int32), of_a)
    b = torch.split((d_a + hashing.balanced(sum(of_b), d - d_a, method.proj_seed + 1)).to(torch.int32), of_b)
    return {site.path: (a[i].view(shapes[i][0]), b[i].view(shapes[i][1])) for i, site in enumerate(ordered)}


class SharedLoRAAdapter(LayerAdapter):
    """Places of A and B of one layer."""

    def __init__(self, method: SharedLoRA, site: LayerSite, shared: Theta) -> None:
        super().__init__()
        self.shared = shared
        for name, places in zip("AB", shared.maps.pop(site.path), strict=True):
            self.register_buffer(f"index_{name}", places.clone(), persistent=method.save_indices)
        self.dropout = nn.Dropout(method.unilora_dropout) if site.kind != "embedding" else nn.Identity()

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B."""
        return (
            self.shared.read(self.get_buffer("index_A"), dtype),
            self.shared.read(self.get_buffer("index_B"), dtype),
        )

    def materialized(self, condition: Tensor) -> dict[str, Tensor]:
        """A and B of the LoRA that does the same."""
        a, b = self.factors(torch.float32)
        return {"lora_A": a.detach(), "lora_B": b.detach()}

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """The base's output plus B A x, computed in the base's dtype."""
        return changed(x, base, self.factors, self.dropout)

    def merged(self, base: Base) -> tuple[Tensor, Tensor | None]:
        """W + B A."""
        weight = base.weight
        a, b = self.factors(weight.dtype)
        return weight + low_rank.matrix(b, a, weight.shape), base.bias
