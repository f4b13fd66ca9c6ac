"""P-tuning: virtual tokens that a small encoder computes, before the input or anywhere in it.

    P = MLP(BiLSTM(E)), or P = MLP(E)        E [P, D] trained with the encoder

Trains   P D values and the encoder; what is saved is P: P D values
Start    E normal, the encoder as torch starts it
Merge    no
Note     with `prompt_token` the vectors take the places of that token, wherever a template puts it; the encoder is
         folded away when the adapter is saved, and kept to resume a training
Paper    Liu et al. 2021, arXiv:2103.10385
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.method import Pace, Sites
from deltatune.core.prompt import PROMPT, PromptMethod, SoftPrompt
from deltatune.core.site import Base, InputAdapter, InputSite, LayerAdapter, LayerSite


class PTuning(PromptMethod):
    """Settings of P-tuning; names as in peft's `PromptEncoderConfig`."""

    type: ClassVar[str] = "p-tuning"
    title: ClassVar[str] = "P-tuning"
    paper: ClassVar[str] = "Liu et al. 2021, arXiv:2103.10385"
    learning_rate: ClassVar[float] = 1e-2
    peft_type: ClassVar[str | None] = "P_TUNING"

    encoder_reparameterization_type: Literal["LSTM", "MLP"] = "LSTM"
    """The encoder: a bidirectional LSTM with two layers behind it, or three layers."""
    encoder_hidden_size: Annotated[int, Field(ge=1)] | None = None
    """Its width; none means D / 2 for each direction of the LSTM, D for the MLP."""
    encoder_num_layers: Annotated[int, Field(ge=1)] = 2
    """Layers of the LSTM."""
    encoder_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout between the layers of the LSTM, while training."""
    prompt_token: str | None = None
    """A token of the vocabulary whose places in the input the vectors take, in order; none means before the input."""
    prompt_token_id: int | None = None
    """Its id; filled in where a tokenizer is at hand."""

    def pace(self, name: str) -> Pace:
        """The encoder moves slowly, near the paper's 1e-4."""
        return Pace(rate=0.02 if name.startswith("encoder.") else 1.0, decay=False)

    def worded(self, encode: Callable[[str], list[int]], labels: Sequence[str]) -> "PTuning":
        """With the id of the token; raises `SettingsError` when the tokenizer cuts it up."""
        if self.prompt_token is None or self.prompt_token_id is not None:
            return self
        ids = encode(self.prompt_token)
        if len(ids) != 1:
            raise SettingsError(
                f"prompt_token {self.prompt_token!r} is {len(ids)} tokens", hint="use one of the vocabulary: [unused1]"
            )
        return self.model_copy(update={"prompt_token_id": ids[0]})

    def sites(self, model: Sites) -> Sequence[Any]:
        """The entrance, or the token embedding when the places are in the input."""
        (entrance,) = model.inputs()
        if self.prompt_token is None and self.prompt_token_id is None:
            return [entrance]
        if self.prompt_token_id is None or entrance.table is None:
            raise SettingsError(
                "prompt_token needs a vocabulary and prompt_token_id", hint="or call method.worded(encode, labels)"
            )
        return model.layers(entrance.table.rpartition(".")[0])

    def build(
        self, site: InputSite | LayerSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator
    ) -> "PromptEncoder | PlacedPrompt":
        """The encoder of the prompt."""
        if isinstance(site, LayerSite):
            assert self.prompt_token_id is not None
            return PlacedPrompt(Encoder(self, site.out_features, rng), self.prompt_token_id)
        return PromptEncoder(Encoder(self, site.width, rng), **self.enters())

    def count(self, sites: Sequence[Any]) -> int:
        """P D, and the encoder."""
        width = sites[0].out_features if isinstance(sites[0], LayerSite) else sites[0].width
        hidden, embeddings = self.hidden(width), self.num_virtual_tokens * width
        if self.encoder_reparameterization_type == "MLP":
            return embeddings + (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
        lstm = sum(
            8 * hidden * ((width if layer == 0 else 2 * hidden) + hidden + 2)
            for layer in range(self.encoder_num_layers)
        )
        return embeddings + lstm + (2 * hidden + 1) * 2 * hidden + (2 * hidden + 1) * width

    def hidden(self, width: int) -> int:
        """Width of the encoder."""
        whole = self.encoder_reparameterization_type == "MLP"
        return self.encoder_hidden_size or (width if whole else max(1, width // 2))

    # -- peft's format

    def for_peft(self, sites: Sequence[Any]) -> bool:
        """Only prompts before the input: peft has no others."""
        return self.prompt_token_id is None

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `PromptEncoderConfig`."""
        return {
            **super().peft_config(sites),
            "encoder_reparameterization_type": self.encoder_reparameterization_type,
            "encoder_hidden_size": self.hidden(sites[0].width),
            "encoder_num_layers": self.encoder_num_layers,
            "encoder_dropout": self.encoder_dropout,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "PTuning | None":
        """Settings of a P_TUNING folder; None for other formats."""
        if config.get("peft_type") != cls.peft_type:
            return None
        encoder = ("reparameterization_type", "hidden_size", "num_layers", "dropout")
        return cls.read_peft(config, [f"encoder_{key}" for key in encoder])

    def to_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prompt that the encoder computes."""
        return {PROMPT: tensors[f"{sites[0].path}.embeddings"]}


class Encoder(nn.Module):
    """E and what makes P of it."""

    def __init__(self, method: PTuning, width: int, rng: torch.Generator) -> None:
        super().__init__()
        hidden = method.hidden(width)
        self.layers, self.dropout = method.encoder_num_layers, method.encoder_dropout
        self.embeddings = nn.Parameter(torch.empty(method.num_virtual_tokens, width).normal_(generator=rng))
        with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global generator
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng, device="cpu")))
            self.recurrent = nn.ParameterList()
            if method.encoder_reparameterization_type == "LSTM":
                lstm = nn.LSTM(width, hidden, method.encoder_num_layers, bidirectional=True)
                self.recurrent.extend(lstm.parameters())
                steps = [nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width)]
            else:
                steps = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
                steps += [nn.Linear(hidden, width)]
            self.mlp = nn.Sequential(*steps)

    def forward(self) -> Tensor:
        """P [P, D], in float32 under autocast too: not every processor has an LSTM of less, and P is small."""
        with torch.autocast(self.embeddings.device.type, enabled=False):
            prompt: Tensor = self.mlp(self._both_ways() if len(self.recurrent) else self.embeddings)
        return prompt

    def _both_ways(self) -> Tensor:
        """E [P, D] read by the LSTM in both directions; by the function, since Dynamo does not trace the module."""
        weights = list(self.recurrent)
        start = self.embeddings.new_zeros(2 * self.layers, 1, weights[1].shape[1])
        x = self.embeddings.unsqueeze(0)
        dropout = self.dropout if self.layers > 1 else 0.0
        found: tuple[Tensor, ...] = torch.lstm(
            x, [start, start], weights, True, self.layers, dropout, self.training, True, True
        )
        return found[0].squeeze(0)

    @torch.no_grad()
    def computed(self) -> Tensor:
        """P, as inference computes it."""
        prompt: Tensor = self.forward()
        return prompt


class PromptEncoder(InputAdapter):
    """P before the input."""

    def __init__(self, encoder: Encoder, word: bool, stays: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokens, self.word, self.stays = len(encoder.embeddings), word, stays

    def forward(self, rows: int, condition: Tensor | None) -> Tensor:
        """The same vectors for every row."""
        prompt: Tensor = self.encoder()
        return prompt.expand(rows, -1, -1)

    def folded(self) -> SoftPrompt:
        """P alone."""
        return SoftPrompt(self.encoder.computed(), self.word, self.stays)

    def opened(self, tensors: Mapping[str, Tensor]) -> SoftPrompt:
        """Room for P; nothing is computed to be overwritten."""
        return SoftPrompt(torch.zeros_like(self.encoder.embeddings), self.word, self.stays)


class PlacedPrompt(LayerAdapter):
    """P in the places of a token, at the token embedding."""

    def __init__(self, encoder: Encoder, token: int) -> None:
        super().__init__()
        self.encoder, self.token = encoder, token

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """[B, T, D] for token ids [B, T]: the i-th place of a row has the i-th vector."""
        return placed(x, base(x), self.encoder(), self.token)

    def folded(self) -> "FoldedPlacedPrompt":
        """P alone."""
        return FoldedPlacedPrompt(self.encoder.computed(), self.token)

    def opened(self, tensors: Mapping[str, Tensor]) -> "FoldedPlacedPrompt":
        """Room for P; nothing is computed to be overwritten."""
        return FoldedPlacedPrompt(torch.zeros_like(self.encoder.embeddings), self.token)


class FoldedPlacedPrompt(LayerAdapter):
    """P in the places of a token, without the encoder."""

    def __init__(self, embeddings: Tensor, token: int) -> None:
        super().__init__()
        self.embeddings, self.token = nn.Parameter(embeddings), token

    def forward(self, x: Tensor, base: Base) -> Tensor:
        """[B, T, D] for token ids [B, T]."""
        return placed(x, base(x), self.embeddings, self.token)


def placed(ids_BT: Tensor, words_BTD: Tensor, prompt_PD: Tensor, token: int) -> Tensor:
    """The embedded words with the prompt's vectors at the places of a token.

    Raises `AdapterError` for a row with more places than vectors.
    """
    here_BT = ids_BT == token
    index_BT = here_BT.cumsum(-1).sub(1).clamp_min(0)
    if int(index_BT.max()) >= len(prompt_PD):
        raise AdapterError(
            f"a row has {int(index_BT.max()) + 1} places for a prompt of {len(prompt_PD)}",
            hint="set num_virtual_tokens",
        )
    return torch.where(here_BT.unsqueeze(-1), prompt_PD[index_BT].to(words_BTD.dtype), words_BTD)
