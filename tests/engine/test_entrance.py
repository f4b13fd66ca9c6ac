"""Where virtual tokens can enter, and who refuses them."""

import contextlib

import pytest
import torch

from deltatune.core.errors import SettingsError
from deltatune.engine.anatomy import Anatomy
from models import tiny

EXPECTED = {
    "bert": ("bert.embeddings", "bert", "bert.encoder", "encoder", 32),
    "albert": ("albert.embeddings", "albert", "albert.encoder", "encoder", 16),
    "mpnet": ("mpnet.embeddings", "mpnet", "mpnet.encoder", "encoder", 32),
    "gpt2": ("transformer.wte", "transformer", "transformer.ln_f", "model", 32),
    "llama": ("model.embed_tokens", "model", "model.norm", "model", 32),
    "opt": ("model.decoder.embed_tokens", "model.decoder", "model.decoder.final_layer_norm", "decoder", 32),
    "t5": ("encoder.embed_tokens", "encoder", "encoder.final_layer_norm", "encoder", 32),
    "bart": ("model.encoder.embed_tokens", "model.encoder", "model.encoder", "encoder", 32),
    "mbart": ("model.encoder.embed_tokens", "model.encoder", "model.encoder.layer_norm", "encoder", 32),
    "whisper": ("model.decoder.embed_tokens", "model.decoder", "model.decoder.layer_norm", "decoder", 32),
    "vit": ("vit.embeddings", "vit", "vit.layernorm", "model", 32),
    "clip": ("text_model.embeddings", "text_model", "text_model.encoder", "text_model.encoder.layers", 32),
    "torch": ("embed", "", "encoder", "encoder", 32),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_entrance_of_virtual_tokens(name):
    (site,) = Anatomy.of(tiny(name)).inputs()
    assert (site.path, site.backbone, site.exit, site.stack, site.width) == EXPECTED[name]


@pytest.mark.parametrize("name", ["xlnet", "swin", "segformer", "detr", "patchtst", "wav2vec2", "yolos", "esm"])
def test_models_that_take_no_virtual_tokens_are_refused(name):
    with pytest.raises(SettingsError, match="takes no tokens|no embedded tokens|does not read its tokens"):
        Anatomy.of(tiny(name)).inputs()


def test_a_model_without_values_has_the_same_entrance():
    with torch.device("meta"):
        empty = tiny("llama")
    (site,) = Anatomy.of(empty).inputs()
    assert (site.path, site.exit) == ("model.embed_tokens", "model.norm")


def test_trying_leaves_no_hooks_even_where_it_fails():
    for name in ("bert", "yolos"):
        model = tiny(name)
        with contextlib.suppress(SettingsError):
            Anatomy.of(model).inputs()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
