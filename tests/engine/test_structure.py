"""Structures beyond the 43 families: experts, mixed blocks, shared heads, plain modules, models that carry adapters."""

import pytest
import torch
import transformers as tf
from torch import nn

import deltatune
from deltatune.core.errors import SettingsError
from deltatune.engine.anatomy import Anatomy
from deltatune.engine.attach import attach
from deltatune.engine.blocks import backbone_of, base_parameters
from deltatune.methods.lora import LoRA
from detectors import detector
from models import BERT, LLAMA, VISION, D, F, tiny

SMALL = {key: value for key, value in LLAMA.items() if key != "num_labels"}


def roles(model, block=0, stack=0):
    anatomy = Anatomy.of(model)
    chosen = anatomy.stacks[stack]
    inside = [x for x in anatomy.every_layer if (x.stack, x.block) == (chosen.name, block)]
    return {x.path.removeprefix(f"{chosen.blocks[block]}."): x.role for x in inside}


def test_experts_of_gpt_oss_are_stored_transposed():
    config = tf.GptOssConfig(**SMALL, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
    up, down = Anatomy.of(tf.GptOssForCausalLM(config)).layers("mlp")[:2]
    assert (up.in_features, up.out_features, up.copies, up.transposed) == (D, 2 * F, 4, True)
    assert (down.in_features, down.out_features, down.copies, down.transposed) == (F, D, 4, True)


def test_a_shared_expert_ends_in_the_same_place_as_the_routed_ones():
    config = tf.Qwen2MoeConfig(**SMALL, moe_intermediate_size=16, shared_expert_intermediate_size=24, num_experts=4)
    model = tf.Qwen2MoeForCausalLM(config)
    found = roles(model)
    assert found["mlp.shared_expert.down_proj"] == found["mlp.experts.down_proj"] == "mlp.down"
    assert found["mlp.shared_expert_gate"] == "router"
    assert [site.path for site in Anatomy.of(model).sublayers(("mlp",))] == [f"model.layers.{i}.mlp" for i in range(2)]


def test_compressed_keys_and_values_are_packed_and_take_no_prefix():
    config = tf.DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    )
    anatomy = Anatomy.of(tf.DeepseekV3ForCausalLM(config))
    assert {x.packed for x in anatomy.layers("*.kv_*")} == {("key", "value")}
    with pytest.raises(SettingsError, match="makes both from one vector"):
        anatomy.attentions()


def test_parallel_sublayers_added_one_after_the_other_have_one_stream():
    anatomy = Anatomy.of(tf.CohereForCausalLM(tf.CohereConfig(**SMALL)))
    attention, mlp = anatomy.sublayers(("attention", "mlp"))[:2]
    assert attention.residual == mlp.residual
    assert attention.entry == mlp.entry


def test_scaled_sublayers_keep_their_place():
    config = tf.GraniteConfig(**SMALL, residual_multiplier=0.5)
    anatomy = Anatomy.of(tf.GraniteForCausalLM(config))
    assert [site.path for site in anatomy.sublayers(("attention",))] == [f"model.layers.{i}.self_attn" for i in (0, 1)]


def test_stages_of_convolutional_blocks_are_one_stack():
    config = tf.ConvNextConfig(hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, image_size=32)
    anatomy = Anatomy.of(tf.ConvNextForImageClassification(config))
    (stack,) = anatomy.stacks
    assert (len(stack.blocks), stack.owner) == (4, "convnext.encoder")
    assert roles(anatomy.model) == {"pwconv1": "mlp.up", "pwconv2": "mlp.down", "dwconv": "other"}


def test_extra_feed_forwards_do_not_make_stacks_of_their_own():
    config = tf.MobileBertConfig(**BERT, embedding_size=16, intra_bottleneck_size=16)
    (stack,) = Anatomy.of(tf.MobileBertForSequenceClassification(config)).stacks
    assert stack.blocks == ("mobilebert.encoder.layer.0", "mobilebert.encoder.layer.1")


def test_separate_lists_of_attentions_and_feed_forwards_are_stacks():
    model = tf.XLMForSequenceClassification(tf.XLMConfig(vocab_size=99, emb_dim=D, n_layers=2, n_heads=4))
    anatomy = Anatomy.of(model)
    assert [stack.lists for stack in anatomy.stacks] == [("transformer.attentions",), ("transformer.ffns",)]
    assert len(anatomy.layers("all-linear")) == 2 * 4 + 2 * 2


def test_a_language_model_that_sees_has_the_language_stack_as_its_main_one():
    vision = tf.CLIPVisionConfig(**{key: value for key, value in VISION.items() if key != "num_labels"})
    text = tf.LlamaConfig(**{**SMALL, "intermediate_size": 96})
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=98)
    anatomy = Anatomy.of(tf.LlavaForConditionalGeneration(config))
    assert anatomy.main_stack.owner == "model.language_model"
    assert anatomy.heads == ("lm_head",)


def test_cross_attention_of_a_torch_decoder_is_known():
    layer = nn.TransformerDecoderLayer(D, 4, F, batch_first=True)
    found = roles(nn.TransformerDecoder(layer, 2))
    assert found["self_attn.in_proj_weight"] == "attention.query"
    assert found["multihead_attn.out_proj"] == "cross_attention.output"


def test_attention_is_known_by_its_query_where_no_name_says_it():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.wq, self.wk, self.wv, self.wo = (nn.Linear(8, 8) for _ in range(4))
            self.mix = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    found = roles(nn.Sequential(Block(), Block()))
    assert found["wq"] == "attention.query"
    assert (found["mix.0"], found["mix.2"]) == ("mlp.up", "mlp.down")


def test_heads_inside_the_backbone_are_found_by_what_they_answer():
    heads = Anatomy.of(tiny("rt-detr")).heads
    assert "model.enc_score_head" in heads
    assert {f"model.decoder.class_embed.{i}" for i in range(2)} <= set(heads)
    assert "model.decoder.query_pos_head" not in heads


def test_a_backbone_is_found_where_its_name_leads_nowhere(monkeypatch):
    model = tiny("rt-detr")
    heads = Anatomy.of(model).heads
    monkeypatch.setattr(type(model), "base_model_prefix", "rt_detr")  # as in transformers 5.17
    assert backbone_of(model) is model.model and Anatomy.of(model).heads == heads


@pytest.mark.parametrize("family", ["rt-detr-v2", "d-fine"])
def test_heads_that_are_listed_outside_again_are_those_inside(family):
    model = detector(family)
    heads = Anatomy.of(model).heads
    assert "model.enc_score_head" in heads
    assert {"model.decoder.class_embed.0", "model.decoder.class_embed.1"} <= set(heads)
    adapter = deltatune.attach(model, deltatune.method("linear-probe"))
    assert adapter.trainable_parameters > 0
    assert Anatomy.of(tiny("gpt2")).heads == ("lm_head",)  # shares its matrix with the embeddings


def test_a_head_on_a_backbone_without_a_name_is_what_comes_after_the_blocks():
    config = tf.CLIPConfig(text_config=SMALL, vision_config={k: v for k, v in VISION.items() if k != "num_labels"})
    assert Anatomy.of(tf.CLIPForImageClassification(config)).heads == ("classifier",)
    assert Anatomy.of(tf.BertModel(tf.BertConfig(**BERT))).heads == ()


def test_the_side_stack_is_one_of_equal_width():
    site = Anatomy.of(tiny("albert")).side()
    assert (site.path, site.width, len(site.blocks)) == ("albert.encoder", D, 1)
    with pytest.raises(SettingsError, match=r"differ in width \(16, 32\)"):
        Anatomy.of(tiny("swin")).side()


def test_block_of_a_path():
    anatomy = Anatomy.of(tiny("t5"))
    assert anatomy.block_of("decoder.block.1.layer.0.SelfAttention.q.weight") == ("decoder", 1)
    assert anatomy.block_of("encoder.block.0") == ("encoder", 0)
    assert anatomy.block_of("shared.weight") is None


def test_a_model_without_blocks_has_layers_but_no_main_stack():
    anatomy = Anatomy.of(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    assert [layer.path for layer in anatomy.layers(("0", "2"))] == ["0", "2"]
    with pytest.raises(SettingsError, match="no repeated blocks"):
        anatomy.side()


def test_adapters_are_no_part_of_the_map():
    model = tiny("bert")
    before = Anatomy.of(model)
    attach(model, LoRA(r=2))
    after = Anatomy.of(model)
    assert [x.path for x in after.every_layer] == [x.path for x in before.every_layer]
    assert [x.path for x in after.every_parameter] == [x.path for x in before.every_parameter]
    assert [x.path for x in after.sublayers(("mlp",))] == [x.path for x in before.sublayers(("mlp",))]


def test_layers_kept_in_few_bits_have_the_shape_they_stand_for():
    class Linear4bit(nn.Linear):
        """Stored as bitsandbytes does: two values a byte, in one column."""

        def __init__(self, inner, out):
            super().__init__(inner, out, bias=False)
            self.weight = nn.Parameter(torch.zeros(inner * out // 2, 1, dtype=torch.uint8), requires_grad=False)

    model = tiny("llama")
    model.model.layers[0].self_attn.q_proj = Linear4bit(D, D)
    anatomy = Anatomy.of(model)
    first, second = anatomy.layers("attention.query")
    assert (first.quantised, first.in_features, first.out_features) == (True, D, D)
    assert not second.quantised
    (site,) = anatomy.parameters(targets=first.path)
    assert site.shape == (D, D)


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2", "albert"])
def test_parameters_of_the_base_are_those_it_had_before_adapters_came(family):
    """Tied ones once, in the same order: the fingerprint follows from it."""
    model = tiny(family)
    before = [(path, id(parameter)) for path, parameter in model.named_parameters()]
    for name in ("one", "two"):
        deltatune.attach(model, deltatune.method("bitfit" if family != "t5" else "layernorm"), name=f"{name}-small")
        deltatune.attach(model, deltatune.LoRA(r=2, target_modules="all-linear"), name=name)
    assert [(path, id(parameter)) for path, parameter in base_parameters(model)] == before
