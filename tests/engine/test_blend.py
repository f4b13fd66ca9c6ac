"""Blending: equal to the composition of outputs where it is linear, and right where peft's combination is not."""

import logging

import pytest
import torch
from peft import PeftModel
from torch import nn

import deltatune
from contract.cases import distance, disturb, model_of, outputs
from deltatune.core import registry
from deltatune.core.errors import AdapterError, DeltatuneError, SettingsError
from deltatune.engine.blend import blend
from deltatune.engine.compose import Average
from deltatune.ops import blending


def lora(**settings):
    return registry.method("lora", **settings)


def with_adapters(family="bert", **methods):
    model = model_of(family)
    for seed, (name, method) in enumerate(methods.items()):
        disturb(deltatune.attach(model, method, name=name, seed=seed), seed=10 + seed)
    return model


def composed(model, weights):
    """Outputs of base + the weighted changes: Average, the base filling up to one."""
    pairs = [*weights.items(), (None, 1 - sum(weights.values()))]
    with deltatune.active(model, Average(pairs)):
        return outputs(model)


DIFFERENT = {
    "a": deltatune.LoRA(r=4, target_modules="attention", use_rslora=True),
    "b": deltatune.LoRA(r=2, lora_alpha=3, target_modules=("mlp", "attention.query"), rank_pattern={"*.1.*": 5}),
    "c": deltatune.PiSSA(r=3, target_modules="attention.value"),
}
"""Ranks, scales, targets and methods all differ."""


@pytest.mark.parametrize("weights", [{"a": 0.7, "b": 0.3}, {"a": 1.0, "b": -0.5, "c": 2.0}, {"c": -1.0}])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5", "xlnet", "whisper"])
def test_a_linear_blend_is_the_composition_of_the_outputs(family, weights):
    methods = {name: method for name, method in DIFFERENT.items() if name in weights}
    model = with_adapters(family, **methods)
    expected = composed(model, weights)
    found = blend(model, weights, lora, name="blended")
    assert found.handle.active and found.handle.method.type == "lora"
    assert distance(outputs(model), expected) < 1e-5
    assert found.error < 1e-5


def test_ranks_add_up_and_no_more():
    model = with_adapters(**DIFFERENT)
    found = blend(model, {"a": 0.5, "b": 0.5}, lora, name="blended")
    ranks = {path.split(".layer.")[1]: rank for path, rank in found.ranks.items()}
    assert ranks["0.attention.self.query"] == 4 + 2
    assert ranks["1.attention.self.query"] == 4 + 5
    assert ranks["0.attention.self.key"] == 4
    assert ranks["1.output.dense"] == 5


@pytest.mark.parametrize(
    "method",
    [
        deltatune.LoRA(r=4, use_rslora=True),
        deltatune.DoRA(r=4),
        deltatune.PiSSA(r=4, alpha_pattern={"*.0.*": 5}),
        deltatune.VeRA(r=16),
        deltatune.SharedLoRA(theta_d_length=64),
        deltatune.LoRA(r=4, rank_pattern={"query": 2}, alpha_pattern={"value": 7}),
    ],
    ids=lambda method: method.type,
)
def test_an_identity_blend_has_the_logits_of_its_part(method, tmp_path):
    """peft: off by 0.22 for rsLoRA, 0.50 for DoRA; the result with a rank pattern cannot be reloaded."""
    model = with_adapters(part=method)
    expected = outputs(model)
    handle = blend(model, {"part": 1.0}, lora, name="blended").handle
    assert distance(outputs(model), expected) < 1e-5
    deltatune.Adapter(model, handle.name).save(tmp_path / "blended")
    fresh = model_of("bert")
    deltatune.load(fresh, tmp_path / "blended")
    assert torch.equal(outputs(fresh), outputs(model))
    theirs = PeftModel.from_pretrained(model_of("bert"), tmp_path / "blended").eval()
    assert distance(outputs(theirs), expected) < 1e-5


def test_a_negative_weight_takes_away_what_was_learned():
    model = with_adapters(a=DIFFERENT["a"], b=DIFFERENT["b"])
    blend(model, {"a": 1.0, "b": 1.0}, lora, name="both")
    blend(model, {"both": 1.0, "b": -1.0}, lora, name="rest")
    rest = outputs(model)
    with deltatune.active(model, "a"):
        assert distance(rest, outputs(model)) < 1e-5


def deltas(model, *names, path="0"):
    found = []
    for name in names:
        module = deltatune.Adapter(model, name).attached.placed.sites[path]
        found.append((module.scale * module.lora_B @ module.lora_A).detach())
    return found


@pytest.fixture
def two():
    """A layer with two LoRAs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10))
    for seed, name in enumerate(("a", "b")):
        handle = deltatune.attach(model, deltatune.LoRA(r=2, target_modules="0"), name=name, seed=seed)
        disturb(handle, seed=seed, size=0.5)
    return model


def test_ties_acts_on_the_changes_and_not_on_the_factors(two):
    parts = deltas(two, "a", "b")
    expected = blending.elected([blending.trimmed(part, 0.4) for part in parts], [0.7, 0.3])
    found = blend(two, {"a": 0.7, "b": 0.3}, lora, name="blended", how="ties", density=0.4)
    assert torch.allclose(deltas(two, "blended")[0], expected, atol=1e-5)
    assert found.error < 1e-5


@pytest.mark.parametrize("how", ["dare_linear", "dare_ties"])
def test_dropping_is_repeatable_from_its_seed_and_another_seed_drops_others(two, how):
    changes = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        blend(two, {"a": 1.0, "b": 1.0}, lora, name=name, how=how, density=0.5, seed=seed)
        changes += deltas(two, name)
    assert torch.equal(changes[0], changes[1])
    assert not torch.allclose(changes[0], changes[2], atol=1e-3)


def test_a_rank_gives_the_nearest_change_of_that_rank_and_says_what_it_leaves_out(two, caplog):
    whole = sum(deltas(two, "a", "b"))
    with caplog.at_level(logging.WARNING, "deltatune"):
        found = blend(two, {"a": 1.0, "b": 1.0}, lora, name="blended", how="svd", rank=2)
    rest = torch.linalg.svdvals(whole)[2:].norm() / whole.norm()
    assert found.ranks == {"0": 2}
    assert abs(found.error - float(rest)) < 1e-6 and abs(found.errors["0"] - float(rest)) < 1e-6
    assert torch.isclose((deltas(two, "blended")[0] - whole).norm() / whole.norm(), rest, rtol=1e-4)
    assert "leaves out" in caplog.text


def test_kernels_and_embeddings_are_blended_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.line = nn.Embedding(9, 5), nn.Conv1d(5, 4, 3)

        def forward(self, tokens):
            return self.line(self.embed(tokens).mT)

    torch.manual_seed(0)
    model, tokens = Net(), torch.arange(9).view(1, 9)
    for name in ("a", "b"):
        disturb(deltatune.attach(model, deltatune.LoRA(r=2, target_modules=("embed", "line")), name=name), size=0.3)
    with deltatune.active(model, "a"):
        expected = model(tokens)
    blend(model, {"a": 0.5, "b": 0.5}, lora, name="blended")
    assert torch.allclose(model(tokens), expected, atol=1e-5)


def test_heads_are_combined_by_their_changes():
    model = with_adapters(
        a=deltatune.LoRA(r=2, modules_to_save=("head",)), b=deltatune.LoRA(r=2, target_modules="query")
    )
    expected = composed(model, {"a": 0.6, "b": 0.4})
    handle = blend(model, {"a": 0.6, "b": 0.4}, lora, name="blended").handle
    assert set(handle.attached.saved) == {"classifier.weight", "classifier.bias"}
    assert distance(outputs(model), expected) < 1e-5


def test_the_parts_and_the_base_stay_as_they_are(two):
    before = {key: tensor.clone() for key, tensor in two.state_dict().items()}
    blend(two, {"a": 0.7, "b": 0.3}, lora, name="blended")
    assert all(torch.equal(two.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(
    ("weights", "settings", "error", "message"),
    [
        ({}, {}, SettingsError, "do not say how much"),
        ({"a": float("nan")}, {}, SettingsError, "do not say how much"),
        ({"a": 1}, {"how": "tie"}, SettingsError, "did you mean ties"),
        ({"a": 1}, {"how": "svd"}, SettingsError, "needs a rank"),
        ({"a": 1}, {"rank": 0}, SettingsError, "rank=0 is not allowed"),
        ({"a": 1}, {"density": 0.5}, SettingsError, "density=0.5 has no effect"),
        ({"a": 1}, {"how": "ties", "density": 0.0}, SettingsError, "density=0 is not a share"),
        ({"a": 1}, {"how": "ties", "seed": 1}, SettingsError, "seed=1 has no effect"),
        ({"aa": 1}, {}, AdapterError, "no adapter named 'aa'"),
        ({"a": 1}, {"name": "b"}, AdapterError, "already attached"),
    ],
)
def test_what_cannot_be_is_an_error_and_leaves_nothing_behind(two, weights, settings, error, message):
    with pytest.raises(error, match=message):
        blend(two, weights, lora, **{"name": "blended", **settings})
    assert set(deltatune.Adapter(two, "a").roster.adapters) == {"a", "b"}


@pytest.mark.parametrize("method", ["bitfit", "adapter", "ia3"])
def test_an_adapter_that_is_no_change_of_weights_is_refused(method):
    model = with_adapters(part=deltatune.method(method))
    with pytest.raises(DeltatuneError, match="cannot be blended|changes the bias"):
        blend(model, {"part": 1.0}, lora, name="blended")


def test_a_merged_adapter_is_refused(two):
    with deltatune.active(two, "a"):
        deltatune.Adapter(two, "a").merge()
    with pytest.raises(AdapterError, match="unmerge it first"):
        blend(two, {"b": 1.0}, lora, name="blended")
