"""The stack beside which a side network stands: which one, how deep, and whether it looks ahead."""

import pytest
import transformers as tf

from deltatune.engine.anatomy import Anatomy
from models import BERT, tiny

CAUSAL = ("gpt2", "gpt-neox", "opt", "bloom", "falcon", "phi3", "llama", "mistral", "qwen3", "gemma3", "qwen3-moe")
DECODERS = ("t5", "bart", "mbart", "marian", "whisper")
BOTH = (
    "bert",
    "roberta",
    "albert",
    "distilbert",
    "deberta-v2",
    "electra",
    "esm",
    "mpnet",
    "modernbert",
    "vit",
    "torch",
)


@pytest.mark.parametrize("family", (*CAUSAL, *DECODERS, *BOTH))
def test_a_stack_looks_ahead_or_not(family):
    assert Anatomy.of(tiny(family)).side().causal is (family not in BOTH)


@pytest.mark.parametrize("family", DECODERS)
def test_an_encoder_decoder_has_its_side_network_beside_the_decoder(family):
    site = Anatomy.of(tiny(family)).side()
    assert (site.stack, site.path.rpartition(".")[2], site.depth) == ("decoder", "decoder", 2)


def test_a_lone_encoder_has_it_beside_itself():
    model = tf.T5EncoderModel(tf.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))
    assert Anatomy.of(model).side().path == "encoder"


def test_bert_as_a_decoder_does_not_look_ahead():
    model = tf.BertLMHeadModel(tf.BertConfig(**BERT, is_decoder=True))
    assert Anatomy.of(model).side().causal


def test_shared_blocks_count_at_every_run():
    site = Anatomy.of(tiny("albert")).side()
    assert (len(site.blocks), site.depth) == (1, 2)
