"""Small random models of every family the tests run on, and inputs they accept. No weights, no network."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

ROWS, TOKENS = 3, 7
D, F, LAYERS, HEADS, VOCAB = 32, 48, 2, 4, 99

BERT = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "pad_token_id": 0,
}
LLAMA = {**BERT, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
VISION = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 3,
}
BART = {
    "vocab_size": VOCAB,
    "d_model": D,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": F,
    "decoder_ffn_dim": F,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
SPEECH = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "num_labels": 3,
    "layerdrop": 0.0,
}


def _detr() -> nn.Module:
    backbone = tf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 16], depths=[1, 1], out_features=["stage2"])
    return tf.DetrForObjectDetection(
        tf.DetrConfig(
            use_timm_backbone=False,
            backbone_config=backbone,
            backbone=None,
            d_model=D,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            encoder_ffn_dim=F,
            decoder_ffn_dim=F,
            num_queries=5,
            num_labels=3,
        )
    )


def _rt_detr() -> nn.Module:
    backbone = tf.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    return tf.RTDetrForObjectDetection(
        tf.RTDetrConfig(
            backbone_config=backbone,
            encoder_hidden_dim=D,
            encoder_in_channels=[16, 16, 16],
            d_model=D,
            encoder_ffn_dim=F,
            decoder_ffn_dim=F,
            decoder_layers=LAYERS,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            num_queries=5,
            decoder_in_channels=[D, D, D],
            num_labels=3,
            num_denoising=0,
        )
    )


class PlainTransformer(nn.Module):
    """A transformer of torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, D)
        layer = nn.TransformerEncoderLayer(D, HEADS, F, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.classifier = nn.Linear(D, 3)

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.classifier(self.encoder(self.embed(input_ids)).mean(1)),)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**BERT)),
    "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**BERT)),
    "camembert": lambda: tf.CamembertForTokenClassification(tf.CamembertConfig(**BERT)),
    "albert": lambda: tf.AlbertForSequenceClassification(tf.AlbertConfig(**BERT, embedding_size=16)),
    "xlnet": lambda: tf.XLNetForSequenceClassification(
        tf.XLNetConfig(vocab_size=VOCAB, d_model=D, n_layer=LAYERS, n_head=HEADS, d_inner=F, num_labels=3)
    ),
    "distilbert": lambda: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(
            vocab_size=VOCAB,
            dim=D,
            hidden_dim=F,
            n_layers=LAYERS,
            n_heads=HEADS,
            max_position_embeddings=40,
            num_labels=3,
        )
    ),
    "deberta-v2": lambda: tf.DebertaV2ForSequenceClassification(
        tf.DebertaV2Config(
            **BERT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, norm_rel_ebd="layer_norm"
        )
    ),
    "electra": lambda: tf.ElectraForSequenceClassification(tf.ElectraConfig(**BERT, embedding_size=16)),
    "esm": lambda: tf.EsmForSequenceClassification(tf.EsmConfig(**BERT, position_embedding_type="rotary")),
    "mpnet": lambda: tf.MPNetForSequenceClassification(tf.MPNetConfig(**BERT)),
    "modernbert": lambda: tf.ModernBertForSequenceClassification(
        tf.ModernBertConfig(
            **BERT,
            global_attn_every_n_layers=2,
            local_attention=8,
            cls_token_id=1,
            sep_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(
            vocab_size=VOCAB,
            n_embd=D,
            n_layer=LAYERS,
            n_head=HEADS,
            n_inner=F,
            n_positions=40,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ),
    "gpt-neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**BERT)),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=D,
            ffn_dim=F,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=40,
            word_embed_proj_dim=D,
            pad_token_id=0,
        )
    ),
    "bloom": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(vocab_size=VOCAB, hidden_size=D, n_layer=LAYERS, n_head=HEADS, pad_token_id=0)
    ),
    "falcon": lambda: tf.FalconForCausalLM(
        tf.FalconConfig(
            vocab_size=VOCAB, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=HEADS, pad_token_id=0
        )
    ),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**LLAMA, tie_word_embeddings=False)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**LLAMA)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**LLAMA, head_dim=8)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**LLAMA, head_dim=8, sliding_window=8)),
    "qwen3-moe": lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(
            **LLAMA, head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1
        )
    ),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=VOCAB, hidden_size=D, num_hidden_layers=LAYERS, state_size=8, pad_token_id=0)
    ),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(
            vocab_size=VOCAB, d_model=D, d_kv=8, d_ff=F, num_layers=LAYERS, num_heads=HEADS, decoder_start_token_id=0
        )
    ),
    "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**BART)),
    "mbart": lambda: tf.MBartForConditionalGeneration(tf.MBartConfig(**BART)),
    "marian": lambda: tf.MarianMTModel(tf.MarianConfig(**BART)),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**VISION)),
    "dinov2": lambda: tf.Dinov2ForImageClassification(tf.Dinov2Config(**VISION, mlp_ratio=2)),
    "beit": lambda: tf.BeitForImageClassification(tf.BeitConfig(**VISION)),
    "swin": lambda: tf.SwinForImageClassification(
        tf.SwinConfig(
            image_size=16, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=3
        )
    ),
    "segformer": lambda: tf.SegformerForImageClassification(
        tf.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            num_labels=3,
        )
    ),
    "clip": lambda: tf.CLIPModel(
        tf.CLIPConfig(
            text_config={**{k: v for k, v in LLAMA.items() if k != "num_labels"}, "projection_dim": 16},
            vision_config={**{k: v for k, v in VISION.items() if k != "num_labels"}, "projection_dim": 16},
            projection_dim=16,
        )
    ),
    "detr": _detr,
    "rt-detr": _rt_detr,
    "yolos": lambda: tf.YolosForObjectDetection(
        tf.YolosConfig(**{**VISION, "image_size": [16, 16]}, num_detection_tokens=5)
    ),
    "whisper": lambda: tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(
            **BART,
            num_mel_bins=8,
            max_source_positions=10,
            max_target_positions=40,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    ),
    "wav2vec2": lambda: tf.Wav2Vec2ForCTC(tf.Wav2Vec2Config(**SPEECH)),
    "hubert": lambda: tf.HubertForCTC(tf.HubertConfig(**SPEECH)),
    "ast": lambda: tf.ASTForAudioClassification(
        tf.ASTConfig(
            **{k: v for k, v in VISION.items() if k not in ("image_size", "patch_size")},
            patch_size=4,
            max_length=16,
            num_mel_bins=8,
            frequency_stride=4,
            time_stride=4,
        )
    ),
    "patchtst": lambda: tf.PatchTSTForPrediction(
        tf.PatchTSTConfig(
            num_input_channels=2,
            context_length=16,
            patch_length=4,
            patch_stride=4,
            prediction_length=4,
            d_model=D,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            ffn_dim=F,
        )
    ),
    "time-series-transformer": lambda: tf.TimeSeriesTransformerForPrediction(
        tf.TimeSeriesTransformerConfig(
            prediction_length=4,
            context_length=8,
            lags_sequence=[1, 2],
            num_time_features=1,
            d_model=D,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            encoder_ffn_dim=F,
            decoder_ffn_dim=F,
        )
    ),
    "torch": PlainTransformer,
}
NAMES = tuple(BUILDERS)


def tiny(name: str) -> nn.Module:
    """A small random model of a family; dropout rates are those of the family's config."""
    return BUILDERS[name]()


def inputs(model: Any, rows: int = ROWS, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of 3 rows of different length, padded on the right, with their mask."""
    generator = torch.Generator().manual_seed(seed)

    def tokens() -> Tensor:
        return torch.randint(3, 90, (rows, TOKENS), generator=generator)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    config = getattr(model, "config", None)
    kind = getattr(model, "main_input_name", "input_ids")
    if kind == "pixel_values" and not isinstance(model, tf.CLIPModel):
        size = getattr(config, "image_size", 64)
        side = 64 if "Detr" in type(model).__name__ else size if isinstance(size, int) else size[0]
        return {"pixel_values": floats(rows, 3, side, side)}
    if kind == "input_features":
        decoder = torch.randint(3, 90, (rows, 5), generator=generator)
        return {"input_features": floats(rows, 8, 20), "decoder_input_ids": decoder}
    if kind == "input_values":
        return {"input_values": floats(rows, 16, 8) if hasattr(config, "num_mel_bins") else floats(rows, 800)}
    if kind == "past_values":
        return _series(model, rows, floats)
    found = {"input_ids": tokens()}
    if config is None:
        return found
    if isinstance(model, tf.CLIPModel):
        found["pixel_values"] = floats(rows, 3, 16, 16)
    mask = torch.ones(rows, TOKENS, dtype=torch.long)
    for row in range(1, rows):
        mask[row, TOKENS - row :] = 0
    found["input_ids"] = found["input_ids"].where(mask.bool(), 0)
    if not isinstance(model, tf.MambaForCausalLM):
        found["attention_mask"] = mask
    if config.is_encoder_decoder:
        found["decoder_input_ids"] = torch.randint(3, 90, (rows, 5), generator=generator)
    return found


def _series(model: Any, rows: int, floats: Callable[..., Tensor]) -> dict[str, Tensor]:
    if isinstance(model, tf.PatchTSTForPrediction):
        return {"past_values": floats(rows, 16, 2)}
    past, future = 10, 4
    return {
        "past_values": floats(rows, past),
        "past_time_features": floats(rows, past, 1),
        "past_observed_mask": torch.ones(rows, past),
        "future_values": floats(rows, future),
        "future_time_features": floats(rows, future, 1),
    }
