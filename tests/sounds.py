"""Clips whose words are tones, and small random speech models in folders, made on the spot."""

import csv
import json
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

RATE = 16000
TONES = {"low": 300.0, "mid": 900.0, "high": 2000.0, "top": 3500.0}
"""Word -> Hz."""
SPEAKERS = ("ann", "bob", "cem", "dee", "eve", "fay", "gus", "hal")
D, F, LAYERS, HEADS = 32, 48, 2, 4
WHISPER_WORDS = ("<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|translate|>", "<|notimestamps|>")
END = "<|endoftext|>"


def tone(word, seconds=0.3, rate=RATE, loudness=0.5, pitch=1.0, seed=0):
    """The word as samples in float32."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(time)) * 0.01
    return (loudness * np.sin(2 * np.pi * pitch * TONES[word] * time) + noise).astype(np.float32)


def clip(text, **made):
    """Words one after the other."""
    return np.concatenate([tone(word, **made) for word in text.split()])


def texts(count, words=1, seed=0):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(list(TONES), generator.integers(1, words + 1))) for _ in range(count)]


def recordings(folder: Path, count, words=1, rate=RATE, seed=0, name="rows.csv", **made):
    """WAV files and a CSV that names them, their texts and their speakers."""
    rows = []
    generator = np.random.default_rng(seed)
    (folder / "clips").mkdir(exist_ok=True, parents=True)
    for number, text in enumerate(texts(count, words, seed)):
        speaker = int(generator.integers(len(SPEAKERS)))
        told = {
            "seconds": float(generator.uniform(0.2, 0.35)),
            "pitch": 1 + 0.02 * speaker,
            "seed": 1000 * seed + number,
        }
        path = f"clips/{Path(name).stem}-{number}.wav"
        soundfile.write(folder / path, clip(text, rate=rate, **{**told, **made}), rate)
        rows.append({"path": path, "text": text, "speaker": SPEAKERS[speaker]})
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def rows_of(path: Path):
    """The rows of such a CSV as the task sees them."""
    with path.open() as file:
        return [{**row, "path": str(path.parent / row["path"])} for row in csv.DictReader(file)]


# -- models


def byte_tokenizer(special):
    """A token per byte, and the special ones."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *special]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer, {name: names.index(name) for name in special}


def whisper(folder: Path, multilingual=False) -> Path:
    """A random Whisper that hears one second."""
    torch.manual_seed(0)
    tokenizer, ids = byte_tokenizer((END, *WHISPER_WORDS))
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder)
    config = tf.WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=D,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=F,
        decoder_ffn_dim=F,
        num_mel_bins=16,
        max_source_positions=50,
        max_target_positions=40,
        pad_token_id=ids[END],
        bos_token_id=ids[END],
        eos_token_id=ids[END],
        decoder_start_token_id=ids[WHISPER_WORDS[0]],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = tf.WhisperForConditionalGeneration(config)
    model.generation_config = tf.GenerationConfig(
        eos_token_id=ids[END],
        pad_token_id=ids[END],
        decoder_start_token_id=ids[WHISPER_WORDS[0]],
        is_multilingual=multilingual,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        suppress_tokens=[ids[word] for word in WHISPER_WORDS],
        begin_suppress_tokens=[ids[END]],
    )
    model.save_pretrained(folder)
    tf.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)
    return folder


def moonshine(folder: Path) -> Path:
    """A random Moonshine."""
    torch.manual_seed(0)
    tokenizer, ids = byte_tokenizer(("<s>", "</s>"))
    tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    tf.MoonshineForConditionalGeneration(
        tf.MoonshineConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=D,
            intermediate_size=F,
            encoder_num_hidden_layers=LAYERS,
            decoder_num_hidden_layers=LAYERS,
            encoder_num_attention_heads=HEADS,
            decoder_num_attention_heads=HEADS,
            encoder_num_key_value_heads=HEADS,
            decoder_num_key_value_heads=HEADS,
            max_position_embeddings=48,
            bos_token_id=ids["<s>"],
            eos_token_id=ids["</s>"],
            pad_token_id=ids["</s>"],
            decoder_start_token_id=ids["<s>"],
        )
    ).save_pretrained(folder)
    tf.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    return folder


LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'")
CTC = {
    "wav2vec2": (tf.Wav2Vec2Config, tf.Wav2Vec2ForCTC, tf.Wav2Vec2Model),
    "hubert": (tf.HubertConfig, tf.HubertForCTC, tf.HubertModel),
    "wavlm": (tf.WavLMConfig, tf.WavLMForCTC, tf.WavLMModel),
    "unispeech": (tf.UniSpeechConfig, tf.UniSpeechForCTC, tf.UniSpeechModel),
}


def ctc(folder: Path, family="wav2vec2", head=True, norm="group") -> Path:
    """A random CTC model, or its body alone as it comes from pretraining."""
    torch.manual_seed(0)
    config, with_head, body = CTC[family]
    made = config(
        vocab_size=len(LETTERS),
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 4, 4),
        conv_kernel=(10, 4, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        layerdrop=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        apply_spec_augment=False,
        pad_token_id=0,
    )
    (with_head if head else body)(made).save_pretrained(folder)
    tf.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
    if head:
        (folder / "vocab.json").write_text(json.dumps({letter: index for index, letter in enumerate(LETTERS)}))
        tf.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    return folder
