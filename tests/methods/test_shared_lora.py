"""Shared LoRA: its map, its gradient against dense LoRA's, LoRA itself at the full length, and LoRA as an export."""

import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from torch import nn

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.core.errors import AdapterError, SettingsError
from shapes import count


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 9))


ENTRIES = 2 * (6 + 5) + 2 * (5 + 9)
"""Of A and B of both layers at rank 2."""


def attached(d, **settings):
    model = net()
    return model, deltatune.attach(model, deltatune.SharedLoRA(r=2, theta_d_length=d, target_modules="*", **settings))


def places(adapter):
    """All places, A and B apart."""
    sites = adapter.attached.placed.sites.values()
    return [torch.cat([getattr(site, f"index_{name}").flatten() for site in sites]) for name in "AB"]


def test_it_trains_the_length_of_the_vector_whatever_the_model():
    for name in ("bert-base", "llama-7b"):
        assert count(deltatune.SharedLoRA(r=4, theta_d_length=23_040), name) == 23_040


def test_without_a_length_a_value_has_twenty_readers():
    entries = count(deltatune.LoRA(r=4), "bert-base")
    assert count(deltatune.SharedLoRA(r=4), "bert-base") == entries // 20


@pytest.mark.parametrize("d", [4, 10, ENTRIES])
def test_every_value_is_read_equally_often_up_to_one_by_a_and_by_b(d):
    _, adapter = attached(d)
    a, b = places(adapter)
    assert set(a.tolist()) | set(b.tolist()) == set(range(d))
    for side in (a, b):
        counts = side.unique(return_counts=True)[1]
        assert counts.max() - counts.min() <= 1
    assert a.max() < b.min()


@pytest.mark.parametrize(("layer", "of_a"), [((1, 100), [0]), ((100, 1), [0, 1, 2, 3]), ((50, 50), [0, 1])])
def test_a_and_b_each_have_a_value_at_least(layer, of_a):
    """By their numbers of entries, rounded."""
    adapter = deltatune.attach(
        nn.Sequential(nn.Linear(*layer)), deltatune.SharedLoRA(r=1, theta_d_length=5, target_modules="*")
    )
    a, b = places(adapter)
    assert a.unique().tolist() == of_a and b.unique().tolist() == list(range(len(of_a), 5))


def test_the_start_is_loras_of_which_b_is_zero():
    model = nn.Sequential(nn.Linear(400, 50))
    settings = deltatune.SharedLoRA(r=8, theta_d_length=2000, target_modules="0")
    a, b = deltatune.attach(model, settings).attached.placed.sites["0"].factors(torch.float32)
    assert a.abs().max() <= 1 / 400**0.5 + 1e-6
    assert torch.isclose(a.std(), torch.tensor(1 / (3 * 400) ** 0.5), rtol=0.1)
    assert not b.any()


def test_the_map_keeps_lengths():
    _, adapter = attached(7)
    disturb(adapter, size=1.0)
    factors = [f.flatten() for site in adapter.attached.placed.sites.values() for f in site.factors(torch.float32)]
    assert torch.isclose(torch.cat(factors).norm(), adapter.parameters()[0].norm(), rtol=1e-5)


def test_the_output_is_the_closed_form():
    model, adapter = attached(9)
    disturb(adapter, size=0.5)
    x = h = torch.randn(3, 6)
    theta, counts = adapter.parameters()[0], torch.cat(places(adapter)).bincount()
    for path in ("0", "2"):
        site, layer = adapter.attached.placed.sites[path], model[int(path)]
        a, b = (theta[index.long()] * counts[index.long()].rsqrt() for index in (site.index_A, site.index_B))
        h = h @ layer.weight.T + layer.bias + h @ a.T @ b.T
        h = h.tanh() if path == "0" else h
    assert torch.allclose(model(x), h, atol=1e-6)


def gradients(model, parameters):
    x = torch.linspace(-1, 1, 18).view(3, 6)
    return torch.autograd.grad(model(x).square().sum(), parameters)


@pytest.mark.parametrize("d", [9, ENTRIES])
def test_the_gradient_of_a_value_is_that_of_the_loras_entries_that_read_it(d):
    model, adapter = attached(d)
    disturb(adapter, size=0.5)
    (found,) = gradients(model, adapter.parameters())
    plain = deltatune.materialize(adapter, name="plain")
    scale, expected = adapter.attached.placed.shared.scale, torch.zeros(d)
    dense = dict(zip(plain.named_parameters(), gradients(model, plain.parameters()), strict=True))
    for path, site in adapter.attached.placed.sites.items():
        for name in "AB":
            index = getattr(site, f"index_{name}").flatten().long()
            expected.index_add_(0, index, dense[f"{path}.lora_{name}"].flatten() * scale[index])
    assert torch.allclose(found, expected, atol=1e-5)


def test_as_many_values_as_entries_are_lora_itself_step_by_step():
    model, adapter = attached(ENTRIES)
    assert torch.equal(adapter.attached.placed.shared.scale, torch.ones(ENTRIES))
    twin = net()
    plain = deltatune.attach(twin, deltatune.LoRA(r=2, lora_alpha=2, target_modules="*"))
    with torch.no_grad():
        for path, site in adapter.attached.placed.sites.items():
            for name, value in site.materialized(torch.zeros(())).items():
                plain.attached.placed.sites[path].get_parameter(name).copy_(value)
    x = torch.randn(4, 6)
    for net_, handle in ((model, adapter), (twin, plain)):
        optimizer = torch.optim.AdamW(handle.parameters(), lr=1e-2, weight_decay=0)
        for _ in range(5):
            optimizer.zero_grad()
            net_(x).square().sum().backward()
            optimizer.step()
    assert torch.allclose(model(x), twin(x), atol=1e-5)


def test_another_process_draws_the_same_bits():
    code = """
import torch, deltatune
from torch import nn
model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 9))
sites = deltatune.attach(model, deltatune.SharedLoRA(r=2, theta_d_length=9, target_modules="*")).attached.placed.sites
print([getattr(site, name).flatten().tolist() for site in sites.values() for name in ("index_A", "index_B")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, adapter = attached(9)
    sites = adapter.attached.placed.sites.values()
    assert done.stdout.strip() == str([getattr(s, n).flatten().tolist() for s in sites for n in ("index_A", "index_B")])


def test_the_map_does_not_depend_on_the_seed_of_the_run():
    maps = []
    for seed in (0, 1):
        model = net()
        settings = deltatune.SharedLoRA(r=2, theta_d_length=9, target_modules="*")
        maps.append(torch.cat(places(deltatune.attach(model, settings, seed=seed))))
    assert torch.equal(*maps)
    assert not torch.equal(maps[0], torch.cat(places(attached(9, proj_seed=1)[1])))


@pytest.mark.parametrize("keep", [False, True])
def test_the_file_is_the_vector_and_the_map_where_it_is_asked_for(tmp_path, keep):
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.SharedLoRA(theta_d_length=100, save_indices=keep))
    disturb(adapter, size=0.5)
    adapter.save(tmp_path / "saved")
    size = sum(tensor.numel() for tensor in adapter.export().tensors.values())
    assert size > 1000 if keep else size == 100
    fresh = model_of("bert")
    assert deltatune.load(fresh, tmp_path / "saved").method == adapter.method
    assert torch.equal(outputs(fresh), outputs(model))


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gpt2"])
def test_materialized_it_is_a_lora_that_peft_reads(tmp_path, family):
    model = model_of(family)
    adapter = deltatune.attach(model, deltatune.SharedLoRA(theta_d_length=100))
    disturb(adapter, size=0.5)
    before = outputs(model)
    plain = deltatune.materialize(adapter, name="plain")
    assert plain.method.type == "lora" and plain.active
    assert torch.allclose(outputs(model), before, atol=1e-5)
    plain.save(tmp_path / "plain")
    theirs = PeftModel.from_pretrained(model_of(family), tmp_path / "plain").eval()
    assert torch.allclose(outputs(theirs), before, atol=1e-4)


def test_it_takes_no_condition_to_be_materialized_for():
    _, adapter = attached(9)
    with pytest.raises(AdapterError, match="takes no condition"):
        deltatune.materialize(adapter, 0, name="plain")


def test_more_values_than_entries_are_refused():
    with pytest.raises(SettingsError, match=f"theta_d_length={ENTRIES + 1} is more than the {ENTRIES} entries"):
        attached(ENTRIES + 1)


def test_dropout_hides_inputs_in_training_and_never_tokens():
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5))
    tokens = torch.arange(7)
    for place, drops in (("0", False), ("1", True)):
        settings = deltatune.SharedLoRA(r=2, theta_d_length=8, target_modules=place, unilora_dropout=0.5)
        adapter = deltatune.attach(model, settings)
        disturb(adapter, size=1.0)
        still = model.eval()(tokens)
        assert torch.equal(model(tokens), still)
        adapter.train_mode(True)
        assert torch.equal(model(tokens), still) != drops
        adapter.detach()
