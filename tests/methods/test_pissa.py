"""PiSSA: its start against the singular values, and a file that survives every way."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.core.errors import SettingsError
from shapes import count


def test_it_trains_loras_values():
    assert count(deltatune.PiSSA(r=8, target_modules=("attention.query", "attention.value")), "bert-base") == 294_912


@pytest.mark.parametrize("niter", [None, 8])
def test_the_factors_start_at_the_principal_part_of_the_weight(niter):
    layer = nn.Linear(20, 12)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(12, 3) @ torch.randn(3, 20) + 0.01 * torch.randn(12, 20))
    model = nn.Sequential(layer)
    adapter = deltatune.attach(model, deltatune.PiSSA(r=3, lora_alpha=6, target_modules="0", niter=niter))
    module = adapter.attached.placed.sites["0"]
    u, s, vt = torch.linalg.svd(layer.weight.detach())
    principal = u[:, :3] * s[:3] @ vt[:3]
    assert torch.allclose(module.scale * module.lora_B @ module.lora_A, principal, atol=1e-4)
    norms = (module.lora_A.norm(dim=1), module.lora_B.norm(dim=0))
    assert torch.allclose(norms[0], norms[1], atol=1e-4)  # the singular values are shared evenly


def test_the_output_is_the_closed_form():
    layer = nn.Linear(6, 5)
    model = nn.Sequential(layer)
    adapter = deltatune.attach(model, deltatune.PiSSA(r=4, target_modules="0"))
    module = adapter.attached.placed.sites["0"]
    before = (module.lora_B @ module.lora_A).detach()
    disturb(adapter)
    x = torch.randn(3, 6)
    change = module.scale * (module.lora_B @ module.lora_A - before)
    assert torch.allclose(model(x), x @ (layer.weight + change).T + layer.bias, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_its_file_is_a_lora_of_twice_the_rank_for_peft_and_to_the_bit_for_us(tmp_path, family, rslora):
    ours = model_of(family)
    settings = deltatune.PiSSA(r=3, use_rslora=rslora, rank_pattern={"*.0.*": 2}, alpha_pattern={"*.1.*": 5})
    adapter = deltatune.attach(ours, settings)
    disturb(adapter)
    adapter.save(tmp_path / "saved")
    theirs = PeftModel.from_pretrained(model_of(family), tmp_path / "saved").eval()
    assert torch.allclose(outputs(theirs), outputs(ours), atol=1e-4)
    fresh = model_of(family)
    assert deltatune.load(fresh, tmp_path / "saved").method == settings
    assert torch.equal(outputs(fresh), outputs(ours))


def test_a_step_is_the_step_of_peft():
    torch.manual_seed(0)
    layer = nn.Linear(8, 6)
    ours, theirs = nn.Sequential(nn.Linear(8, 6)), nn.Sequential(nn.Linear(8, 6))
    for model in (ours, theirs):
        model[0].load_state_dict(layer.state_dict())
    adapter = deltatune.attach(ours, deltatune.PiSSA(r=2, lora_alpha=2, target_modules="0"))
    peft_model = get_peft_model(theirs, LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights="pissa"))
    x = torch.randn(5, 8)
    found = []
    for model, parameters in (
        (ours, adapter.parameters()),
        (peft_model, [p for p in peft_model.parameters() if p.requires_grad]),
    ):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        found.append(model(x).detach())
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(SettingsError, match="PiSSA starts from matrices"):
        deltatune.attach(nn.Sequential(nn.Embedding(5, 4)), deltatune.PiSSA(r=2, target_modules="0"))
