"""What methods with virtual tokens before the input share: sizes, where they enter, peft's format.

Shape legend: B rows, P virtual tokens, D model width, V vocabulary.
"""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn

from deltatune.core.method import Can, Method, Pace, Sites
from deltatune.core.site import InputAdapter, InputSite
from deltatune.core.targeted import listed

PROMPT = "prompt_embeddings"


class PromptMethod(Method, ABC):
    """Settings of a method whose adapter is P vectors before the input; names as in peft's `PromptLearningConfig`."""

    aliases: ClassVar[Mapping[str, str]] = {**Method.aliases, "prompt_length": "num_virtual_tokens"}
    can: ClassVar[Can] = Can(rows=False, identity=None)
    head_rate: ClassVar[float] = 2e-2
    """That of a linear probe: the features a head reads hardly move."""
    peft_root: ClassVar[str] = "base_model."

    num_virtual_tokens: Annotated[int, Field(ge=1, le=100_000)] = 20
    """P."""
    prompt_site: Literal["post_embedding", "word"] = "post_embedding"
    """Where the prompt enters: behind the embeddings, or as words, which get positions, types and norm (peft)."""
    pool_index: Literal["first_real", "first"] = "first_real"
    """What a head that pools the first position sees: the first real token, or the first virtual one (both peers)."""

    def sites(self, model: Sites) -> Sequence[InputSite]:
        """The first stack that reads tokens: the encoder of an encoder-decoder."""
        return model.inputs()

    def sizes(self) -> Sequence[Mapping[str, Any]]:
        """Lengths, as in Lester et al. 2021, section 3.2."""
        return [{"num_virtual_tokens": tokens} for tokens in (1, 5, 20, 100, 150)]

    def pace(self, name: str) -> Pace:
        """No decay: zero is no word."""
        return Pace(decay=False)

    def enters(self) -> dict[str, bool]:
        """The facts that `InputAdapter` carries for the engine."""
        return {"word": self.prompt_site == "word", "stays": self.pool_index == "first"}

    # -- peft's format

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys that peft's prompt methods share."""
        return {
            "num_virtual_tokens": self.num_virtual_tokens,
            "num_transformer_submodules": 1,
            "token_dim": sites[0].width,
        }

    @classmethod
    def read_peft(cls, config: Mapping[str, Any], keys: Sequence[str]) -> Self:
        """Settings from peft's: prompts are words there, and a pooled position is the first, virtual or not."""
        known = {key: config[key] for key in ("num_virtual_tokens", *keys) if config.get(key) is not None}
        pooled = config.get("task_type") == "SEQ_CLS"
        return cls.parse(
            {
                **known,
                "prompt_site": "word",
                "pool_index": "first" if pooled else "first_real",
                "modules_to_save": tuple(listed(config.get("modules_to_save"))) or None,
            },
            "adapter_config.json",
        )

    def to_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prompt."""
        return {PROMPT: tensors[f"{sites[0].path}.embeddings"]}

    def of_peft_file(self, sites: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours from peft's, whose second half for encoder-decoders is never used."""
        return {f"{sites[0].path}.embeddings": tensors[PROMPT][: self.num_virtual_tokens]}


class SoftPrompt(InputAdapter):
    """P vectors [P, D]."""

    def __init__(self, embeddings: Tensor, word: bool, stays: bool) -> None:
        super().__init__()
        self.tokens, self.word, self.stays = len(embeddings), word, stays
        self.embeddings = nn.Parameter(embeddings)

    def forward(self, rows: int, condition: Tensor | None) -> Tensor:
        """The same vectors for every row."""
        return self.embeddings.expand(rows, -1, -1)
