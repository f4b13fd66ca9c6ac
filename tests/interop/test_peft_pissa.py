"""PiSSA against peft: a step is the same step, and a file is a LoRA of twice the rank with equal logits."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import deltatune
from contract.cases import disturb, model_of, outputs


@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"*.0.*": 2}, "alpha_pattern": {"*.1.*": 4}}])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_its_file_is_a_lora_of_twice_the_rank_for_peft_and_to_the_bit_for_us(tmp_path, family, rslora, patterns):
    ours = model_of(family)
    settings = deltatune.PiSSA(r=3, lora_alpha=5, use_rslora=rslora, **patterns)
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
