"""Bottleneck adapters: the counts of the papers, the three places against a forward by hand."""

import pytest
import torch
import torch.nn.functional as F

import deltatune
from contract.cases import disturb, forward, model_of, outputs
from deltatune.core.errors import SettingsError
from models import inputs
from shapes import count


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        ("bert-base", {"placement": "houlsby", "bottleneck_size": 64}, 2_379_264),
        ("bert-base", {"placement": "houlsby", "bottleneck_size": 48}, 1_789_056),
        ("bert-base", {"placement": "pfeiffer", "reduction_factor": 16}, 894_528),
        ("bert-base", {"placement": "parallel", "reduction_factor": 2}, 7_091_712),
        ("roberta-large", {"placement": "houlsby", "bottleneck_size": 64}, 2 * 24 * (2 * 64 * 1024 + 64 + 1024)),
        ("t5-base", {"placement": "houlsby", "reduction_factor": 32}, 48 * (2 * 24 * 768 + 24 + 768)),
        ("llama-7b", {"placement": "pfeiffer", "bottleneck_size": 64}, 32 * (2 * 64 * 4096 + 64 + 4096)),
    ],
)
def test_it_trains_the_number_of_values_of_the_paper(model, settings, expected):
    assert count(deltatune.BottleneckAdapter(**settings), model) == expected


def test_the_norms_of_t5_base_make_the_adapter_of_the_compacter_paper():
    trained = count(deltatune.BottleneckAdapter(reduction_factor=32, train_layernorm=True), "t5-base")
    assert trained - count(deltatune.BottleneckAdapter(reduction_factor=32), "t5-base") == 47_616
    assert round(100 * trained / 222_903_552, 3) == 0.832


def bottleneck(adapter, path):
    module = adapter.attached.placed.sites[path]
    return lambda x: F.gelu(x @ module.down_weight.T + module.down_bias) @ module.up_weight.T + module.up_bias


def by_hand(model, adapter, places):
    """The output of BERT's second block, its adapters written out."""
    block = model.bert.encoder.layer[1]
    change = {name: bottleneck(adapter, f"bert.encoder.layer.1.{path}") for name, path in places.items()}
    whole, attention = watched(block), watched(block.attention.self)
    expected = forward_with_hidden(model)
    x, a = whole["in"], block.attention.output.dense(attention["out"])
    if "attention" in change:
        a = a + change["attention"](a)
    x = block.attention.output.LayerNorm(a + x)
    h = block.output.dense(block.intermediate(x))
    return h, x, change["mlp"], block.output.LayerNorm, expected


def watched(module):
    """What goes in and comes out of a module in the next pass."""
    seen = {}

    def note(_, args, out):
        seen["in"], seen["out"] = args[0], out if isinstance(out, torch.Tensor) else out[0]

    module.register_forward_hook(note)
    return seen


def forward_with_hidden(model):
    return model(**inputs(model), output_hidden_states=True).hidden_states[-1]


def test_houlsby_reads_the_output_of_both_sublayers():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.BottleneckAdapter(placement="houlsby", bottleneck_size=3))
    disturb(adapter, size=0.3)
    places = {"attention": "attention.output.dropout", "mlp": "output.dropout"}
    h, x, change, norm, expected = by_hand(model, adapter, places)
    assert torch.allclose(norm(h + change(h) + x), expected, atol=1e-6)


def test_pfeiffer_reads_the_normed_sum_and_the_norm_follows_once_more():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.BottleneckAdapter(placement="pfeiffer", bottleneck_size=3))
    disturb(adapter, size=0.3)
    h, x, change, norm, expected = by_hand(model, adapter, {"mlp": "output.dropout"})
    assert torch.allclose(norm(change(norm(h + x)) + h + x), expected, atol=1e-6)


def test_parallel_reads_the_input_of_the_feed_forward():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.BottleneckAdapter(placement="parallel", bottleneck_size=3, scaling=4.0))
    disturb(adapter, size=0.3)
    h, x, change, norm, expected = by_hand(model, adapter, {"mlp": "output.dropout"})
    assert torch.allclose(norm(h + 4 * change(x) + x), expected, atol=1e-6)


def test_in_pre_norm_blocks_pfeiffer_reads_the_sum():
    model = model_of("gpt2")
    adapter = deltatune.attach(model, deltatune.BottleneckAdapter(placement="pfeiffer", bottleneck_size=3))
    disturb(adapter, size=0.3)
    block = model.transformer.h[1]
    whole, attention = watched(block), watched(block.attn)
    forward(model, inputs(model))
    x = whole["in"] + attention["out"]
    expected = whole["out"]
    with adapter.disabled():
        h = block.mlp(block.ln_2(x))
    change = bottleneck(adapter, next(p for p in adapter.attached.placed.sites if ".h.1." in p))
    assert torch.allclose(x + h + change(x + h), expected, atol=1e-5)


def test_a_learned_scale_a_gate_and_a_norm_of_its_own_are_counted_and_trained():
    model = model_of("bert")
    method = deltatune.BottleneckAdapter(scaling="learned", use_gating=True, ln_after=True, bottleneck_size=2)
    adapter = deltatune.attach(model, method)
    assert adapter.trainable_parameters == method.count(adapter.attached.sites)
    disturb(adapter)
    outputs_before = outputs(model)
    forward(model, inputs(model)).square().sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    with adapter.disabled():
        assert not torch.equal(outputs(model), outputs_before)


def test_a_gate_scales_the_change_of_every_token_by_the_sigmoid_of_its_input():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.BottleneckAdapter(use_gating=True, bottleneck_size=2))
    disturb(adapter, size=0.3)
    module = next(iter(adapter.attached.placed.modules()))
    x = torch.randn(2, 3, 32)
    plain = bottleneck(adapter, next(iter(adapter.attached.placed.sites)))(x)
    gate = torch.sigmoid((x * module.gate).sum(-1, keepdim=True))
    assert torch.allclose(module.change(x, None), gate * plain, atol=1e-6)


def test_blocks_left_out_have_no_adapter_and_count_on_into_the_decoder():
    model = model_of("t5")
    whole = deltatune.attach(model, deltatune.BottleneckAdapter(bottleneck_size=2))
    blocks = list(dict.fromkeys((site.stack, site.block) for site in whole.attached.sites))
    whole.detach()
    part = deltatune.attach(model, deltatune.BottleneckAdapter(bottleneck_size=2, leave_out=(0, len(blocks) - 1)))
    assert {(site.stack, site.block) for site in part.attached.sites} == set(blocks[1:-1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"leave_out": (2,)}, r"leave_out names block 2 and this model has 2 \(0..1\)"),
        ({"leave_out": (0, 1)}, "leaves no block for adapter"),
        ({"bottleneck_size": 1000}, r"a bottleneck of 1000 is not possible at .* \(1..32\); try bottleneck_size=2"),
        ({"reduction_factor": 100}, "a bottleneck of 0 is not possible"),
    ],
)
def test_settings_without_a_place_are_errors(fields, message):
    with pytest.raises(SettingsError, match=message):
        deltatune.attach(model_of("bert"), deltatune.BottleneckAdapter(**fields))
