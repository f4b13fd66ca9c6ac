"""Feature tokens: a transformer over the columns of a table, one token per column (FT-Transformer).

    number      x w_c + b_c, and m_c + b_c where x is missing
    category    E_c[value] + b_c, with an entry for unseen and for missing values
    answer      Linear(ReLU(LayerNorm(h_CLS)))

Columns have no order and no positions: each is known by its own parameters. `config.columns` says what a pretrained
network has read; `config.added` are columns that it had not, in a module of their own.

Shapes  B rows, N numbers, C categories, F = N + C columns, D width, V entries of all vocabularies
Paper   Gorishniy et al. 2021, arXiv:2106.11959; masked columns: Rubachev et al. 2022, arXiv:2207.03208
Differs blocks of `transformers` (pre-norm ViT, GELU), CLS in front
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.models.vit.modeling_vit import ViTLayer

from deltatune.core.features import Feature


class FeatureTokensConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes, and the columns with their kinds, scales and vocabularies (`core.features.Feature`)."""

    model_type = "feature-tokens"

    columns: list[dict[str, Any]] | None = None
    added: list[dict[str, Any]] | None = None
    hidden_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 128
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    qkv_bias: bool = True

    def features(self) -> tuple[list[Feature], list[Feature]]:
        """The columns known and added."""
        known, added = ([Feature.parse(column, "columns") for column in c or ()] for c in (self.columns, self.added))
        return known, added


def _counts(columns: list[Feature]) -> tuple[int, int]:
    """How many number and category columns."""
    numbers = sum(column.kind == "number" for column in columns)
    return numbers, len(columns) - numbers


class ColumnTokens(nn.Module):
    """Tokens of columns [B, F, D], numbers first."""

    def __init__(self, columns: list[Feature], width: int) -> None:
        super().__init__()
        numbers, categories = _counts(columns)
        entries = sum(column.size for column in columns if column.kind == "category")
        self.weight = nn.Parameter(torch.empty(numbers, width)) if numbers else None
        self.missing = nn.Parameter(torch.empty(numbers, width)) if numbers else None
        self.values = nn.Embedding(entries, width) if categories else None
        self.bias = nn.Parameter(torch.empty(numbers + categories, width))

    def forward(self, numbers_BN: Tensor, categories_BC: Tensor, hide_BF: Tensor | None, mask_D: Tensor | None) -> Any:
        """Where `hide` is true, the token is that of a masked column."""
        parts = []
        if self.weight is not None and self.missing is not None:
            given = numbers_BN.nan_to_num().to(self.weight.dtype)[..., None] * self.weight
            parts.append(torch.where(numbers_BN.isnan()[..., None], self.missing, given))
        if self.values is not None:
            parts.append(self.values(categories_BC))
        tokens = torch.cat(parts, 1)
        if hide_BF is not None and mask_D is not None:
            tokens = torch.where(hide_BF[..., None], mask_D, tokens)
        return tokens + self.bias


class FeatureEmbeddings(nn.Module):
    """CLS and the tokens of all columns [B, 1 + F, D]."""

    def __init__(self, config: FeatureTokensConfig) -> None:
        super().__init__()
        known, added = config.features()
        self.known = _counts(known)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.columns = ColumnTokens(known, config.hidden_size) if known else None
        self.added = ColumnTokens(added, config.hidden_size) if added else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, numbers: Tensor, categories: Tensor, hide: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Known columns in front of the added ones; `hide` is about the known ones."""
        count, words = self.known
        parts = [self.cls_token.expand(len(numbers), -1, -1)]
        if self.columns is not None:
            parts.append(self.columns(numbers[:, :count], categories[:, :words], hide, mask))
        if self.added is not None:
            parts.append(self.added(numbers[:, count:], categories[:, words:], None, None))
        embedded: Tensor = self.dropout(torch.cat(parts, 1))
        return embedded


class FeatureTokensPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """Loading, saving and initial values."""

    config_class = FeatureTokensConfig
    base_model_prefix = "encoder"
    main_input_name = "numbers"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["ViTLayer"]

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Three rows in the middle of their scales, with unseen categories."""
        known, added = self.config.features()
        numbers, categories = _counts([*known, *added])
        return {
            "numbers": torch.zeros(3, numbers, device=self.device),
            "categories": torch.zeros(3, categories, dtype=torch.long, device=self.device),
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Tokens uniform within 1/sqrt(D) as in the paper, the rest as in BERT."""
        super()._init_weights(module)
        own: list[Tensor | None] = []
        if isinstance(module, ColumnTokens):
            own = [module.weight, module.missing, module.bias, module.values.weight if module.values else None]
        elif isinstance(module, FeatureEmbeddings):
            own = [module.cls_token]
        elif isinstance(module, FeatureTokensForMasking):
            own = [module.mask]
        bound = self.config.hidden_size**-0.5
        for tensor in own:
            if tensor is not None:
                init.uniform_(tensor, -bound, bound)


class FeatureTokensModel(FeatureTokensPreTrainedModel):
    """The columns of rows to hidden states, CLS first."""

    def __init__(self, config: FeatureTokensConfig) -> None:
        super().__init__(config)
        self.embeddings = FeatureEmbeddings(config)
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The module that makes the tokens of the columns."""
        return self.embeddings.columns if self.embeddings.columns is not None else self.embeddings.added

    def forward(
        self,
        numbers: Tensor,
        categories: Tensor,
        hide: Tensor | None = None,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Numbers [B, N] with NaN where missing and indices [B, C], in the order of `core.features.Features`."""
        hidden = self.embeddings(numbers, categories, hide, mask)
        for layer in self.layers:
            hidden = layer(hidden, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layernorm(hidden))


class FeatureTokensForClassification(FeatureTokensPreTrainedModel):
    """Logits [B, num_labels] from CLS."""

    def __init__(self, config: FeatureTokensConfig) -> None:
        super().__init__(config)
        self.encoder = FeatureTokensModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, numbers: Tensor, categories: Tensor, **kwargs: Any) -> SequenceClassifierOutput:
        """See `FeatureTokensModel.forward`."""
        hidden = self.encoder(numbers, categories, **kwargs).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(F.relu(hidden[:, 0])))


class FeatureTokensForMasking(FeatureTokensPreTrainedModel):
    """Pretraining: hidden columns are told from the others, by their own token and by CLS.

    A number is a linear map of its token, with squared error on its scale; a category a softmax over its vocabulary.
    """

    def __init__(self, config: FeatureTokensConfig) -> None:
        super().__init__(config)
        known, _ = config.features()
        self.sizes = [column.size for column in known if column.kind == "category"]
        self.numbers = _counts(known)[0]
        self.encoder = FeatureTokensModel(config)
        self.mask = nn.Parameter(torch.empty(config.hidden_size))
        self.heads = nn.ModuleList(nn.Linear(2 * config.hidden_size, size) for size in [1] * self.numbers + self.sizes)
        self.post_init()

    def loss(self, numbers: Tensor, categories: Tensor, hide: Tensor) -> Tensor:
        """Mean over the hidden columns [B, F] that have a value; a column's own token and CLS stand side by side."""
        hidden = self.encoder(numbers, categories, hide, self.mask).last_hidden_state
        total: Tensor = hidden.new_zeros(())
        start = count = 0
        for place, head in enumerate(self.heads):
            own = torch.cat([hidden[:, 0], hidden[:, 1 + place]], -1)
            chosen = hide[:, place]
            if place < self.numbers:
                chosen = chosen & ~numbers[:, place].isnan()
                total = total + (head(own[chosen])[:, 0] - numbers[chosen, place]).square().sum()
            else:
                wanted = categories[chosen, place - self.numbers] - start
                total = total + F.cross_entropy(head(own[chosen]), wanted, reduction="sum")
                start += self.sizes[place - self.numbers]
            count += int(chosen.sum())
        return total / max(1, count)


AutoConfig.register(FeatureTokensConfig.model_type, FeatureTokensConfig)
AutoModel.register(FeatureTokensConfig, FeatureTokensModel)
AutoModelForSequenceClassification.register(FeatureTokensConfig, FeatureTokensForClassification)
