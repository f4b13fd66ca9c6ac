"""The base of the golden files: small models whose weights follow from integers, whatever torch's generators do.

Part of the format: a change here makes every golden file one of another base.
"""

import zlib
from pathlib import Path
from shutil import copytree

import numpy as np
import torch
import transformers as tf
from torch import Tensor, nn

HERE = Path(__file__).parent
VOCAB, ROWS, TOKENS = 24, 3, 6
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "num_labels": 3,
    "pad_token_id": 0,
}
TOKENS_OF = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def empty(family: str) -> nn.Module:
    """A model of a family without dropout, its weights still torch's."""
    if family == "bert":
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return tf.BertForSequenceClassification(tf.BertConfig(**SIZES, **still))
    if family == "llama":
        return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES | TOKENS_OF, num_key_value_heads=1))
    if family == "gpt2":
        shape = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 16}
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return tf.GPT2LMHeadModel(tf.GPT2Config(**shape, **still, **TOKENS_OF))
    shape = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return tf.T5ForConditionalGeneration(tf.T5Config(**shape, dropout_rate=0.0, decoder_start_token_id=0))


def model(family: str) -> nn.Module:
    """The base of a family, in eval mode."""
    return filled(empty(family)).eval()


def filled(network: nn.Module) -> nn.Module:
    """The network with values by name and place: matrices within 0.4, scales of norms around 1, biases within 0.1."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = values(name, parameter.shape)
            if parameter.dim() > 1:
                parameter.copy_(0.4 * drawn)
            else:
                parameter.copy_(0.1 * drawn + (0.0 if name.endswith("bias") else 1.0))
    return network


def values(name: str, shape: torch.Size) -> Tensor:
    """Values in [-1, 1) that look random: splitmix64 of the name's checksum and the place, 24 bits of it."""
    place = np.arange(shape.numel(), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
    z = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.int64)
    return torch.from_numpy((bits - 2**23) / 2**23).float().reshape(shape)  # exact in float32


def batch(family: str) -> dict[str, Tensor]:
    """Three rows of different length, padded on the right."""
    ids = torch.tensor([[3 + (7 * row + 5 * column) % (VOCAB - 3) for column in range(TOKENS)] for row in range(ROWS)])
    mask = torch.tensor([[int(column < TOKENS - row) for column in range(TOKENS)] for row in range(ROWS)])
    found = {"input_ids": ids * mask, "attention_mask": mask}
    return found | ({"decoder_input_ids": ids[:, :4].flip(1)} if family == "t5" else {})


def folder(place: Path) -> Path:
    """The base of the golden runs as a model folder: config and tokenizer as stored, weights by the rule."""
    copytree(HERE / "base", place)
    filled(tf.AutoModel.from_config(tf.AutoConfig.from_pretrained(place))).save_pretrained(place)
    return place
