"""Small random detectors of every family, for three classes; images of `SIDE` pixels a side."""

from collections.abc import Callable
from typing import Any

import transformers as tf

SIDE = 64
D, F, LAYERS, HEADS, QUERIES, CLASSES = 32, 48, 2, 4, 7, 3

WIDTHS = {
    "encoder_ffn_dim": F,
    "decoder_ffn_dim": F,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
}
DETR = {
    **WIDTHS,
    "use_timm_backbone": False,
    "backbone": None,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
}
RT_DETR = {
    **WIDTHS,
    "encoder_hidden_dim": D,
    "encoder_in_channels": [16] * 3,
    "decoder_in_channels": [D] * 3,
    "d_model": D,
    "decoder_layers": LAYERS,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
}
VISION = {
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": SIDE,
    "patch_size": 8,
}


def _resnet(*features: str) -> Any:
    return tf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16], depths=[1, 1], out_features=list(features or ["stage2"])
    )


def _rt_resnet() -> Any:
    features = ["stage2", "stage3", "stage4"]
    return tf.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16] * 4, depths=[1] * 4, layer_type="basic", out_features=features
    )


def _yolos() -> Any:
    config = tf.YolosConfig(**{**VISION, "image_size": [SIDE, SIDE]}, num_detection_tokens=QUERIES, num_labels=CLASSES)
    return tf.YolosForObjectDetection(config)


def _deformable() -> Any:
    features = _resnet("stage1", "stage2")
    config = tf.DeformableDetrConfig(backbone_config=features, d_model=D, num_feature_levels=2, class_cost=2, **DETR)
    return tf.DeformableDetrForObjectDetection(config)


BUILDERS: dict[str, Callable[[], Any]] = {
    "detr": lambda: tf.DetrForObjectDetection(tf.DetrConfig(backbone_config=_resnet(), d_model=D, **DETR)),
    "yolos": _yolos,
    "conditional-detr": lambda: tf.ConditionalDetrForObjectDetection(
        tf.ConditionalDetrConfig(backbone_config=_resnet(), d_model=D, **DETR)
    ),
    "dab-detr": lambda: tf.DabDetrForObjectDetection(
        tf.DabDetrConfig(backbone_config=_resnet(), hidden_size=D, **DETR)
    ),
    "deformable-detr": _deformable,
    "rt-detr": lambda: tf.RTDetrForObjectDetection(tf.RTDetrConfig(backbone_config=_rt_resnet(), **RT_DETR)),
    "rt-detr-v2": lambda: tf.RTDetrV2ForObjectDetection(tf.RTDetrV2Config(backbone_config=_rt_resnet(), **RT_DETR)),
    "d-fine": lambda: tf.DFineForObjectDetection(tf.DFineConfig(backbone_config=_rt_resnet(), **RT_DETR)),
}
FAMILIES = tuple(BUILDERS)


def detector(family: str) -> Any:
    """A small random detector, in evaluation mode."""
    return BUILDERS[family]().eval()
