"""Maps of the models in the papers' tables, on the meta device: for parameter counts, no weights."""

from functools import cache

import torch
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from deltatune.core.method import Method
from deltatune.engine.anatomy import Anatomy

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}

BUILDERS = {
    "bert-base": lambda: BertModel(BertConfig()),
    "bert-large": lambda: BertModel(BertConfig(**LARGE)),
    "roberta-base": lambda: RobertaModel(RobertaConfig(vocab_size=50265, max_position_embeddings=514)),
    "roberta-large": lambda: RobertaModel(RobertaConfig(**LARGE, vocab_size=50265, max_position_embeddings=514)),
    "t5-base": lambda: T5ForConditionalGeneration(
        T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)
    ),
    "llama-7b": lambda: LlamaModel(LlamaConfig()),
}


@cache
def shape(name: str) -> Anatomy:
    """The map of a published model."""
    with torch.device("meta"):
        return Anatomy.of(BUILDERS[name]())


def count(method: Method, name: str) -> int:
    """What the method says it trains there."""
    return method.count(method.sites(shape(name)))
