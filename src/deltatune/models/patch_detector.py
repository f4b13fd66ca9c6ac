"""Patch detector: a pretrained vision backbone and a small head in which every patch answers with one box.

    tokens     what the backbone makes of the patches of an image, without CLS and registers
    exchange   one transformer block in which the patches agree on which of them answers for an object
    classes    a linear map, one yes or no per class
    box        sigmoid(logit(place of the patch) + MLP): centre and size in shares of the image

A set-prediction head as DETR's, with the queries of two-stage detectors: each comes from a place in the image, so
nothing has to learn where to look. The heads answer twice, before the exchange and behind it, as RT-DETR's encoder and
decoder do.

Shapes   B images, H x W grid of patches, Q = H W answers, D width of the head, C classes
Papers   Carion et al. 2020, arXiv:2005.12872 (sets); Zhu et al. 2021, arXiv:2010.04159, and Zhao et al. 2023,
         arXiv:2304.08069 (queries from the image's tokens, boxes from reference points)
Differs  all tokens are queries, one block, no attention back to the tokens
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from deltatune.core.errors import SettingsError

RARE = 0.01
"""Chance of a class that a fresh head answers with everywhere (Lin et al. 2017, arXiv:1708.02002)."""
PATCHES = 2.0
"""Side of the box that a fresh head answers with, in patches."""
MOST_EXTRA = 16
"""Most tokens beside the patches that a backbone may have (CLS, registers)."""


class PatchDetectorConfig(PreTrainedConfig):  # type: ignore[misc]
    """The backbone and the sizes of the head."""

    model_type = "patch-detector"
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    width: int = 128
    attention_heads: int = 4
    """Of the head; its width is a multiple of 4 and of the heads."""

    def __post_init__(self, **kwargs: Any) -> None:
        """The config of the backbone as an object, as a file has it as a mapping."""
        if isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        super().__post_init__(**kwargs)

    @property
    def backbone_width(self) -> int:
        """Width of what leaves the backbone."""
        config: Any = self.backbone_config
        sizes = getattr(config, "hidden_sizes", None)
        return int(sizes[-1] if sizes else config.hidden_size)

    @property
    def patch_side(self) -> int | None:
        """Side of the backbone's patches in pixels, where it has one."""
        side = getattr(self.backbone_config, "patch_size", None)
        return side if isinstance(side, int) else None


@dataclass
class PatchDetectorOutput(ModelOutput):  # type: ignore[misc]
    """As RT-DETR's: the answers, and those of the patches before the exchange."""

    logits: Tensor | None = None
    """[B, Q, C]"""
    pred_boxes: Tensor | None = None
    """[B, Q, 4], centre and size."""
    enc_topk_logits: Tensor | None = None
    enc_topk_bboxes: Tensor | None = None
    last_hidden_state: Tensor | None = None


class Exchange(nn.Module):
    """A pre-norm block of self-attention and MLP; places [Q, D] are added to queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_before = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.norm_after = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x_BQD: Tensor, places_QD: Tensor) -> Tensor:
        """The same shape."""
        normed = self.norm_before(x_BQD)
        placed = normed + places_QD
        query, key, value = (self._split(t) for t in (self.query(placed), self.key(placed), self.value(normed)))
        mixed_BQD = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x_BQD = x_BQD + self.output(mixed_BQD)
        found: Tensor = x_BQD + self.down(F.gelu(self.up(self.norm_after(x_BQD))))
        return found

    def _split(self, x_BQD: Tensor) -> Tensor:
        batch, count, width = x_BQD.shape
        return x_BQD.view(batch, count, self.heads, width // self.heads).transpose(1, 2)


class PatchDetector(PreTrainedModel):  # type: ignore[misc]
    """Any backbone of `transformers` that reads images, with the head."""

    config_class = PatchDetectorConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PatchDetectorConfig, backbone: nn.Module | None = None) -> None:
        """A fresh head on a backbone, given or fresh too."""
        super().__init__(config)
        width = config.width
        self.backbone = (
            AutoModel.from_config(config.backbone_config, trust_remote_code=False) if backbone is None else backbone
        )
        self.neck = nn.Sequential(nn.Linear(config.backbone_width, width), nn.LayerNorm(width))
        self.exchange = Exchange(width, config.attention_heads)
        self.class_head = nn.Linear(width, config.num_labels)
        self.box_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))
        takes = inspect.signature(self.backbone.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier's as in DETR; a fresh head answers rarely, with boxes of a common size around each patch."""
        if isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        if module is self.class_head:
            init.constant_(module.bias, math.log(RARE / (1 - RARE)))
        elif module is self.box_head[-1]:
            init.zeros_(module.weight)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> PatchDetectorOutput:
        """Answers for images [B, channels, height, width]."""
        height, width = pixel_values.shape[-2:]
        features = self.backbone(pixel_values=pixel_values, **self.options, **kwargs).last_hidden_state
        tokens_BQE, grid = patches(features, height, width, self.config.patch_side)
        start_Q4 = starts(*grid, device=tokens_BQE.device)
        places_QD = waves(start_Q4[:, :2], self.config.width).to(tokens_BQE.dtype)
        alone_BQD = self.neck(tokens_BQE)
        agreed_BQD = self.exchange(alone_BQD, places_QD)
        return PatchDetectorOutput(
            logits=self.class_head(agreed_BQD),
            pred_boxes=self._boxes(agreed_BQD, start_Q4),
            enc_topk_logits=self.class_head(alone_BQD),
            enc_topk_bboxes=self._boxes(alone_BQD, start_Q4),
            last_hidden_state=agreed_BQD,
        )

    def _boxes(self, x_BQD: Tensor, start_Q4: Tensor) -> Tensor:
        moved: Tensor = torch.logit(start_Q4) + self.box_head(x_BQD).float()
        return moved.sigmoid()


def patches(features: Tensor, height: int, width: int, side: int | None) -> tuple[Tensor, tuple[int, int]]:
    """Tokens of the patches [B, H W, E] row by row, and their grid, from maps [B, E, H, W] or tokens [B, T, E].

    `side` is that of a patch in pixels, where it is known; other tokens stand in front. Raises `SettingsError` for
    tokens that are no grid of such an image.

    >>> patches(torch.zeros(1, 1 + 12, 8), height=42, width=56, side=14)[1]
    (3, 4)
    """
    if features.dim() == 4:
        return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])
    count = features.shape[1]
    fitting = (grid for grid in grids(height, width, side) if 0 <= count - grid[0] * grid[1] <= MOST_EXTRA)
    grid = next(fitting, None)
    if grid is None:
        raise SettingsError(f"{count} tokens are no grid of patches of an image of {height} x {width} pixels")
    return features[:, count - grid[0] * grid[1] :], grid


def grids(height: int, width: int, side: int | None) -> Iterator[tuple[int, int]]:
    """Grids of patches of a side, or merged two by two as often as wanted (Swin); of every side where it is unknown.

    Patches are whole, or padded at the border.
    """
    shorter = min(height, width)
    sides = range(1, shorter + 1) if side is None else (side << merges for merges in range(shorter.bit_length()))
    for each in sides:
        yield height // each, width // each
        yield -(-height // each), -(-width // each)


def starts(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Boxes around the patches of a grid [H W, 4], centre and size in shares of the image.

    >>> starts(1, 4).tolist()[0]
    [0.125, 0.5, 0.5, 0.949999988079071]
    """
    y, x = ((torch.arange(count, device=device) + 0.5) / count for count in (rows, columns))
    sides = torch.tensor([PATCHES / columns, PATCHES / rows], device=device).clamp_max(0.95)
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([grid_x, grid_y], -1).flatten(0, 1)
    return torch.cat([centres, sides.expand(len(centres), 2)], -1)


def waves(points_Q2: Tensor, width: int) -> Tensor:
    """Sines and cosines of places in the image [Q, D], from waves of twice the image down to 1/64 of it."""
    lengths = 2.0 * 128.0 ** -torch.linspace(0, 1, width // 4, device=points_Q2.device)
    phases = 2 * math.pi * points_Q2[..., None] / lengths
    return torch.cat([phases.sin(), phases.cos()], -1).flatten(-2)


def shortened(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The config of a backbone that ends behind its first blocks; raises `SettingsError` where it has not as many."""
    values = config.to_dict()
    own = values.get("num_hidden_layers")
    if own is None:
        raise SettingsError(f"task.layers has no effect on {config.model_type}: it has stages", hint="take it out")
    if layers > own:
        raise SettingsError(f"task.layers {layers} is more than the {own} blocks of this {config.model_type}")
    named = ("out_features", "out_indices", "stage_names")  # of the blocks there were
    rest = {key: value for key, value in values.items() if key not in named}
    return type(config).from_dict({**rest, "num_hidden_layers": layers})


def on_backbone(backbone: Any, new: tuple[str, ...], **config: Any) -> tuple[PatchDetector, tuple[str, ...]]:
    """A detector with a fresh head on a pretrained backbone, and the paths of all its modules that start random.

    `new` are those of the backbone. A pooler that the checkpoint lacks is left out: nothing reads it. Raises
    `SettingsError` for a model that reads something else than images.
    """
    if backbone.main_input_name != "pixel_values":
        raise SettingsError(
            f"{type(backbone).__name__} reads {backbone.main_input_name}, not images alone",
            hint="name a vision backbone (DINOv2, ViT, Swin, ConvNeXT) or a detector",
        )
    lacking = [path for path in new if path.partition(".")[0] != "pooler"]
    if len(lacking) < len(new):
        backbone.pooler = None
    attention = backbone.config._attn_implementation  # a config hands its own on to those inside it
    made = PatchDetectorConfig(backbone_config=backbone.config, attn_implementation=attention, **config)
    detector = PatchDetector(made, backbone).eval()
    heads = [name for name, _ in detector.named_children() if name != "backbone"]
    return detector, (*(f"backbone.{path}".rstrip(".") for path in lacking), *heads)


AutoConfig.register(PatchDetectorConfig.model_type, PatchDetectorConfig)
AutoModel.register(PatchDetectorConfig, PatchDetector)
AutoModelForObjectDetection.register(PatchDetectorConfig, PatchDetector)
