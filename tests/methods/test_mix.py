"""Mix: several methods as one adapter, from settings to a folder and back."""

import pytest
import torch

import deltatune
from contract.cases import disturb, forward, model_of, outputs
from deltatune.core.errors import SettingsError
from models import ROWS, inputs

MIXES = {
    "same-layers": [{"type": "lora", "r": 2}, {"type": "dora", "r": 3, "target_modules": "attention"}],
    "mix-and-match": [
        {"type": "prefix", "num_virtual_tokens": 3},
        {"type": "adapter", "placement": "parallel", "scaling": 4},
    ],
    "unipelt": [
        {"type": "adapter", "placement": "pfeiffer", "use_gating": True},
        {"type": "lora", "r": 2, "target_modules": "attention", "use_gating": True},
        {"type": "prefix", "num_virtual_tokens": 3, "use_gating": True},
    ],
    "two-kinds": [{"type": "adapter", "placement": "parallel"}, {"type": "lora", "r": 2}, {"type": "compacter"}],
}


def made(family, mix, **settings):
    model = model_of(family)
    adapter = deltatune.attach(model, deltatune.Mix(methods=MIXES[mix], **settings), name="mixed")
    return model, adapter


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_it_is_the_stack_of_its_methods(family, mix):
    model, adapter = made(family, mix)
    disturb(adapter)
    alone = model_of(family)
    names = []
    for index, settings in enumerate(MIXES[mix]):
        part = deltatune.attach(alone, deltatune.method(settings), name=f"part-{index}", seed=index)
        names.append(part.name)
        for ours, theirs in zip(part.parameters(), adapter.members[index].parameters(), strict=True):
            ours.data.copy_(theirs.data)
    with deltatune.active(alone, deltatune.Stack(*names)):
        assert torch.equal(outputs(model), outputs(alone))
    assert adapter.trainable_parameters == sum(member.trainable_parameters for member in adapter.members)
    assert adapter.method.count(adapter.attached.sites) == 0  # all are its members'


@pytest.mark.parametrize("mix", MIXES)
def test_it_switches_off_and_leaves_as_one(mix):
    model = model_of("bert")
    base = outputs(model)
    adapter = deltatune.attach(model, deltatune.Mix(methods=MIXES[mix]))
    disturb(adapter)
    mixed = outputs(model)
    assert not torch.allclose(mixed, base, atol=1e-4)
    with adapter.disabled():
        assert torch.equal(outputs(model), base)
    assert torch.equal(outputs(model), mixed)
    adapter.detach()
    assert torch.equal(outputs(model), base)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("mix", MIXES)
def test_it_is_saved_and_loaded_as_one(mix, tmp_path):
    model, adapter = made("bert", mix, modules_to_save=("classifier",))
    disturb(adapter)
    adapter.save(tmp_path / "mixed")
    fresh = model_of("bert")
    again = deltatune.load(fresh, tmp_path / "mixed", name="again")
    assert again.method == adapter.method
    assert torch.equal(outputs(fresh), outputs(model))
    again.detach()
    assert torch.equal(outputs(fresh), outputs(model_of("bert")))


def test_a_part_that_peft_knows_is_a_folder_that_peft_loads(tmp_path):
    from peft import PeftModel

    model, adapter = made("bert", "two-kinds")
    disturb(adapter)
    adapter.save(tmp_path / "mixed")
    lora = adapter.members[1]
    with deltatune.active(model, lora.name):
        expected = outputs(model)
    theirs = PeftModel.from_pretrained(model_of("bert"), tmp_path / "mixed" / "parts" / lora.name)
    assert torch.allclose(outputs(theirs), expected, atol=1e-6)


def test_every_part_gets_its_gradient_and_its_own_pace():
    model, adapter = made("bert", "two-kinds")
    disturb(adapter)
    forward(model, inputs(model)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in adapter.named_parameters().items() if "pooler" not in n)
    paces = adapter.paces()
    assert paces.keys() == adapter.named_parameters().keys()
    assert {round(pace.rate, 3) for name, pace in paces.items() if name.startswith("2.")} == {10.0}  # compacter's 1e-2


def test_its_state_goes_from_one_to_another():
    _, adapter = made("bert", "same-layers")
    disturb(adapter)
    model, other = made("bert", "same-layers")
    other.load_state_dict(adapter.state_dict())
    ours, theirs = adapter.named_parameters(), other.named_parameters()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(deltatune.DeltatuneError, match="is missing"):
        other.load_state_dict({k: v for k, v in adapter.state_dict().items() if "0.bert" not in k})


def test_rows_of_a_batch_may_have_a_mix_or_nothing():
    model, adapter = made("bert", "two-kinds")
    disturb(adapter)
    mixed = outputs(model)
    with deltatune.active(model, deltatune.Rows(["mixed", None, "mixed"])):
        rows = outputs(model)
    with adapter.disabled():
        base = outputs(model)
    expected = torch.stack([mixed[0], base[1], mixed[2]])
    assert torch.allclose(rows, expected, atol=1e-6) and len(rows) == ROWS


def test_a_mix_of_nothing_or_of_a_mix_is_an_error_and_leaves_nothing_behind():
    model = model_of("bert")
    base = outputs(model)
    with pytest.raises(SettingsError, match="mix needs methods; give them as a list"):
        deltatune.attach(model, deltatune.Mix())
    with pytest.raises(SettingsError, match="mix cannot hold mix"):
        deltatune.attach(model, deltatune.Mix(methods=[{"type": "mix", "methods": ["lora"]}]))
    with pytest.raises(SettingsError, match="rank r=100"):
        deltatune.attach(model, deltatune.Mix(methods=["compacter", {"type": "lora", "r": 100}]))
    assert torch.equal(outputs(model), base)
    assert "deltatune_roster" not in vars(model) or not vars(model)["deltatune_roster"].adapters


def test_a_list_of_methods_is_a_mix():
    found = deltatune.method([{"type": "lora", "r": 2}, "compacter"])
    assert found == deltatune.Mix(methods=[deltatune.LoRA(r=2), deltatune.Compacter()])
