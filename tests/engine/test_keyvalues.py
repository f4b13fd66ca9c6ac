"""Attention modules that take keys and values from outside: heads from shapes, refusals by name."""

import pytest
import torch
import transformers as tf

import deltatune
from deltatune.core.errors import AdapterError, SettingsError
from deltatune.engine.anatomy import Anatomy
from detectors import SIDE, detector
from models import LAYERS, tiny

EXPECTED = {
    "bert": ("attention.self", 4, 4, 8),
    "gpt2": ("attn", 4, 4, 8),
    "gpt-neox": ("attention", 4, 4, 8),
    "llama": ("self_attn", 4, 2, 8),
    "phi3": ("self_attn", 4, 2, 8),
    "modernbert": ("attn", 4, 4, 8),
    "t5": ("layer.0.SelfAttention", 4, 4, 8),
    "vit": ("attention", 4, 4, 8),
    "whisper": ("self_attn", 4, 4, 8),
    "swin": ("attention", 2, 2, 8),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_heads_are_read_from_shapes(name):
    anatomy = Anatomy.of(tiny(name))
    site = anatomy.attentions(("self",))[0]
    path, heads, key_value_heads, width = EXPECTED[name]
    assert site.path == f"{anatomy.main_stack.blocks[0]}.{path}"
    assert (site.heads, site.key_value_heads, site.head_width) == (heads, key_value_heads, width)


def test_cross_attention_is_asked_for_apart():
    anatomy = Anatomy.of(tiny("bart"))
    assert len(anatomy.attentions(("self",))) == 2 * LAYERS
    assert {site.path.rpartition(".")[2] for site in anatomy.attentions(("cross",))} == {"encoder_attn"}


@pytest.mark.parametrize("name", ["xlnet", "deberta-v2", "bloom", "falcon", "mpnet", "mamba", "torch"])
def test_attention_outside_the_registry_is_refused_by_model_name(name):
    model = tiny(name)
    with pytest.raises(SettingsError, match=f"{type(model).__name__} does not take keys and values"):
        Anatomy.of(model).attentions(("self",))


def test_a_role_that_only_some_modules_offer_is_refused():
    anatomy = Anatomy.of(tiny("rt-detr"))
    assert anatomy.attentions(("self",))
    with pytest.raises(SettingsError, match="cross attention"):
        anatomy.attentions(("self", "cross"))


def test_a_part_that_names_its_own_attention_is_reached_beside_one_that_does_not():
    towers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = {**towers, "image_size": 16, "patch_size": 8}
    config = tf.CLIPConfig(text_config=towers, vision_config=vision)
    model = tf.CLIPForImageClassification(config).eval()  # its text tower is not there: its attention stays unnamed
    parts = (config, config.vision_config, config.text_config)
    before = [part._attn_implementation for part in parts]
    pixels = torch.randn(2, 3, 16, 16)
    plain = model(pixels).logits
    adapter = deltatune.attach(model, deltatune.method("prefix", num_virtual_tokens=3), seed=0)
    assert not torch.allclose(model(pixels).logits, plain)
    adapter.detach()
    assert torch.equal(model(pixels).logits, plain)
    assert [part._attn_implementation for part in parts] == before


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["detr", "yolos", "d-fine"])
def test_parts_without_attention_keep_what_they_have(family, attention):
    model = detector(family)
    model.set_attn_implementation({"": attention, "backbone_config": "eager"} if family != "yolos" else attention)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        before = model(pixel_values=pixels).logits
        adapter = deltatune.attach(model, deltatune.method("prefix", num_virtual_tokens=3))
        assert not torch.equal(model(pixel_values=pixels).logits, before)
        adapter.detach()
        assert model.config._attn_implementation == attention
        assert torch.equal(model(pixel_values=pixels).logits, before)


def test_keys_of_another_width_than_their_projection_are_refused():
    model = detector("conditional-detr")
    deltatune.attach(model, deltatune.method("prefix", num_virtual_tokens=3))
    with pytest.raises(AdapterError, match="keys of width 16 are read beside values of width 8"):
        model(pixel_values=torch.randn(1, 3, SIDE, SIDE))
