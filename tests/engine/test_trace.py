"""Where sublayer outputs join the residual stream: against places written down by hand, and against arithmetic."""

import pytest
import torch
import transformers as tf
from torch import nn

from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.site import Tap
from deltatune.engine.anatomy import Anatomy
from models import LAYERS, NAMES, inputs, tiny

ROLES = ("attention", "cross_attention", "mlp")
NONE = {"mamba"}
"""No attention and no feed-forward."""
HIDDEN = {"xlnet"}
"""Attention, residual and norm in one module."""

POST = {
    "bert": ("attention.output.dropout", "attention.output.LayerNorm", "output.dropout", "output.LayerNorm"),
    "albert": ("attention.output_dropout", "attention.LayerNorm", "ffn_output", "full_layer_layer_norm"),
    "distilbert": ("attention", "sa_layer_norm", "ffn", "output_layer_norm"),
    "deberta-v2": ("attention.output.dropout", "attention.output.LayerNorm", "output.dropout", "output.LayerNorm"),
    "bart": ("self_attn", "self_attn_layer_norm", "fc2", "final_layer_norm"),
    "wav2vec2": ("dropout", "layer_norm", "feed_forward", "final_layer_norm"),
    "torch": ("dropout1", "norm1", "dropout2", "norm2"),
}
"""Attention output and its norm, feed-forward output and its norm."""

PRE = {
    "gpt2": ("attn", "ln_1", "mlp", "ln_2"),
    "llama": ("self_attn", "input_layernorm", "mlp", "post_attention_layernorm"),
    "gemma3": (
        "post_attention_layernorm",
        "input_layernorm",
        "post_feedforward_layernorm",
        "pre_feedforward_layernorm",
    ),
    "qwen3-moe": ("self_attn", "input_layernorm", "mlp", "post_attention_layernorm"),
    "opt": ("self_attn", "self_attn_layer_norm", "fc2", "final_layer_norm"),
    "t5": ("layer.0.dropout", "layer.0.layer_norm", "layer.1.dropout", "layer.1.layer_norm"),
    "vit": ("attention", "layernorm_before", "mlp", "layernorm_after"),
    "dinov2": ("layer_scale1", "norm1", "layer_scale2", "norm2"),
    "swin": ("drop_path", "layernorm_before", "mlp", "layernorm_after"),
    "gpt-neox": ("post_attention_dropout", "input_layernorm", "post_mlp_dropout", "post_attention_layernorm"),
    "falcon": ("self_attention", "input_layernorm", "mlp", "input_layernorm"),
}
"""Attention output and what it reads behind, feed-forward output and what it reads behind."""


def first_two(name):
    anatomy = Anatomy.of(tiny(name))
    block = anatomy.main_stack.blocks[0]
    sites = [s for s in anatomy.sublayers(("attention", "mlp")) if s.stack == anatomy.main_stack.name and s.block == 0]
    return block, sites


@pytest.mark.parametrize("name", POST)
def test_post_norm_blocks(name):
    block, (attention, mlp) = first_two(name)
    end, norm, mlp_end, mlp_norm = (f"{block}.{inner}" for inner in POST[name])
    assert (attention.path, attention.norm, mlp.path, mlp.norm) == (end, norm, mlp_end, mlp_norm)
    assert attention.residual == attention.entry == Tap(path=block, side="input")
    assert mlp.residual == mlp.entry == Tap(path=norm, side="output")


@pytest.mark.parametrize("name", PRE)
def test_pre_norm_blocks(name):
    block, (attention, mlp) = first_two(name)
    end, before, mlp_end, mlp_before = (f"{block}.{inner}" for inner in PRE[name])
    assert (attention.path, mlp.path) == (end, mlp_end)
    assert (attention.entry, mlp.entry) == (Tap(path=before, side="output"), Tap(path=mlp_before, side="output"))
    assert attention.residual == Tap(path=block, side="input")
    assert attention.norm is None
    assert mlp.norm is None


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NONE | HIDDEN])
def test_every_projection_back_to_the_stream_has_its_place(name):
    anatomy = Anatomy.of(tiny(name))
    sites = anatomy.sublayers(ROLES)
    ends = [layer for layer in anatomy.every_layer if layer.role.partition(".")[2] in ("output", "down")]
    expected = {(end.stack, end.block, end.role.partition(".")[0]) for end in ends}
    assert {(site.stack, site.block, site.role) for site in sites} == expected
    assert len({site.path for site in sites}) == len(sites)


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "whisper", "vit", "gpt-neox", "falcon", "dinov2", "detr"])
def test_what_is_added_at_a_place_is_added_to_the_stream(name):
    """Moving h and moving the residual by the same amount have the same effect on the rest of the block."""
    torch.manual_seed(0)
    model = tiny(name).eval()
    for site in Anatomy.of(model).sublayers(("mlp",))[:1]:
        shift = torch.randn(site.width)
        seen = []

        def moved(module, args, output, shift=shift):
            head = output[0] if isinstance(output, tuple) else output
            return (head + shift, *output[1:]) if isinstance(output, tuple) else head + shift

        block = next(s for s in Anatomy.of(model).stacks if s.name == site.stack).blocks[site.block]
        watch = model.get_submodule(site.norm or block).register_forward_hook(
            lambda m, a, o, seen=seen: seen.append(o[0] if isinstance(o, tuple) else o)
        )
        catch = {}
        entered = model.get_submodule(site.norm or block).register_forward_pre_hook(
            lambda m, a, catch=catch: catch.setdefault("sum", []).append(a[0] if a else None)
        )
        with torch.no_grad():
            model(**inputs(model))
            change = model.get_submodule(site.path).register_forward_hook(moved)
            model(**inputs(model))
        for handle in (watch, entered, change):
            handle.remove()
        before, after = (catch["sum"] if site.norm else seen)[0], (catch["sum"] if site.norm else seen)[-1]
        assert torch.allclose(after - before, shift.expand_as(before), atol=1e-5)


def test_an_output_out_of_reach_is_refused_by_name():
    anatomy = Anatomy.of(tiny("xlnet"))
    with pytest.raises(SettingsError, match=r"rel_attn\.o cannot be reached.*place for mlp"):
        anatomy.sublayers(("attention", "mlp"))
    assert len(anatomy.sublayers(("mlp",))) == LAYERS


def test_an_output_that_joins_with_its_channels_in_front_is_refused():
    model = tf.ConvNextModel(tf.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2))
    with pytest.raises(SettingsError, match=r"pwconv2 cannot be reached"):
        Anatomy.of(model).sublayers(("mlp",))


def test_a_model_without_sublayers_is_refused():
    with pytest.raises(SettingsError, match="no attention or mlp whose output joins"):
        Anatomy.of(tiny("mamba")).sublayers(("attention", "mlp"))


def test_a_role_the_model_lacks_is_refused():
    with pytest.raises(SettingsError, match=r"no cross_attention.*place for attention, mlp"):
        Anatomy.of(tiny("bert")).sublayers(("cross_attention",))


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "vit", "falcon", "whisper"])
def test_a_model_without_values_has_the_same_places(name):
    with torch.device("meta"):
        empty = tiny(name)
    found, expected = (Anatomy.of(model).sublayers(ROLES) for model in (empty, tiny(name)))
    assert [(s.path, s.residual, s.entry, s.norm) for s in found] == [
        (s.path, s.residual, s.entry, s.norm) for s in expected
    ]


def test_zero_weights_and_low_precision_change_nothing():
    model = tiny("llama")
    expected = [site.path for site in Anatomy.of(model).sublayers(ROLES)]
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert [site.path for site in Anatomy.of(model).sublayers(ROLES)] == expected
    assert [site.path for site in Anatomy.of(model.to(torch.bfloat16)).sublayers(ROLES)] == expected


def test_the_pass_leaves_no_trace():
    model = tiny("bert").train()
    model.bert.embeddings.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    Anatomy.of(model).sublayers(("mlp",))
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Broken(nn.Module):
    """Blocks that cannot run."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))

    def forward(self, x):
        self.blocks[0](x)
        raise ValueError("no such luck")


def test_a_pass_that_fails_says_so_and_leaves_no_trace():
    model = Broken()
    with pytest.raises(AdapterError, match="small forward pass through Broken failed: ValueError: no such luck"):
        Anatomy.of(model).sublayers(("mlp",))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_structure_needs_no_pass():
    anatomy = Anatomy.of(Broken())
    assert len(anatomy.layers("all-linear")) == 2 * 4
    assert anatomy.parameters(["norm"])
