"""Point transformer: a cloud of points in groups, one token a group (the encoder of Point-MAE).

    centres   farthest points of the cloud           groups   the nearest points of a centre, seen from it
    token     max over the group of an MLP of [point, max over the group], plus an MLP of the centre's place
    answer    Linear([max over tokens, mean over tokens])

The order of the points is nothing that the network sees, ties of distances aside.

Shapes  B clouds, N points of C values (the first three are the place), G groups of K points, D width, V visible groups
Paper   Pang et al. 2022, arXiv:2203.06604; the tokens: Yu et al. 2022, arXiv:2111.14819
Differs layer norms in place of batch norms, so that a row does not depend on its neighbours; no CLS; positions are
        added once; blocks of `transformers` (pre-norm ViT)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.models.vit.modeling_vit import ViTLayer

from deltatune.ops.points import at, chamfer, farthest, neighbours


class PointTransformerConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of the network and of its groups."""

    model_type = "point-transformer"

    num_channels: int = 3
    """Values of a point: x, y, z and what else the files have (normals, colours)."""
    num_points: int = 512
    """Points of a cloud that it was pretrained on."""
    num_groups: int = 32
    group_size: int = 16
    hidden_size: int = 96
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 192
    decoder_layers: int = 1
    """Blocks of the decoder that pretraining throws away."""
    mask_ratio: float = 0.6
    """Share of the groups that pretraining hides."""
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    qkv_bias: bool = True


class Groups(nn.Module):
    """Clouds in groups; the geometry is computed in float32 whatever the dtype of the network."""

    def __init__(self, config: PointTransformerConfig) -> None:
        super().__init__()
        self.count, self.size = config.num_groups, config.group_size

    def forward(self, points_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the centres [B, G, 3], and the groups as their centre sees them [B, G, K, C]."""
        points = points_BNC.float()
        centres = at(points, farthest(points, self.count))
        groups = at(points, neighbours(points, centres, self.size))
        places = centres[..., :3]
        return places, torch.cat([groups[..., :3] - places[:, :, None], groups[..., 3:]], -1)


class GroupTokens(nn.Module):
    """Tokens of groups [B, G, D]: what lies in them and where they are."""

    def __init__(self, config: PointTransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.enter = nn.Linear(config.num_channels, width)
        self.first = nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))
        self.second = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.place = Place(width)

    def forward(self, places_BG3: Tensor, groups_BGKC: Tensor) -> Tensor:
        """See the head of the file."""
        each = self.first(self.enter(groups_BGKC.to(self.enter.weight.dtype)))
        whole = each.amax(2, keepdim=True).expand_as(each)
        tokens = self.second(torch.cat([whole, each], -1)).amax(2)
        placed: Tensor = tokens + self.place(places_BG3)
        return placed


class Place(nn.Module):
    """A place in space as a vector of the network's width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, width), nn.Linear(width, width)

    def forward(self, places: Tensor) -> Tensor:
        """Of [..., 3] to [..., D]."""
        vectors: Tensor = self.down(F.gelu(self.up(places.to(self.up.weight.dtype))))
        return vectors


class PointTransformerPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """Loading, saving and initial values."""

    config_class = PointTransformerConfig
    base_model_prefix = "encoder"
    main_input_name = "points"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["ViTLayer"]

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Three clouds of points that differ."""
        count, values = self.config.num_points, self.config.num_channels
        line = torch.linspace(-1, 1, 3 * count * values, device=self.device)
        return {"points": line.view(3, count, values)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PointTransformerForMasking):
            init.normal_(module.mask, std=self.config.initializer_range)


class PointTransformerModel(PointTransformerPreTrainedModel):
    """Points of clouds to hidden states of their groups."""

    def __init__(self, config: PointTransformerConfig) -> None:
        super().__init__(config)
        self.groups = Groups(config)
        self.tokens = GroupTokens(config)
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The module that makes the tokens."""
        return self.tokens

    def forward(self, points: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Points [B, N, C], all rows of one number; hidden states [B, G, D]."""
        return self.read(self.tokens(*self.groups(points)), **kwargs)

    def read(self, hidden_BGD: Tensor, **kwargs: Any) -> BaseModelOutput:
        """The blocks, on tokens of all groups or of some."""
        for layer in self.layers:
            hidden_BGD = layer(hidden_BGD, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layernorm(hidden_BGD))


class PointTransformerForClassification(PointTransformerPreTrainedModel):
    """Logits [B, num_labels] from the largest and the mean values over all groups."""

    def __init__(self, config: PointTransformerConfig) -> None:
        super().__init__(config)
        self.encoder = PointTransformerModel(config)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, points: Tensor, **kwargs: Any) -> SequenceClassifierOutput:
        """See `PointTransformerModel.forward`."""
        hidden = self.encoder(points, **kwargs).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(torch.cat([hidden.amax(1), hidden.mean(1)], -1)))


class PointTransformerForMasking(PointTransformerPreTrainedModel):
    """Pretraining: the encoder reads some groups, a small decoder says where the points of the others are."""

    def __init__(self, config: PointTransformerConfig) -> None:
        super().__init__(config)
        self.encoder = PointTransformerModel(config)
        self.mask = nn.Parameter(torch.empty(config.hidden_size))
        self.place = Place(config.hidden_size)
        self.decoder = nn.ModuleList(ViTLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.points = nn.Linear(config.hidden_size, 3 * config.group_size)
        self.post_init()

    def loss(self, points: Tensor, generator: torch.Generator) -> Tensor:
        """Mean Chamfer distance of the hidden groups, which are drawn by the generator anew for every cloud."""
        places, groups = self.encoder.groups(points)
        order = torch.rand(places.shape[:2], generator=generator).argsort(1).to(points.device)
        seen = order.shape[1] - round(self.config.mask_ratio * order.shape[1])
        shown, hidden = order[:, :seen], order[:, seen:]
        truth = _groups_at(groups, hidden)[..., :3]
        guess = self.guess(places, groups, shown, hidden)
        return chamfer(guess.flatten(0, 1).float(), truth.flatten(0, 1)).mean()

    def guess(self, places_BG3: Tensor, groups_BGKC: Tensor, shown_BV: Tensor, hidden_BH: Tensor) -> Tensor:
        """Points of the hidden groups [B, H, K, 3], seen from their centres, from the shown groups and all centres."""
        shown = at(places_BG3, shown_BV)
        known = self.encoder.read(self.encoder.tokens(shown, _groups_at(groups_BGKC, shown_BV))).last_hidden_state
        asked = self.mask + self.place(at(places_BG3, hidden_BH))
        state = torch.cat([known + self.place(shown), asked], 1)
        for layer in self.decoder:
            state = layer(state)
        points: Tensor = self.points(self.norm(state[:, shown.shape[1] :]))
        return points.view(*hidden_BH.shape, -1, 3)


def _groups_at(groups_BGKC: Tensor, indices_BV: Tensor) -> Tensor:
    return at(groups_BGKC.flatten(2), indices_BV).view(*indices_BV.shape, *groups_BGKC.shape[2:])


AutoConfig.register(PointTransformerConfig.model_type, PointTransformerConfig)
AutoModel.register(PointTransformerConfig, PointTransformerModel)
